"""Ceilings of subjects and lesions under five layers, against the definitions written down plainly.

One thread, process CPU time, the two sides in turn, medians. Brains are ellipsoids and lesions are balls, so the
figures speak of speed and agreement only.
"""

from typing import Any

import numpy as np

from benchmarks.clock import cpu_seconds, side_by_side
from core.diagnosis.ceiling import subject_ceilings
from core.diagnosis.layer_cells import LayerCells, layers_of_layout
from core.features.layout import feature_layout, positions_near
from core.features.score_maps import to_score_map
from core.metrics.exact_curve import exact_curve
from core.metrics.lesions import components
from core.randomness import stream
from core.study.cases import Case
from core.types import FeatureLayout
from data.volume import Grid, Mask, Volume

STRIDES = {"a": (2, 2, 2), "b": (4, 4, 2), "c": (4, 4, 4), "d": (8, 8, 4), "e": (8, 8, 8)}
"""Five layers with five different grids, so that none is spared."""


def ceilings_vs_plain(
    subjects: int = 100, shape: tuple[int, int, int] = (80, 96, 80), compared: int = 4, rounds: int = 3
) -> dict[str, Any]:
    """Union and band-limited ceilings of whole subjects and of each lesion. Target: 100 subjects in 5 s.

    `ratio` is over the first `compared` subjects: whole-grid arrays and np.unique for every layer and lesion.
    """
    working = Grid(shape, np.diag([2.0, 2.0, 2.0, 1.0]))
    brain = _ball(shape, np.array(shape) / 2, np.array(shape) * np.array([0.45, 0.45, 0.365]))
    layout = feature_layout(working, (2, 2, 2), STRIDES, dict.fromkeys(STRIDES, 1), positions_near(brain, (2, 2, 2)))
    layers = layers_of_layout(layout)
    cases = [_case(number, working, brain) for number in range(subjects)]
    seconds, found = cpu_seconds(lambda: [subject_ceilings(case, layers) for case in cases])
    timing = side_by_side(
        lambda: [_figures(subject_ceilings(case, layers)) for case in cases[:compared]],
        lambda: [_plain(case, layers, layout) for case in cases[:compared]],
        rounds,
        1,
    )
    return {
        "ratio": timing.ratio,
        "seconds": seconds,
        "target_seconds": 5.0,
        "subjects": subjects,
        "lesions": sum(len(one.lesions) for one in found),
        "layers": len(layers),
        "brain_voxels": int(brain.sum()),
        "ms_per_subject": seconds / subjects * 1e3,
        "plain_ms_per_subject": timing.reference_seconds / compared * 1e3,
        "largest_difference": float(
            max(np.abs(a - b).max() for a, b in zip(timing.value, timing.reference, strict=True))
        ),
    }


def _figures(found: Any) -> np.ndarray:
    each = [found.layers, *[lesion.layers for lesion in found.lesions]]
    return np.array([[(one[name].union, one[name].band_limited) for name in STRIDES] for one in each])


def _plain(case: Case, layers: tuple[LayerCells, ...], layout: FeatureLayout) -> np.ndarray:
    """The same figures from whole arrays, one layer and one lesion at a time."""
    scorable = np.isfinite(case.scores)
    labels = components(Mask(case.lesion, case.volume.grid))
    targets = [(case.lesion, scorable)]
    targets += [((labels == k), scorable & ~(case.lesion & (labels != k))) for k in range(1, labels.max() + 1)]
    return np.array(
        [
            [(_plain_union(layer, g, v), _plain_band(layer, layout, case.volume, g, v)) for layer in layers]
            for g, v in targets
        ]
    )


def _plain_union(layer: LayerCells, lesion: np.ndarray, counted: np.ndarray) -> float:
    _, cell, n = np.unique(layer.cells[counted], return_inverse=True, return_counts=True)
    g = np.zeros(len(n))
    np.add.at(g, cell, lesion[counted])
    order = np.argsort(-g / n, kind="stable")
    return float((2 * np.cumsum(g[order]) / (np.cumsum(n[order]) + lesion.sum())).max())


def _plain_band(
    layer: LayerCells, layout: FeatureLayout, volume: Volume, lesion: np.ndarray, counted: np.ndarray
) -> float:
    shares = _averaged(lesion & counted, layer) / np.maximum(_averaged(counted, layer), 1e-6)
    rows = shares[tuple(layout.layer_positions[layer.layer].T)]
    drawn = np.round(to_score_map(rows[layout.lookup[layer.layer]], layout, volume, "").scores, 5)
    reached = lesion & counted
    missed = int(lesion.sum()) - int(reached.sum())
    return exact_curve(drawn[reached], drawn[counted & ~reached], unreachable=missed).best_dice


def _averaged(mask: np.ndarray, layer: LayerCells) -> np.ndarray:
    """Volume of the mask in every cell of a layer, by weighting voxels along each axis in turn."""
    values = mask.astype(np.float32)
    for axis, stride in enumerate(layer.stride):
        n = values.shape[axis]
        apart = np.abs(stride * np.arange(-(-n // stride))[:, None] - np.arange(n)[None, :])
        apart[-1, -(-n // stride) * stride - stride :] = 0
        weight = np.clip(stride / 2 + 0.5 - apart, 0, 1).astype(np.float32)
        values = np.moveaxis(np.tensordot(weight, values, axes=(1, axis)), 0, axis)
    return values


def _case(number: int, working: Grid, brain: np.ndarray) -> Case:
    rng = stream(number, "benchmark ceilings")
    inside = np.argwhere(brain)
    lesion = np.zeros(working.shape, dtype=bool)
    for _ in range(int(rng.integers(1, 6))):
        lesion |= _ball(working.shape, inside[rng.integers(len(inside))], np.full(3, rng.uniform(2, 8)))
    volume = Volume(np.zeros((1, *working.shape), np.float32), working, brain, f"sub-{number}", ("T1",))
    return Case(volume.subject_id, False, volume, lesion & brain, np.where(brain, 1, np.nan).astype(np.float32))


def _ball(shape: tuple[int, int, int], centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    parts = [((np.arange(n) - c) / r) ** 2 for n, c, r in zip(shape, centre, radii, strict=True)]
    inside: np.ndarray = parts[0][:, None, None] + parts[1][:, None] + parts[2] <= 1
    return inside
