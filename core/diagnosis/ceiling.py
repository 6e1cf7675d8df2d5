"""The best Dice that a feature grid allows, per layer, subject and lesion; and before training, from masks alone.

Two oracles that see the truth. `union`: any union of whole cells, the exact best. `band_limited`: the truth averaged
over the layer's cells and drawn by the pipeline's own upsampling, with the best cut. Linear upsampling can draw finer
edges than whole cells, so the ceiling is the larger of the two. Where the recipe smooths its score map, no map has
edges of cells any more, and the ceiling is the band-limited one. Both are counted on the working grid.

A cell of stride s lies on voxel s·i and holds the voxels nearest to it; half-way voxels belong to the even cell, as in
the pipeline's own lookup, so that with an even stride cells of s + 1 and of s − 1 voxels take turns.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32
from scipy.ndimage import distance_transform_edt, find_objects
from scipy.spatial import cKDTree

from core.bootstrap import mean_interval
from core.diagnosis.cases import Case
from core.lesions import MIN_VOLUME_MM3, SIZE_BINS_ML, components
from core.metrics import exact_curve
from core.randomness import stream
from core.run_scores import RunScores
from core.scoring import Upsampler, masked_score_map, separable
from core.types import FeatureLayout
from data.cohort import Cohort
from data.errors import BadInput
from data.reading import lesion_labels, lesion_voxels
from data.volume import Grid, Mask, Volume

DRAWS = 20
"""Random positions of the cells per mask: luck of alignment moves a small lesion's ceiling by tens of points."""
_DECIMALS = 5
"""Drawn values are compared to so many decimals: rounding errors of float32 sums must not break ties."""
_COVERED = 1e-6
"""Interpolation weight below which no feature position is near a voxel, as in core.scoring."""


@dataclass(frozen=True)
class Ceiling:
    """The two oracles of one layer, and the one that counts."""

    union: float
    band_limited: float
    best: float


@dataclass(frozen=True)
class LesionCeiling:
    """What each layer allows for one lesion alone; voxels of the subject's other lesions count neither way."""

    label: int
    """As in core.lesions.lesion_report."""
    volume_ml: float
    layers: Mapping[str, Ceiling]


@dataclass(frozen=True)
class SubjectCeilings:
    """What each layer allows for one subject."""

    subject_id: str
    lesion_ml: float
    reachable: float
    layers: Mapping[str, Ceiling]
    lesions: tuple[LesionCeiling, ...]

    def of(self, layers: Sequence[str]) -> float:
        """Ceiling of a layer set: its scores live on the feature grid, so its best layer sets the limit."""
        return max(self.layers[layer].best for layer in layers)


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


def reachable_dice(lesion: Bool[np.ndarray, "x y z"], scorable: Bool[np.ndarray, "x y z"]) -> float:
    """Dice of a perfect segmentation of the scorable voxels: 2|G∩V| / (|G∩V| + |G|)."""
    size, reached = int(np.count_nonzero(lesion)), int(np.count_nonzero(lesion & scorable))
    if size == 0:
        raise BadInput("No lesion voxel: a ceiling of Dice is undefined. Leave out subjects without lesion.")
    return 2 * reached / (reached + size)


def layers_of_run(scores: RunScores) -> tuple[LayerCells, ...]:
    """The cells of every fitted layer of a run, in its order; the voxels themselves for detectors without features."""
    smoothing, median = float(scores.detector.smoothing_mm), int(scores.detector.median_voxels)
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
        stride = _ratio(grid, layout.working_grid)
        twin = next((one for one in made if one.stride == stride), None)
        cells = twin.cells if twin else _cells(layout.working_grid, grid, layout.layer_positions[layer], stride)
        n = len(layout.layer_positions[layer])
        made.append(LayerCells(layer, grid.spacing_mm, stride, cells, n, upsampler, smoothing_mm, median_voxels))
    return tuple(made)


def voxel_cells(name: str, grid: Grid, *, smoothing_mm: float = 0.0, median_voxels: int = 0) -> LayerCells:
    """The grid of a detector without features: every voxel is a cell of its own."""
    cells = np.arange(np.prod(grid.shape), dtype=np.int32).reshape(grid.shape)
    return LayerCells(name, grid.spacing_mm, (1, 1, 1), cells, cells.size, None, smoothing_mm, median_voxels)


