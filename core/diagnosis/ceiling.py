"""The best Dice that a feature grid allows, per layer, subject and lesion; and before training, from masks alone.

Two oracles that see the truth. `union`: any union of whole cells, the exact best. `band_limited`: the truth averaged
over the layer's cells and drawn by the pipeline's own upsampling, with the best cut. Linear upsampling can draw finer
edges than whole cells, so the ceiling is the larger of the two. Where the recipe smooths its score map, no map has
edges of cells any more, and the ceiling is the band-limited one. Both are counted on the working grid.

A cell of stride s lies on voxel s·i and holds the voxels nearest to it; half-way voxels belong to the even cell, as in
the pipeline's own lookup, so that with an even stride cells of s + 1 and of s − 1 voxels take turns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from core.diagnosis.drawn_lesions import Target, drawn_through, stray_positions, targets_of
from core.diagnosis.layer_cells import LayerCells
from core.metrics.bootstrap import mean_interval
from core.metrics.exact_curve import exact_curve
from core.metrics.lesions import SIZE_BINS_ML, components
from core.study.cases import Case
from data.errors import BadInput
from data.volume import Mask

_DECIMALS = 5
"""Drawn values are compared to so many decimals: rounding errors of float32 sums must not break ties."""


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
    """As in core.metrics.lesions.lesion_report."""
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


def reachable_dice(lesion: Bool[np.ndarray, "x y z"], scorable: Bool[np.ndarray, "x y z"]) -> float:
    """Dice of a perfect segmentation of the scorable voxels: 2|G∩V| / (|G∩V| + |G|)."""
    size, reached = int(np.count_nonzero(lesion)), int(np.count_nonzero(lesion & scorable))
    if size == 0:
        raise BadInput("No lesion voxel: a ceiling of Dice is undefined. Leave out subjects without lesion.")
    return 2 * reached / (reached + size)


def subject_ceilings(case: Case, layers: Sequence[LayerCells]) -> SubjectCeilings:
    """Ceilings of a subject and of each of its lesions under every layer. BadInput without a lesion voxel."""
    scorable = np.isfinite(case.scores)
    reachable = reachable_dice(case.lesion, scorable)
    labels = components(Mask(case.lesion, case.volume.grid))
    targets = targets_of(case.lesion, scorable, labels)
    by_stride: dict[tuple[int, int, int], list[Ceiling]] = {}
    strays: np.ndarray | None = None
    for layer in layers:
        if layer.stride not in by_stride:
            strays = stray_positions(layer.upsampler, scorable) if strays is None else strays
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
                "union": mean_of([c.union for c in found]),
                "band_limited": mean_of([c.band_limited for c in found]),
                "ceiling": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "n": interval.n,
                "smoothed": layer.smooths,
                "by_size": [
                    {"bin": name, "n": len(inside), "ceiling": mean_of(inside)}
                    for name, low, high in SIZE_BINS_ML
                    for inside in [[best for ml, best in lesions if low <= ml < high]]
                ],
            }
        )
    return rows


def best_unions(group: np.ndarray, lesion: np.ndarray, counted: np.ndarray, sizes: np.ndarray) -> np.ndarray:
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
    return best_unions(
        np.concatenate([np.zeros_like(touched), number]),
        np.concatenate([g[touched], own]),
        np.concatenate([n[touched], n[cell] - g[cell] + own]),
        sizes,
    )


def _band(layer: LayerCells, target: Target, strays: np.ndarray) -> float:
    """max over τ of Dice([U(A(G)) ≥ τ], G), exact over all cuts.

    A(G) is the lesion's share of the scorable volume within each cell (edge one stride, centred on the cell's voxel).
    U is what the pipeline does: a coarser layer is looked up by its nearest cell at every feature position, then
    interpolated linearly, smoothed and filtered as in the recipe. Lesion voxels that are not scorable count as missed.
    """
    if target.n_reached == 0:
        return 0.0
    if layer.upsampler is None and not layer.smooths:
        return 2 * target.n_reached / (target.n_reached + target.size)
    box, drawn = drawn_through(layer, target, strays)
    everything = 2 * target.n_reached / (target.n_counted + target.size)
    return max(everything, _best_cut(drawn, target.own(box), target.counted(box), target.size))


def _ceiling(layer: LayerCells, union: float, band_limited: float) -> Ceiling:
    return Ceiling(union, band_limited, band_limited if layer.smooths else max(union, band_limited))


def _best_cut(drawn: np.ndarray, reached: np.ndarray, counted: np.ndarray, size: int) -> float:
    """Highest Dice over the cuts above 0."""
    values = np.round(drawn, _DECIMALS)
    positives = values[reached]
    positives = positives[positives > 0]
    if len(positives) == 0:
        return 0.0
    negatives = values[counted & ~reached & (values >= positives.min())]
    return exact_curve(positives, negatives, unreachable=size - len(positives)).best_dice


def mean_of(values: Sequence[float]) -> float | None:
    """Mean; None of nothing."""
    return float(np.mean(values)) if values else None
