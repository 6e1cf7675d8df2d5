"""How good score maps are, given the labels: exact curves, Dice under named threshold rules, intervals over subjects.

This module sees lesion labels. Voxels outside the scored brain are left out of AUPRC and AUROC, and lesion voxels
there count as missed in every Dice. Healthy scans have no Dice; they have false positives.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from core.metrics.bootstrap import mean_interval
from core.metrics.exact_curve import ExactCurve, all_positive_dice, exact_curve
from core.metrics.healthy_threshold import threshold_at_quantile
from core.metrics.protocols import ThresholdProtocols, ThresholdRule
from core.metrics.subject_scores import SubjectScores, pooled_dice_at
from data.errors import BadInput


def evaluate(
    test: Sequence[SubjectScores], protocols: ThresholdProtocols, *, n_bootstrap: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Everything that a table of results needs, ready for JSON (None where undefined).

    `protocols` holds each rule with mean Dice and interval (the headline), pooled Dice, the false positives of
    healthy scans, and one row per subject. `ceil_dice` is ⌈Dice⌉ of the threshold papers: pooled, with an oracle cut.
    """
    bearing = [s for s in test if s.n_lesion]
    healthy = [s for s in test if s.healthy]
    if not bearing:
        raise BadInput("No test subject has a lesion: Dice is undefined. Add labelled subjects to the test split.")
    curves = {
        s.subject_id: exact_curve(s.anomalous, s.normal, unreachable=s.lesion_unreachable_voxels) for s in bearing
    }
    rules = [r for r in (protocols.healthy, protocols.validation, protocols.oracle_set) if r is not None]
    results = {r.name: _judge(r, bearing, healthy, n_bootstrap, seed) for r in rules}
    results["oracle_subject"] = _judge_own(bearing, curves, n_bootstrap, seed)
    return {
        "n_lesion_subjects": len(bearing),
        "n_healthy_subjects": len(healthy),
        "unreachable_lesion_voxels": sum(s.lesion_unreachable_voxels for s in bearing),
        "protocols": results,
        "selection_optimism": _optimism(results),
        "ceil_dice": {
            **asdict(protocols.oracle_pooled),
            "dice": pooled_dice_at(bearing, protocols.oracle_pooled.threshold),
        },
        "pooled": _pooled_figures(bearing),
        "per_subject_auprc": {
            **asdict(
                mean_interval([c.auprc for c in curves.values()], seed=seed, n_resamples=n_bootstrap, purpose="auprc")
            ),
            "subjects": {i: {**asdict(c), "prevalence": c.prevalence} for i, c in curves.items()},
        },
        "oracle_dice_at_5pct_fpr": _dice_at_false_positive_rate(bearing, 0.05),
        "notes": _notes(test, bearing),
    }


def _judge(
    rule: ThresholdRule, bearing: Sequence[SubjectScores], healthy: Sequence[SubjectScores], n_bootstrap: int, seed: int
) -> dict[str, Any]:
    alarms = [s.counts(rule.threshold)[1] * s.voxel_ml for s in healthy]
    rows = [_row(s, rule.threshold) for s in bearing]
    return {
        **asdict(rule),
        **_mean_dice(rows, n_bootstrap, seed),
        "pooled_dice": pooled_dice_at(bearing, rule.threshold),
        "false_positive_ml_per_healthy_scan": float(np.mean(alarms)) if alarms else None,
        "false_positive_ml_by_healthy_scan": {s.subject_id: ml for s, ml in zip(healthy, alarms, strict=True)},
        "healthy_scans_without_false_positive": float(np.mean([a == 0 for a in alarms])) if alarms else None,
        "subjects": rows,
    }


def _judge_own(
    bearing: Sequence[SubjectScores], curves: dict[str, ExactCurve], n_bootstrap: int, seed: int
) -> dict[str, Any]:
    """Every subject at its own best threshold: a diagnostic, never a result."""
    own = [curves[s.subject_id].best_threshold for s in bearing]
    rows = [_row(s, np.inf if t is None else t) for s, t in zip(bearing, own, strict=True)]
    return {
        "name": "oracle_subject",
        "threshold": None,
        "rule": "highest Dice of each test subject by itself",
        "needs_labels": True,
        "oracle": True,
        **_mean_dice(rows, n_bootstrap, seed),
        "pooled_dice": None,
        "false_positive_ml_per_healthy_scan": None,
        "false_positive_ml_by_healthy_scan": {},
        "healthy_scans_without_false_positive": None,
        "subjects": rows,
    }