def subject_ceilings(case: Case, layers: Sequence[LayerCells]) -> SubjectCeilings:
    """Ceilings of a subject and of each of its lesions under every layer. BadInput without a lesion voxel."""
    scorable = np.isfinite(case.scores)
    reachable = reachable_dice(case.lesion, scorable)
    labels = components(Mask(case.lesion, case.volume.grid))
    targets = _targets(case.lesion, scorable, labels)
    by_stride: dict[tuple[int, int, int], list[Ceiling]] = {}
    strays: np.ndarray | None = None
    for layer in layers:
        if layer.stride not in by_stride:
            strays = _stray_positions(layer.upsampler, scorable) if strays is None else strays
            unions = _unions(layer, case.lesion, scorable, labels)
            by_stride[layer.stride] = [
                _ceiling(layer, float(union), _band(layer, target, strays))
                for union, target in zip(unions, targets, strict=True)
            ]
    volumes = np.bincount(labels.reshape(-1)) * case.voxel_ml
    return SubjectCeilings(
        case.subject_id,
        int(np.count_nonzero(case.lesion)) * case.voxel_ml,
        reachable,
        {layer.layer: by_stride[layer.stride][0] for layer in layers},
        tuple(
            LesionCeiling(k, float(volumes[k]), {one.layer: by_stride[one.stride][k] for one in layers})
            for k in range(1, len(targets))
        ),
    )


def layer_table(
    subjects: Sequence[SubjectCeilings], layers: Sequence[LayerCells], *, seed: int = 0
) -> list[dict[str, Any]]:
    """One row per layer, ready for JSON: mean ceilings over subjects with interval, and over lesions by size."""
    rows = []
    for layer in layers:
        found = [subject.layers[layer.layer] for subject in subjects]
        interval = mean_interval([c.best for c in found], seed=seed, purpose="ceiling")
        lesions = [(one.volume_ml, one.layers[layer.layer].best) for s in subjects for one in s.lesions]
        rows.append(
            {
                "layer": layer.layer,
                "spacing_mm": layer.cell_mm[0],
                "cell_mm": list(layer.cell_mm),
                "union": _mean([c.union for c in found]),
                "band_limited": _mean([c.band_limited for c in found]),
                "ceiling": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "n": interval.n,
                "smoothed": layer.smooths,
                "by_size": [
                    {"bin": name, "n": len(inside), "ceiling": _mean(inside)}
                    for name, low, high in SIZE_BINS_ML
                    for inside in [[best for ml, best in lesions if low <= ml < high]]
                ],
            }
        )
    return rows


def lesion_masks(cohort: Cohort) -> dict[str, Mask]:
    """The lesion masks of a cohort, in their own space, without preparing a scan; subjects without one are left out."""
    masks = {}
    for subject in cohort.subjects:
        if subject.lesion_mask is None:
            continue
        labels = lesion_labels(subject)
        masks[subject.subject_id] = Mask(lesion_voxels(subject, labels, []), labels.grid)
    return masks


