"""What a layer could draw of a lesion at best: its own mask, seen and given back through the layer's grid."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32
from scipy.ndimage import find_objects
from scipy.spatial import cKDTree

from core.diagnosis.layer_cells import LayerCells, grid_ratio
from core.features.score_maps import Upsampler, masked_score_map, separable
from core.types import FeatureLayout
from data.volume import Grid, Volume

_COVERED = 1e-6
"""Interpolation weight below which no feature position is near a voxel, as in core.features.score_maps."""


@dataclass(frozen=True, eq=False)
class Target:
    """A lesion that a map is to match: the whole of a subject (number 0) or one component, with its counts."""

    lesion: Bool[np.ndarray, "x y z"]
    scorable: Bool[np.ndarray, "x y z"]
    labels: Int32[np.ndarray, "x y z"]
    number: int
    bounds: tuple[slice, ...]
    size: int
    n_reached: int
    n_counted: int
    """Scorable voxels less those of other lesions."""

    def own(self, box: tuple[slice, ...]) -> np.ndarray:
        """Its scorable voxels in a box."""
        mine = self.lesion[box] if self.number == 0 else self.labels[box] == self.number
        return np.asarray(mine & self.scorable[box])

    def counted(self, box: tuple[slice, ...]) -> np.ndarray:
        """Voxels of a box that count for or against it."""
        if self.number == 0:
            return self.scorable[box]
        return np.asarray(self.scorable[box] & ~(self.lesion[box] & (self.labels[box] != self.number)))


def targets_of(lesion: np.ndarray, scorable: np.ndarray, labels: np.ndarray) -> list[Target]:
    """The whole lesion, then each component."""
    inside, numbers = scorable[lesion], labels[lesion]
    sizes, reached = np.bincount(numbers), np.bincount(numbers[inside], minlength=int(labels.max(initial=0)) + 1)
    sizes[0], reached[0] = len(numbers), np.count_nonzero(inside)
    n = int(np.count_nonzero(scorable))
    boxes = [find_objects(lesion.view(np.uint8))[0], *find_objects(labels)]
    return [
        Target(lesion, scorable, labels, k, box, int(sizes[k]), int(reached[k]), n - int(reached[0]) + int(reached[k]))
        for k, box in enumerate(boxes)
    ]


def drawn_through(layer: LayerCells, target: Target, strays: np.ndarray) -> tuple[tuple[slice, ...], np.ndarray]:
    """A box outside which the drawn map is 0, and the map in it."""
    upsampler, median = layer.upsampler, layer.median_voxels
    everywhere = tuple(slice(0, n) for n in target.lesion.shape)
    if upsampler is None:
        volume = _blank(target.scorable, Grid(target.lesion.shape, np.diag([*layer.cell_mm, 1.0])))
        own = target.own(everywhere).astype(np.float32)
        smooth = masked_score_map(own, volume, "", smoothing_mm=layer.smoothing_mm, median_voxels=median)
        return everywhere, smooth.scores
    positions, cells, values = _at_features(layer, upsampler.layout, target)
    present = _present(upsampler)[positions]
    grid = np.where(present, values[np.ix_(*cells)], np.float32(0))
    whole = np.zeros(upsampler.layout.feature_grid.shape, dtype=np.float32)
    whole[positions] = grid
    if median > 1 or whole[tuple(strays.T)].any():
        distances = whole[tuple(upsampler.layout.positions.T)]
        volume = _blank(target.scorable, upsampler.layout.working_grid)
        return everywhere, upsampler.score_map(distances, volume, "", median_voxels=median).scores
    slabs = [matrix[:, s] for matrix, s in zip(upsampler.matrices, positions, strict=True)]
    box = tuple(_extent(slab.any(axis=1)) for slab in slabs)
    drawn = separable(grid, (slabs[0][box[0]], slabs[1][box[1]], slabs[2][box[2]]))
    weight = upsampler.weight[box]
    return box, np.divide(drawn, weight, out=np.zeros_like(drawn), where=weight > _COVERED)


def stray_positions(upsampler: Upsampler | None, scorable: np.ndarray) -> np.ndarray:
    """Feature positions whose value the pipeline gives to scorable voxels that no position covers: the nearest ones."""
    if upsampler is None:
        return np.empty((0, 3), dtype=np.int64)
    layout = upsampler.layout
    voxels = np.argwhere(scorable & (upsampler.weight <= _COVERED))
    if len(voxels) == 0:
        return np.empty((0, 3), dtype=np.int64)
    rows = np.unique(_tree(upsampler).query(_world(layout.working_grid, voxels))[1])
    positions: np.ndarray = np.asarray(layout.positions)[rows]
    return positions


@functools.lru_cache(maxsize=4)
def _tree(upsampler: Upsampler) -> cKDTree:
    return cKDTree(_world(upsampler.layout.feature_grid, np.asarray(upsampler.layout.positions)))


def _world(grid: Grid, indices: np.ndarray) -> np.ndarray:
    world: np.ndarray = indices @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    return world


def _at_features(
    layer: LayerCells, layout: FeatureLayout, target: Target
) -> tuple[tuple[slice, ...], tuple[np.ndarray, ...], np.ndarray]:
    """Feature positions that see a cell the lesion touches, the cell that each looks up, and A(G) of those cells."""
    own = layout.layer_grids[layer.layer].shape
    common = grid_ratio(layout.feature_grid, layout.working_grid)
    averages, cubes, positions, cells = [], [], [], []
    for axis in range(3):
        area = _area_matrix(layer.stride[axis], own[axis], layout.working_grid.shape[axis])
        touched = _extent(area[:, target.bounds[axis]].any(axis=1))
        cube = _extent(area[touched].any(axis=0))
        nearest = np.rint(np.arange(layout.feature_grid.shape[axis]) * common[axis] / layer.stride[axis]).astype(int)
        nearest = np.minimum(nearest, own[axis] - 1)
        looking = _extent((nearest >= touched.start) & (nearest < touched.stop))
        averages.append(area[touched, cube])
        cubes.append(cube)
        positions.append(looking)
        cells.append(nearest[looking] - touched.start)
    matrices, box = (averages[0], averages[1], averages[2]), tuple(cubes)
    total = separable(target.counted(box).astype(np.float32), matrices)
    share = separable(target.own(box).astype(np.float32), matrices) / np.maximum(total, _COVERED)
    return tuple(positions), tuple(cells), share


def _area_matrix(stride: int, n_cells: int, n_voxels: int) -> Float32[np.ndarray, "cells voxels"]:
    """How much of each voxel lies in each cell, along one axis: the cell spans half a stride either side of s·i.

    The last cell reaches to the end of the grid, as the pipeline's values do.
    """
    apart = np.abs(stride * np.arange(n_cells)[:, None] - np.arange(n_voxels)[None, :])
    apart[-1, stride * (n_cells - 1) :] = 0
    return np.clip(stride / 2 + 0.5 - apart, 0, 1).astype(np.float32)


@functools.lru_cache(maxsize=4)
def _present(upsampler: Upsampler) -> np.ndarray:
    present = np.zeros(upsampler.layout.feature_grid.shape, dtype=bool)
    present[tuple(upsampler.layout.positions.T)] = True
    return present


def _extent(marked: Any) -> slice:
    """The range that the marked entries span."""
    where = np.flatnonzero(marked)
    return slice(int(where[0]), int(where[-1]) + 1) if len(where) else slice(0, 0)


def _blank(brain: np.ndarray, grid: Grid) -> Volume:
    return Volume(np.zeros((1, *grid.shape), dtype=np.float32), grid, brain, "", ("",))