def _mean_dice(rows: Sequence[dict[str, Any]], n_bootstrap: int, seed: int) -> dict[str, Any]:
    interval = mean_interval([r["dice"] for r in rows], seed=seed, n_resamples=n_bootstrap, purpose="dice")
    return {"mean_dice": interval.mean, "ci_low": interval.low, "ci_high": interval.high, "n": interval.n}


def _row(subject: SubjectScores, threshold: float) -> dict[str, Any]:
    hits, alarms, missed = subject.counts(threshold)
    return {
        "subject_id": subject.subject_id,
        "threshold": float(threshold) if np.isfinite(threshold) else None,
        "dice": 2.0 * hits / (2 * hits + alarms + missed),
        "precision": hits / (hits + alarms) if hits + alarms else None,
        "recall": hits / (hits + missed),
        "true_positive_voxels": hits,
        "false_positive_voxels": alarms,
        "missed_voxels": missed,
        "lesion_ml": subject.n_lesion * subject.voxel_ml,
        "segmented_ml": (hits + alarms) * subject.voxel_ml,
    }


def _optimism(results: dict[str, Any]) -> float | None:
    """What choosing the threshold on the test labels would add: oracle_set − validation."""
    if "validation" not in results:
        return None
    return float(results["oracle_set"]["mean_dice"] - results["validation"]["mean_dice"])


def _notes(test: Sequence[SubjectScores], bearing: Sequence[SubjectScores]) -> list[str]:
    """What a reader of the table must know, in words."""
    notes = []
    if len(bearing) < 50:
        notes.append(f"Intervals rest on {len(bearing)} subjects with lesions; below 50 they are rough.")
    if not any(len(s.anomalous) for s in bearing):
        notes.append(
            "Every lesion voxel of the test subjects lies outside the scored brain: Dice is 0 at any threshold. Check "
            "the masks, and how the scans were registered."
        )
    for s in bearing:
        if s.lesion_unreachable_voxels > 0.5 * s.n_lesion:
            notes.append(f"{s.subject_id}: more than half of the lesion lies outside the scored brain. Check grids.")
        if s.n_lesion > 0.5 * (s.n_lesion + len(s.normal)):
            notes.append(f"{s.subject_id}: the lesion fills more than half of the brain. Check the mask's labels.")
    unclear = [s.subject_id for s in test if not s.healthy and not s.n_lesion]
    if unclear:
        notes.append(f"Neither healthy nor with a lesion voxel, left out: {', '.join(unclear)}.")
    return notes


def _pooled_figures(bearing: Sequence[SubjectScores]) -> dict[str, Any]:
    curve = exact_curve(
        np.concatenate([s.anomalous for s in bearing]),
        np.concatenate([s.normal for s in bearing]),
        unreachable=sum(s.lesion_unreachable_voxels for s in bearing),
    )
    return {
        "auprc": curve.auprc,
        "prevalence": curve.prevalence,
        "lift": curve.auprc / _scored_prevalence(bearing),
        "auroc": curve.auroc,
        "fpr95": curve.fpr95,
        "all_positive_dice": all_positive_dice(curve.prevalence),
        "n_lesion_voxels": curve.n_positive,
        "n_normal_voxels": curve.n_negative,
    }


def _scored_prevalence(bearing: Sequence[SubjectScores]) -> float:
    """Share of lesion voxels among scored ones: what a random score's average precision would be."""
    lesion = sum(len(s.anomalous) for s in bearing)
    return max(lesion, 1) / max(lesion + sum(len(s.normal) for s in bearing), 1)


def _dice_at_false_positive_rate(bearing: Sequence[SubjectScores], rate: float) -> dict[str, Any]:
    """Dice where a share `rate` of the normal voxels is called lesion: the rule of the FAE paper."""
    if not any(len(s.normal) for s in bearing):
        return {"threshold": None, "mean_dice": None, "pooled_dice": None, "needs_labels": True, "oracle": True}
    cut = threshold_at_quantile([s.normal for s in bearing], 1 - rate)
    rows = [_row(s, cut)["dice"] for s in bearing]
    return {
        "threshold": cut,
        "mean_dice": float(np.mean(rows)),
        "pooled_dice": pooled_dice_at(bearing, cut),
        "needs_labels": True,
        "oracle": True,
    }
