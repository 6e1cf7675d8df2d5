"""Curves, exact metrics, subject toggles and score maps against scikit-learn and scipy.

One thread, process CPU time, the two sides interleaved, medians. Scores are synthetic (1 % lesion voxels), so the
figures speak of speed and agreement only. Run: python -m benchmarks.bench_metrics [--voxels 50000000]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from threadpoolctl import threadpool_limits

from core.curves import ScoreHistogram, edges, pooled
from core.metrics import exact_curve
from core.scoring import Upsampler
from core.types import FeatureLayout
from data.volume import Grid, Volume

PREVALENCE = 0.01


def threshold_curves_vs_sklearn(voxels: int = 50_000_000, rounds: int = 1) -> dict[str, Any]:
    """Dice at every threshold: histogram and curve, against precision_recall_curve and Dice from it. Target 100x."""
    scores, lesion = _voxels(voxels)
    ours, theirs = _interleaved(
        lambda: ScoreHistogram.of(scores, lesion).dice_curve(), lambda: _sklearn_dice(scores, lesion), rounds
    )
    curve = ScoreHistogram.of(scores, lesion).dice_curve()
    theirs_best, _ = _sklearn_dice(scores, lesion) if voxels <= 5_000_000 else _exact_best(scores, lesion)
    places = np.linspace(0, len(curve) - 1, 64).astype(int)
    brute = np.array([_dice(scores, lesion, edges()[k]) for k in places])
    return {
        "ratio": theirs / ours,
        "target": 100,
        "voxels": voxels,
        "seconds": ours,
        "sklearn_seconds": theirs,
        "largest_error_at_edges": float(np.abs(curve[places] - brute).max()),
        "best_dice_below_optimum": theirs_best - float(curve.max()),
    }


def all_metrics_exact_vs_sklearn(voxels: int = 50_000_000, rounds: int = 1) -> dict[str, Any]:
    """AUPRC, AUROC, best Dice and FPR95, exact, against scikit-learn. Target 20x.

    `ratio` is against precision_recall_curve and Dice alone; `ratio_three_calls` adds average_precision_score and
    roc_auc_score, which is what gives the same figures.
    """
    scores, lesion = _voxels(voxels)
    ours, curve_only = _interleaved(
        lambda: exact_curve(scores[lesion], scores[~lesion]), lambda: _sklearn_dice(scores, lesion), rounds
    )
    start = time.process_time()
    ap, roc = average_precision_score(lesion, scores), roc_auc_score(lesion, scores)
    more = time.process_time() - start
    curve = exact_curve(scores[lesion], scores[~lesion])
    return {
        "ratio": curve_only / ours,
        "ratio_three_calls": (curve_only + more) / ours,
        "target": 20,
        "voxels": voxels,
        "seconds": ours,
        "sklearn_seconds": curve_only + more,
        "auprc_difference": abs(curve.auprc - ap),
        "auroc_difference": abs((curve.auroc or 0) - roc),
    }


def subject_toggle_ms(subjects: int = 16, voxels: int = 500_000, rounds: int = 21) -> dict[str, Any]:
    """The pooled Dice curve after one subject leaves and after it returns, each in ms. Target 1 ms.

    `ratio` is against binning all subjects again.
    """
    parts = [_voxels(voxels, seed) for seed in range(subjects)]
    each = [ScoreHistogram.of(*part) for part in parts]
    total = pooled(each)
    toggle, again = _interleaved(
        lambda: (total - each[3]).dice_curve(),
        lambda: pooled([ScoreHistogram.of(*part) for part in parts]).dice_curve(),
        rounds,
    )
    back = _median([_seconds(lambda: (total + each[3]).dice_curve()) for _ in range(rounds)])
    return {"ratio": again / toggle, "remove_ms": toggle * 1e3, "add_ms": back * 1e3, "target_ms": 1.0}


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

    seconds, reference = _interleaved(ours, theirs, rounds)
    return {
        "ratio": reference / seconds,
        "target": 10,
        "ms": seconds * 1e3,
        "scipy_ms": reference * 1e3,
        "largest_relative_difference": float(np.abs(ours() / theirs() - 1).max()),
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


def _exact_best(scores: np.ndarray, lesion: np.ndarray) -> tuple[float, float | None]:
    curve = exact_curve(scores[lesion], scores[~lesion])
    return curve.best_dice, curve.best_threshold


def _dice(scores: np.ndarray, lesion: np.ndarray, threshold: float) -> float:
    called = scores >= threshold
    return 2 * int(np.count_nonzero(called & lesion)) / (int(np.count_nonzero(called)) + int(np.count_nonzero(lesion)))


def _interleaved(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of both; ours runs before and after theirs in every round, so that drift hits both."""
    ours()
    first, second = [], []
    for _ in range(rounds):
        first.append(_seconds(ours))
        second.append(_seconds(theirs))
        first.append(_seconds(ours))
    return _median(first), _median(second)


def _seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def _median(seconds: list[float]) -> float:
    return statistics.median(seconds)


def main() -> None:
    """Run everything and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--voxels", type=int, default=50_000_000, help="voxels of the two large comparisons")
    voxels = parser.parse_args().voxels
    torch.set_num_threads(1)
    with threadpool_limits(1):
        results = {
            "upsample_blur_vs_scipy": upsample_blur_vs_scipy(),
            "subject_toggle_ms": subject_toggle_ms(),
            "threshold_curves_vs_sklearn": threshold_curves_vs_sklearn(voxels),
            "all_metrics_exact_vs_sklearn": all_metrics_exact_vs_sklearn(voxels),
        }
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
