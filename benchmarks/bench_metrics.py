"""Curves, exact metrics, subject toggles and score maps against scikit-learn and scipy.

One thread, process CPU time, the two sides interleaved, medians. Scores are synthetic (1 % lesion voxels), so the
figures speak of speed and agreement only. Run: python -m benchmarks --only NAME
"""

import statistics
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from benchmarks.clock import cpu_seconds, side_by_side
from core.features.score_maps import Upsampler
from core.metrics.exact_curve import exact_curve
from core.metrics.score_histogram import ScoreHistogram, edges, pooled
from core.types import FeatureLayout
from data.volume import Grid, Volume

PREVALENCE = 0.01


def threshold_curves_vs_sklearn(voxels: int = 50_000_000, rounds: int = 1) -> dict[str, Any]:
    """Dice at every threshold: histogram and curve, against precision_recall_curve and Dice from it. Target 100x."""
    scores, lesion = _voxels(voxels)
    timing = side_by_side(
        lambda: ScoreHistogram.of(scores, lesion).dice_curve(), lambda: _sklearn_dice(scores, lesion), rounds, 1
    )
    curve = timing.value
    places = np.linspace(0, len(curve) - 1, 64).astype(int)
    brute = np.array([_dice(scores, lesion, edges()[k]) for k in places])
    return {
        "ratio": timing.ratio,
        "target": 100,
        "voxels": voxels,
        "seconds": timing.seconds,
        "sklearn_seconds": timing.reference_seconds,
        "largest_error_at_edges": float(np.abs(curve[places] - brute).max()),
        "best_dice_below_optimum": timing.reference[0] - float(curve.max()),
    }


def all_metrics_exact_vs_sklearn(voxels: int = 50_000_000, rounds: int = 1) -> dict[str, Any]:
    """AUPRC, AUROC, best Dice and FPR95, exact, against scikit-learn. Target 20x.

    `ratio` is against precision_recall_curve and Dice alone; `ratio_three_calls` adds average_precision_score and
    roc_auc_score, which is what gives the same figures.
    """
    scores, lesion = _voxels(voxels)
    timing = side_by_side(
        lambda: exact_curve(scores[lesion], scores[~lesion]), lambda: _sklearn_dice(scores, lesion), rounds, 1
    )
    more, (ap, roc) = cpu_seconds(lambda: (average_precision_score(lesion, scores), roc_auc_score(lesion, scores)))
    curve = timing.value
    return {
        "ratio": timing.ratio,
        "ratio_three_calls": timing.ratio + more / timing.seconds,
        "target": 20,
        "voxels": voxels,
        "seconds": timing.seconds,
        "sklearn_seconds": timing.reference_seconds,
        "sklearn_three_calls_seconds": timing.reference_seconds + more,
        "auprc_difference": abs(curve.auprc - ap),
        "auroc_difference": abs((curve.auroc or 0) - roc),
        "best_dice_difference": abs(curve.best_dice - timing.reference[0]),
    }


def subject_toggle_ms(subjects: int = 16, voxels: int = 500_000, rounds: int = 21) -> dict[str, Any]:
    """The pooled Dice curve after one subject leaves and after it returns, each in ms. Target 1 ms.

    `ratio` is against binning all subjects again.
    """
    parts = [_voxels(voxels, seed) for seed in range(subjects)]
    each = [ScoreHistogram.of(*part) for part in parts]
    total = pooled(each)
    removed = side_by_side(
        lambda: (total - each[3]).dice_curve(),
        lambda: pooled([ScoreHistogram.of(*part) for i, part in enumerate(parts) if i != 3]).dice_curve(),
        rounds,
        1,
    )
    without = total - each[3]
    back = statistics.median(cpu_seconds(lambda: (without + each[3]).dice_curve())[0] for _ in range(rounds))
    return {
        "ratio": removed.ratio,
        "ms": max(removed.seconds, back) * 1e3,
        "remove_ms": removed.seconds * 1e3,
        "add_ms": back * 1e3,
        "target_ms": 1.0,
        "largest_difference": float(np.abs(removed.value - removed.reference).max()),
    }


def upsample_blur_vs_scipy(smoothing_mm: float = 8.0, rounds: int = 7) -> dict[str, Any]:
    """Feature grid 40x48x40 to an 80x96x80 map with a Gaussian, against map_coordinates and gaussian_filter. 10x."""
    working = Grid((80, 96, 80), np.diag([2.0, 2.0, 2.0, 1.0]))
    source = working.coarser((2, 2, 2))
    positions = np.argwhere(np.ones(source.shape, bool))
    layout = FeatureLayout(
        working,
        source,
        positions,
        {"layer1": source},
        {"layer1": positions},
        {"layer1": np.arange(len(positions))},
        {"layer1": 1},
    )
    volume = Volume(np.zeros((1, *working.shape), np.float32), working, np.ones(working.shape, bool), "a", ("T1",))
    values = np.random.Generator(np.random.Philox(3)).gamma(2, 1, source.shape).astype(np.float32)
    sigma = smoothing_mm / 2.0
    where = np.meshgrid(*[np.arange(n) / 2 for n in working.shape], indexing="ij")
    norm = gaussian_filter(np.ones(working.shape, np.float32), sigma, mode="constant")
    upsampler = Upsampler(layout, smoothing_mm)

    def theirs() -> np.ndarray:
        plain = map_coordinates(values, where, order=1, mode="nearest", prefilter=False)
        smooth: np.ndarray = gaussian_filter(plain, sigma, mode="constant") / norm
        return smooth

    def ours() -> np.ndarray:
        return upsampler.score_map(values.reshape(-1), volume, "σ").scores

    timing = side_by_side(ours, theirs, rounds)
    return {
        "ratio": timing.ratio,
        "target": 10,
        "ms": timing.seconds * 1e3,
        "scipy_ms": timing.reference_seconds * 1e3,
        "largest_relative_difference": float(np.abs(timing.value / timing.reference - 1).max()),
    }


def _voxels(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 11])))
    lesion = rng.random(n, dtype=np.float32) < PREVALENCE
    scores = rng.standard_normal(n, dtype=np.float32)
    scores[lesion] += 1.5
    return np.exp(scores, out=scores), lesion


def _sklearn_dice(scores: np.ndarray, lesion: np.ndarray) -> tuple[float, float]:
    precision, recall, cuts = precision_recall_curve(lesion, scores)
    dice = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(dice[:-1].argmax())
    return float(dice[best]), float(cuts[best])


def _dice(scores: np.ndarray, lesion: np.ndarray, threshold: float) -> float:
    called = scores >= threshold
    return 2 * int(np.count_nonzero(called & lesion)) / (int(np.count_nonzero(called)) + int(np.count_nonzero(lesion)))
