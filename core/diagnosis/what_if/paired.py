"""Dice before and after a change, subject by subject, each side at thresholds found on its own maps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from core.metrics.bootstrap import paired_difference
from core.metrics.healthy_threshold import QUANTILE
from core.metrics.protocols import best_common_threshold, healthy_rule
from core.metrics.subject_scores import SubjectScores, dice_at
from core.study.cases import Case
from data.errors import BadInput

Thresholds = Mapping[str, float | None]
"""Per protocol; None where it cannot be had."""
Scored = Mapping[str, Sequence[SubjectScores]]
"""Voxels of the subjects of "calibration", "validation" and "test", in one order."""

PROTOCOLS = ("healthy", "validation")
ROLES = ("calibration", "validation", "test")
N_BOOTSTRAP = 10_000
LINEAR_STEPS = 100


def paired_evaluation(
    before: Mapping[str, Sequence[Case | SubjectScores]],
    after: Mapping[str, Sequence[Case | SubjectScores]],
    *,
    quantile: float = QUANTILE,
    fp_ml_per_scan: float | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> dict[str, Any]:
    """Dice before and after a change, in pairs, each side at thresholds from its own maps. Needs no run.

    Both mappings hold "calibration", "validation" and "test", the same subjects in the same order. Returns
    `thresholds`, `validation` (threshold re-chosen on validation), `validation_by_protocol` and `test`. Subjects
    that have no lesion voxel on one side are left out of both.
    """
    first, second = _scored(before), _scored(after)
    cuts = [thresholds_of(side, quantile=quantile, fp_ml_per_scan=fp_ml_per_scan) for side in (first, second)]
    return paired_at(first, second, cuts[0], cuts[1], n_bootstrap=n_bootstrap, seed=seed)


def thresholds_of(
    scored: Scored, *, quantile: float = QUANTILE, fp_ml_per_scan: float | None = None
) -> dict[str, float | None]:
    """The threshold of each protocol; test subjects are not looked at. None for validation without lesion voxels."""
    labelled = any(len(s.anomalous) for s in scored["validation"])
    return {
        "healthy": healthy_rule(scored["calibration"], quantile=quantile, fp_ml_per_scan=fp_ml_per_scan).threshold,
        "validation": best_common_threshold(scored["validation"])[0] if labelled else None,
    }


def paired_at(
    before: Scored,
    after: Scored,
    cuts_before: Thresholds,
    cuts_after: Thresholds,
    *,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> dict[str, Any]:
    """`paired_evaluation` at given thresholds."""
    for role in ROLES:
        if [s.subject_id for s in before[role]] != [s.subject_id for s in after[role]]:
            raise BadInput(f"The {role} subjects before and after differ. Give the same ones in the same order.")
    validation: dict[str, Any] = {}
    test: dict[str, Any] = {}
    for protocol in PROTOCOLS:
        first, second = cuts_before[protocol], cuts_after[protocol]
        if first is None or second is None:
            validation[protocol] = test[protocol] = None
            continue
        pairs = dice_pairs(before["validation"], after["validation"], first, second)
        validation[protocol] = difference(pairs, n_bootstrap, seed) if pairs else None
        pairs = dice_pairs(before["test"], after["test"], first, second)
        test[protocol] = {
            **difference(pairs, n_bootstrap, seed),
            "false_ml_before": _false_ml(before["test"], first),
            "false_ml_after": _false_ml(after["test"], second),
            "subjects": [{"subject_id": i, "before": a, "after": b} for i, (a, b) in pairs.items()],
        }
    return {
        "thresholds": {p: {"before": cuts_before[p], "after": cuts_after[p]} for p in PROTOCOLS},
        "validation": validation["validation"],
        "validation_by_protocol": validation,
        "test": test,
    }


def dice_pairs(
    before: Sequence[SubjectScores], after: Sequence[SubjectScores], first: float, second: float
) -> dict[str, tuple[float, float]]:
    """Dice before and after, each at its threshold, of the subjects that have a lesion on both sides."""
    pairs = {}
    for a, b in zip(before, after, strict=True):
        had, has = dice_at(a, first), dice_at(b, second)
        if had is not None and has is not None:
            pairs[a.subject_id] = (had, has)
    return pairs


def difference(pairs: Mapping[str, tuple[float, float]], n_bootstrap: int, seed: int) -> dict[str, Any]:
    """Mean paired difference with its interval."""
    had, has = [a for a, _ in pairs.values()], [b for _, b in pairs.values()]
    gain = paired_difference(has, had, seed=seed, n_resamples=n_bootstrap)
    return {
        "baseline": float(np.mean(had)) if had else None,
        "variant": float(np.mean(has)) if has else None,
        "gain": gain.mean,
        "low": gain.low,
        "high": gain.high,
        "n": gain.n,
    }


def linear_thresholds(scored: Scored, exact: Thresholds, steps: int = LINEAR_STEPS) -> dict[str, float | None]:
    """What each protocol would choose if only `steps` equal steps between lowest and highest score were tried.

    Healthy: the lowest step that keeps the promise of the exact threshold, or that threshold when none does.
    """
    assert exact["healthy"] is not None
    cuts = _linear_cuts(scored["calibration"], steps)
    keeping = cuts[cuts >= np.float32(exact["healthy"])]
    healthy = float(keeping[0]) if len(keeping) else exact["healthy"]
    labelled = exact["validation"] is not None
    return {
        "healthy": healthy,
        "validation": best_of_linear_grid(scored["validation"], steps)[0] if labelled else None,
    }


def best_of_linear_grid(subjects: Sequence[SubjectScores], steps: int = LINEAR_STEPS) -> tuple[float, float]:
    """(threshold, mean Dice) of the best of `steps` equal steps between lowest and highest score."""
    bearing = [s for s in subjects if s.n_lesion]
    cuts = _linear_cuts(bearing, steps)
    total = np.zeros(len(cuts))
    for subject in bearing:
        hits, alarms = (_reaching(values, cuts) for values in (subject.anomalous, subject.normal))
        total += 2.0 * hits / (hits + alarms + subject.n_lesion)
    best = int(total.argmax())
    return float(cuts[best]), float(total[best] / len(bearing))


def _linear_cuts(subjects: Sequence[SubjectScores], steps: int) -> Float32[np.ndarray, " steps"]:
    values = [part for s in subjects for part in (s.normal, s.anomalous) if len(part)]
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    return np.linspace(low, high, steps).astype(np.float32)


def _reaching(scores: Float32[np.ndarray, " voxels"], cuts: Float32[np.ndarray, " cuts"]) -> np.ndarray:
    passed = np.bincount(np.searchsorted(cuts, scores, side="right"), minlength=len(cuts) + 1)
    counts: np.ndarray = len(scores) - np.cumsum(passed)[:-1]
    return counts


def _scored(sides: Mapping[str, Sequence[Case | SubjectScores]]) -> dict[str, list[SubjectScores]]:
    return {role: [one.voxels if isinstance(one, Case) else one for one in sides[role]] for role in ROLES}


def _false_ml(subjects: Sequence[SubjectScores], cut: float) -> float | None:
    """Mean volume at or above the threshold in healthy scans, mL."""
    volumes = [s.counts(cut)[1] * s.voxel_ml for s in subjects if s.healthy]
    return float(np.mean(volumes)) if volumes else None
