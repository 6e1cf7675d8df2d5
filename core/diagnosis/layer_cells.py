"""The cells of each layer's grid in a volume: which voxels a feature sees together."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32
from scipy.ndimage import distance_transform_edt

from core.detectors.capabilities import own_filters
from core.features.score_maps import Upsampler
from core.study.stored_scores import RunScores
from core.types import FeatureLayout
from data.volume import Grid


@dataclass(frozen=True, eq=False)
class LayerCells:
    """The cells of one layer on the working grid, and how the pipeline draws values at them."""

    layer: str
    cell_mm: tuple[float, float, float]
    stride: tuple[int, int, int]
    """Working-grid voxels per cell."""
    cells: Int32[np.ndarray, "x y z"]
    """Number of the cell that each voxel belongs to."""
    n_cells: int
    upsampler: Upsampler | None
    """None where the scores lie on the voxels themselves."""
    smoothing_mm: float = 0.0
    median_voxels: int = 0

    @property
    def smooths(self) -> bool:
        """Whether the recipe smooths the score map, so that it cannot follow the edges of cells."""
        return self.smoothing_mm > 0 or self.median_voxels > 1


def layers_of_run(scores: RunScores) -> tuple[LayerCells, ...]:
    """The cells of every fitted layer of a run, in its order; the voxels themselves for detectors without features."""
    smoothing, median = own_filters(scores.detector)
    if scores.layout is not None:
        return layers_of_layout(scores.layout, smoothing_mm=smoothing, median_voxels=median)
    subject_id = next(i for role in ("test", "calibration", "train") for i in scores.subjects(role))
    grid = scores.prepared(subject_id).volume.grid
    return (voxel_cells(scores.layers[0], grid, smoothing_mm=smoothing, median_voxels=median),)


def layers_of_layout(
    layout: FeatureLayout, *, smoothing_mm: float = 0.0, median_voxels: int = 0
) -> tuple[LayerCells, ...]:
    """The cells of every layer of a layout. A layer finer than the feature grid is kept at the feature grid's cells."""
    upsampler = Upsampler(layout, smoothing_mm)
    made: list[LayerCells] = []
    for layer in layout.layers:
        grid = layout.layer_grids[layer]
        stride = grid_ratio(grid, layout.working_grid)
        twin = next((one for one in made if one.stride == stride), None)
        cells = twin.cells if twin else _cells(layout.working_grid, grid, layout.layer_positions[layer], stride)
        n = len(layout.layer_positions[layer])
        made.append(LayerCells(layer, grid.spacing_mm, stride, cells, n, upsampler, smoothing_mm, median_voxels))
    return tuple(made)


def voxel_cells(name: str, grid: Grid, *, smoothing_mm: float = 0.0, median_voxels: int = 0) -> LayerCells:
    """The grid of a detector without features: every voxel is a cell of its own."""
    cells = np.arange(np.prod(grid.shape), dtype=np.int32).reshape(grid.shape)
    return LayerCells(name, grid.spacing_mm, (1, 1, 1), cells, cells.size, None, smoothing_mm, median_voxels)


def _cells(working: Grid, grid: Grid, positions: np.ndarray, stride: tuple[int, int, int]) -> np.ndarray:
    """Row in `positions` of the nearest cell of every voxel; half-way voxels belong to the even cell.

    A voxel whose cell was not computed (beyond the training brains) takes the computed cell nearest to that one.
    """
    rows = np.full(grid.shape, -1, dtype=np.int32)
    rows[tuple(positions.T)] = np.arange(len(positions), dtype=np.int32)
    if (rows < 0).any():
        nearest = distance_transform_edt(
            rows < 0, sampling=grid.spacing_mm, return_distances=False, return_indices=True
        )
        rows = rows[tuple(nearest)]
    along = [
        np.minimum(np.rint(np.arange(n) / s).astype(int), m - 1)
        for n, s, m in zip(working.shape, stride, grid.shape, strict=True)
    ]
    cells: np.ndarray = rows[np.ix_(*along)]
    return cells


def grid_ratio(coarse: Grid, fine: Grid) -> tuple[int, int, int]:
    """Voxels of the fine grid per cell of the coarse one, along each axis."""
    x, y, z = (round(a / b) for a, b in zip(coarse.spacing_mm, fine.spacing_mm, strict=True))
    return x, y, z