def ceiling_of_masks(
    masks: Mapping[str, Mask], cells_mm: Sequence[float] = (2.0, 4.0, 8.0, 16.0), *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """Union ceilings of lesion masks for cubic cells of given edges, ready for JSON; no scan and no training needed.

    The cells are laid at `draws` random positions over each mask: mean, min and max. A lesion alone is judged without
    the subject's other lesions. Edges are in mm along the mask's own axes; where a voxel is longer than the edge, the
    voxels limit. Empty masks are left out and named.
    """
    if not cells_mm or any(edge <= 0 for edge in cells_mm) or draws < 1:
        raise BadInput(
            f"Cells of {list(cells_mm)} mm at {draws} positions. Allowed: edges above 0, 1 position or more."
        )
    empty = [i for i, mask in masks.items() if not mask.voxels.any()]
    kept = {i: mask for i, mask in masks.items() if i not in empty}
    if not kept:
        raise BadInput("No lesion voxel in any mask: a ceiling of Dice is undefined. Give masks with lesions.")
    subjects = [_mask_row(i, mask, cells_mm, draws, seed) for i, mask in kept.items()]
    lesions = [lesion for subject in subjects for lesion in subject["lesions"]]
    return {
        "cells_mm": [float(edge) for edge in cells_mm],
        "draws": draws,
        "seed": seed,
        "rule": "best Dice of any union of cells; mean, lowest and highest over random positions of the cells. "
        f"Lesions are 26-connected and at least {MIN_VOLUME_MM3:g} mm³.",
        "mean": [_over_subjects(subjects, column, edge, seed) for column, edge in enumerate(cells_mm)],
        "by_size": [
            {"bin": name, "n": len(inside), "ceilings": _over_lesions(inside, cells_mm)}
            for name, low, high in SIZE_BINS_ML
            for inside in [[one for one in lesions if low <= one["volume_ml"] < high]]
        ],
        "subjects": subjects,
        "empty": empty,
    }


def ceiling_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """`ceiling_of_masks` as rows of text, the first one the heading: by lesion size, then whole subjects."""
    heading = ["lesions", "n", *[f"cells of {edge:g} mm" for edge in result["cells_mm"]]]
    rows = [[f"lesions {line['bin']}", str(line["n"]), *map(_range, line["ceilings"])] for line in result["by_size"]]
    whole = ["all of a subject", str(len(result["subjects"])), *map(_range, result["mean"])]
    return [heading, *rows, whole]


def _best_unions(group: np.ndarray, lesion: np.ndarray, counted: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Per group of cells, the highest 2Σg / (Σn + |G|) over prefixes by falling purity; 0 for groups without cells.

    Exact: the best union of cells holds those of purity g/n above half its Dice, so it is such a prefix. Maximising a
    ratio of linear functions of 0/1 variables: Dinkelbach 1967.
    """
    best = np.zeros(len(sizes))
    if len(group) == 0:
        return best
    order = np.lexsort((-lesion / counted, group))
    group, lesion, counted = group[order], lesion[order], counted[order]
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    lengths = np.diff(np.r_[starts, len(group)])
    hits, called = np.cumsum(lesion), np.cumsum(counted)
    hits = hits - np.repeat(hits[starts] - lesion[starts], lengths)
    called = called - np.repeat(called[starts] - counted[starts], lengths)
    best[group[starts]] = np.maximum.reduceat(2 * hits / (called + sizes[group]), starts)
    return best


def _unions(layer: LayerCells, lesion: np.ndarray, scorable: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Union ceiling of the whole lesion, then of each component alone."""
    cell_of = layer.cells.reshape(-1)
    reached = np.flatnonzero(lesion & scorable)
    cells, numbers = cell_of[reached], labels.reshape(-1)[reached]
    n = np.bincount(cell_of[np.flatnonzero(scorable)], minlength=layer.n_cells)
    g = np.bincount(cells, minlength=layer.n_cells)
    sizes = np.bincount(labels[lesion], minlength=int(labels.max(initial=0)) + 1)
    sizes[0] = np.count_nonzero(lesion)
    pairs, own = np.unique(
        numbers[numbers > 0].astype(np.int64) * layer.n_cells + cells[numbers > 0], return_counts=True
    )
    number, cell = pairs // layer.n_cells, pairs % layer.n_cells
    touched = np.flatnonzero(g)
    return _best_unions(
        np.concatenate([np.zeros_like(touched), number]),
        np.concatenate([g[touched], own]),
        np.concatenate([n[touched], n[cell] - g[cell] + own]),
        sizes,
    )


@dataclass(frozen=True, eq=False)
class _Target:
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


def _targets(lesion: np.ndarray, scorable: np.ndarray, labels: np.ndarray) -> list[_Target]:
    """The whole lesion, then each component."""
    inside, numbers = scorable[lesion], labels[lesion]
    sizes, reached = np.bincount(numbers), np.bincount(numbers[inside], minlength=int(labels.max(initial=0)) + 1)
    sizes[0], reached[0] = len(numbers), np.count_nonzero(inside)
    n = int(np.count_nonzero(scorable))
    boxes = [find_objects(lesion.view(np.uint8))[0], *find_objects(labels)]
    return [
        _Target(lesion, scorable, labels, k, box, int(sizes[k]), int(reached[k]), n - int(reached[0]) + int(reached[k]))
        for k, box in enumerate(boxes)
    ]


def _band(layer: LayerCells, target: _Target, strays: np.ndarray) -> float:
    """max over τ of Dice([U(A(G)) ≥ τ], G), exact over all cuts.

    A(G) is the lesion's share of the scorable volume within each cell (edge one stride, centred on the cell's voxel).
    U is what the pipeline does: a coarser layer is looked up by its nearest cell at every feature position, then
    interpolated linearly, smoothed and filtered as in the recipe. Lesion voxels that are not scorable count as missed.
    """
    if target.n_reached == 0:
        return 0.0
    if layer.upsampler is None and not layer.smooths:
        return 2 * target.n_reached / (target.n_reached + target.size)
    box, drawn = _drawn(layer, target, strays)
    everything = 2 * target.n_reached / (target.n_counted + target.size)
    return max(everything, _best_cut(drawn, target.own(box), target.counted(box), target.size))


def _ceiling(layer: LayerCells, union: float, band_limited: float) -> Ceiling:
    return Ceiling(union, band_limited, band_limited if layer.smooths else max(union, band_limited))


def _drawn(layer: LayerCells, target: _Target, strays: np.ndarray) -> tuple[tuple[slice, ...], np.ndarray]:
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


def _stray_positions(upsampler: Upsampler | None, scorable: np.ndarray) -> np.ndarray:
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
    layer: LayerCells, layout: FeatureLayout, target: _Target
) -> tuple[tuple[slice, ...], tuple[np.ndarray, ...], np.ndarray]:
    """Feature positions that see a cell the lesion touches, the cell that each looks up, and A(G) of those cells."""
    own = layout.layer_grids[layer.layer].shape
    common = _ratio(layout.feature_grid, layout.working_grid)
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


def _best_cut(drawn: np.ndarray, reached: np.ndarray, counted: np.ndarray, size: int) -> float:
    """Highest Dice over the cuts above 0."""
    values = np.round(drawn, _DECIMALS)
    positives = values[reached]
    positives = positives[positives > 0]
    if len(positives) == 0:
        return 0.0
    negatives = values[counted & ~reached & (values >= positives.min())]
    return exact_curve(positives, negatives, unreachable=size - len(positives)).best_dice


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


@functools.lru_cache(maxsize=4)
def _present(upsampler: Upsampler) -> np.ndarray:
    present = np.zeros(upsampler.layout.feature_grid.shape, dtype=bool)
    present[tuple(upsampler.layout.positions.T)] = True
    return present


def _ratio(coarse: Grid, fine: Grid) -> tuple[int, int, int]:
    x, y, z = (round(a / b) for a, b in zip(coarse.spacing_mm, fine.spacing_mm, strict=True))
    return x, y, z


def _extent(marked: Any) -> slice:
    """The range that the marked entries span."""
    where = np.flatnonzero(marked)
    return slice(int(where[0]), int(where[-1]) + 1) if len(where) else slice(0, 0)


def _blank(brain: np.ndarray, grid: Grid) -> Volume:
    return Volume(np.zeros((1, *grid.shape), dtype=np.float32), grid, brain, "", ("",))


def _mask_row(subject_id: str, mask: Mask, cells_mm: Sequence[float], draws: int, seed: int) -> dict[str, Any]:
    labels = components(mask)
    voxels = np.argwhere(mask.voxels)
    numbers = labels[mask.voxels]
    volume_ml = np.bincount(numbers, minlength=int(labels.max()) + 1) * mask.grid.voxel_volume_mm3 / 1000
    streams = [stream(seed, f"cells over {subject_id}", column) for column in range(len(cells_mm))]
    found = [
        _at_random_positions(voxels, numbers, mask.grid, float(edge), draws, rng)
        for edge, rng in zip(cells_mm, streams, strict=True)
    ]
    return {
        "subject_id": subject_id,
        "lesion_ml": mask.volume_ml,
        "voxel_mm": list(mask.grid.spacing_mm),
        "n_lesions": len(volume_ml) - 1,
        "ceilings": [_spread(edge, dice[:, 0]) for edge, dice in zip(cells_mm, found, strict=True)],
        "lesions": [
            {
                "lesion": k,
                "volume_ml": float(volume_ml[k]),
                "ceilings": [_spread(edge, dice[:, k]) for edge, dice in zip(cells_mm, found, strict=True)],
            }
            for k in range(1, len(volume_ml))
        ],
    }


def _at_random_positions(
    voxels: np.ndarray, numbers: np.ndarray, grid: Grid, edge_mm: float, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Union ceilings, draws x (whole lesion, each component alone). Every voxel of the lattice is scorable."""
    sizes = np.bincount(numbers)
    sizes[0] = len(numbers)
    from_first = voxels - voxels.min(axis=0)
    dice = np.empty((draws, len(sizes)))
    for draw, offset in enumerate(rng.random((draws, 3))):
        cell, n = np.zeros(len(voxels), dtype=np.int64), np.ones(len(voxels), dtype=np.int64)
        for axis in range(3):
            place, length = _cells_along(from_first[:, axis], edge_mm / grid.spacing_mm[axis], offset[axis])
            cell = cell * (int(place.max()) + 1) + place
            n *= length
        dice[draw] = _every_union(cell, numbers, n, sizes)
    return dice


def _cells_along(voxels: np.ndarray, edge: float, offset: float) -> tuple[np.ndarray, np.ndarray]:
    """Number and length, in voxels, of the cell of each voxel along one axis; `edge` in voxels, `offset` in cells."""
    margin = math.ceil(edge) + 1
    along = np.arange(-margin, int(voxels.max()) + 1 + margin)
    places = np.floor(along / edge + offset).astype(np.int64)
    places -= places[0]
    place = places[voxels + margin]
    return place, np.bincount(places)[place]


def _every_union(cell: np.ndarray, numbers: np.ndarray, n: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Union ceilings of the whole lesion and of each component, from its voxels' cells and those cells' volumes."""
    pairs, first, own = np.unique(cell * len(sizes) + numbers, return_index=True, return_counts=True)
    places, number, volume = pairs // len(sizes), pairs % len(sizes), n[first]
    start = np.flatnonzero(np.r_[True, places[1:] != places[:-1]])
    g = np.add.reduceat(own, start)
    others = np.repeat(g, np.diff(np.r_[start, len(places)])) - own
    alone = number > 0
    return _best_unions(
        np.concatenate([np.zeros(len(start), dtype=np.int64), number[alone]]),
        np.concatenate([g, own[alone]]),
        np.concatenate([volume[start], (volume - others)[alone]]),
        sizes,
    )


def _spread(edge_mm: float, dice: np.ndarray) -> dict[str, float]:
    return {
        "cell_mm": float(edge_mm), "mean": float(dice.mean()), "min": float(dice.min()), "max": float(dice.max())
    }  # fmt: skip


def _over_subjects(subjects: Sequence[Mapping[str, Any]], column: int, edge_mm: float, seed: int) -> dict[str, Any]:
    each = [subject["ceilings"][column] for subject in subjects]
    interval = mean_interval([one["mean"] for one in each], seed=seed, purpose="ceiling")
    return {**_extremes(each, edge_mm), "low": interval.low, "high": interval.high, "n": interval.n}


def _over_lesions(lesions: Sequence[Mapping[str, Any]], cells_mm: Sequence[float]) -> list[dict[str, Any]]:
    return [_extremes([one["ceilings"][column] for one in lesions], edge) for column, edge in enumerate(cells_mm)]


def _extremes(each: Sequence[Mapping[str, float]], edge_mm: float) -> dict[str, Any]:
    return {
        "cell_mm": float(edge_mm),
        "mean": _mean([one["mean"] for one in each]),
        "min": min((one["min"] for one in each), default=None),
        "max": max((one["max"] for one in each), default=None),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _range(one: Mapping[str, float | None]) -> str:
    if one["mean"] is None:
        return "–"
    return f"{one['mean']:.2f} ({one['min']:.2f}–{one['max']:.2f})"
