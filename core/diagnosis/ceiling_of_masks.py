"""The same ceiling for lesion masks alone, at random positions of the grid: before anything is fitted."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.diagnosis.ceiling import best_unions, mean_of
from core.metrics.bootstrap import mean_interval
from core.metrics.lesions import MIN_VOLUME_MM3, SIZE_BINS_ML, components
from core.randomness import stream
from data.cohort import Cohort
from data.errors import BadInput
from data.lesion_labels import lesion_labels, lesion_voxels
from data.volume import Grid, Mask

DRAWS = 20
"""Random positions of the cells per mask: luck of alignment moves a small lesion's ceiling by tens of points."""


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
    return best_unions(
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
        "mean": mean_of([one["mean"] for one in each]),
        "min": min((one["min"] for one in each), default=None),
        "max": max((one["max"] for one in each), default=None),
    }


def _range(one: Mapping[str, float | None]) -> str:
    if one["mean"] is None:
        return "–"
    return f"{one['mean']:.2f} ({one['min']:.2f}–{one['max']:.2f})"
