"""Where a threshold comes from: healthy scans, labelled validation scans, or an oracle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from core.metrics.healthy_threshold import QUANTILE, threshold_at_fp_ml, threshold_at_quantile
from core.metrics.score_histogram import N_BINS, ScoreHistogram, edges
from core.metrics.subject_scores import SubjectScores, lesion_scores_in
from data.errors import BadInput


@dataclass(frozen=True)
class ThresholdRule:
    """A threshold, and what had to be known to choose it."""

    name: str
    threshold: float
    rule: str
    needs_labels: bool
    oracle: bool
    """Chosen on the labels of the very subjects that are judged: an upper bound, not a result."""


@dataclass(frozen=True)
class ThresholdProtocols:
    """One threshold per rule; `healthy` is None without calibration subjects, `validation` without labelled ones."""

    healthy: ThresholdRule | None
    validation: ThresholdRule | None
    oracle_set: ThresholdRule
    oracle_pooled: ThresholdRule


def best_common_threshold(subjects: Sequence[SubjectScores], *, pooled: bool = False) -> tuple[float, float]:
    """The one threshold with the highest mean Dice over lesion-bearing subjects (or pooled Dice), and that Dice.

    Exact over all cut points: histogram bins whose upper bound cannot beat the best bin edge are discarded, and in
    the others every lesion score is tried (between two of them a higher cut only loses false positives).
    """
    bearing = [s for s in subjects if s.n_lesion]
    if not any(len(s.anomalous) for s in bearing):
        raise BadInput("No scored lesion voxel in any subject: no threshold can be chosen. Check masks and grids.")
    histograms = [s.histogram() for s in bearing]
    at_edges, bound = _dice_and_bound(histograms, pooled)
    best = int(at_edges.argmax())
    winner = (float(edges()[best]), float(at_edges[best]))
    candidates = lesion_scores_in(bearing, np.flatnonzero(bound > at_edges[best]))
    if len(candidates):
        exact = _dice_at_many(bearing, candidates, pooled)
        place = int(exact.argmax())
        if exact[place] > winner[1]:
            winner = (float(candidates[place]), float(exact[place]))
    return winner


def thresholds(
    validation: Sequence[SubjectScores],
    calibration: Sequence[SubjectScores],
    test: Sequence[SubjectScores],
    *,
    quantile: float = QUANTILE,
    fp_ml_per_scan: float | None = None,
) -> ThresholdProtocols:
    """A threshold by every rule. `healthy` sees calibration scores only, `validation` validation labels only."""
    chosen = validation_rule(validation)
    within_reach = any(len(s.anomalous) for s in test)
    oracle = best_common_threshold(test)[0] if within_reach else _above_all(test)
    pooled_oracle = best_common_threshold(test, pooled=True)[0] if within_reach else oracle
    nothing = (
        "" if within_reach else "; no lesion voxel is scored, so any has Dice 0, and this one calls nothing lesion"
    )
    return ThresholdProtocols(
        healthy_rule(calibration, quantile=quantile, fp_ml_per_scan=fp_ml_per_scan) if calibration else None,
        chosen,
        ThresholdRule(
            "oracle_set",
            oracle,
            f"highest mean Dice over the test subjects themselves{nothing}",
            needs_labels=True,
            oracle=True,
        ),
        ThresholdRule(
            "oracle_pooled",
            pooled_oracle,
            f"highest Dice over the voxels of all lesion-bearing test subjects pooled{nothing}",
            needs_labels=True,
            oracle=True,
        ),
    )


def _above_all(subjects: Sequence[SubjectScores]) -> float:
    """The least threshold that no normal voxel reaches."""
    highest = max((float(s.normal.max()) for s in subjects if len(s.normal)), default=0.0)
    return float(np.nextafter(np.float32(highest), np.float32(np.inf)))


def validation_rule(validation: Sequence[SubjectScores]) -> ThresholdRule | None:
    """The threshold with the best mean Dice on labelled validation subjects; None without a scored lesion voxel."""
    if not any(len(s.anomalous) for s in validation):
        return None
    value, rule = best_common_threshold(validation)[0], "highest mean Dice over labelled validation subjects"
    return ThresholdRule("validation", value, rule, needs_labels=True, oracle=False)


def first_protocol(protocols: Mapping[str, Any]) -> str:
    """The protocol to tell of first: the label-free one, which a run without calibration scans lacks, then the next."""
    return next(name for name in ("healthy", "validation", "oracle_set") if name in protocols)


def judged(figures: Mapping[str, Any]) -> Mapping[str, Any]:
    """What figures say under their first protocol, whose rows name every test subject that is judged."""
    protocols: Mapping[str, Any] = figures["protocols"]
    found: Mapping[str, Any] = protocols[first_protocol(protocols)]
    return found


def healthy_rule(
    calibration: Sequence[SubjectScores], *, quantile: float = QUANTILE, fp_ml_per_scan: float | None = None
) -> ThresholdRule:
    """The label-free threshold: a quantile of healthy voxels, or a false-positive volume when one is given."""
    ill = [s.subject_id for s in calibration if s.n_lesion]
    if ill:
        raise BadInput(f"Calibration holds subjects with lesions: {', '.join(ill[:5])}. Give healthy ones only.")
    scores = [s.normal for s in calibration]
    if fp_ml_per_scan is None:
        value, rule = threshold_at_quantile(scores, quantile), f"quantile {quantile:g} of healthy calibration voxels"
    else:
        value = threshold_at_fp_ml(scores, [s.voxel_ml for s in calibration], fp_ml_per_scan)
        rule = f"at most {fp_ml_per_scan:g} mL above it per healthy calibration scan"
    return ThresholdRule("healthy", value, rule, needs_labels=False, oracle=False)


def _dice_and_bound(histograms: Sequence[ScoreHistogram], pooled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Dice at every bin edge, and an upper bound of Dice at every cut inside the bin above that edge."""
    counts = [(h.true_positives(), h.false_positives(), h.n_lesion) for h in histograms]
    if pooled:
        counts = [
            (np.sum([c[0] for c in counts], axis=0), np.sum([c[1] for c in counts], axis=0), sum(c[2] for c in counts))
        ]
    dice, bound = np.zeros(N_BINS), np.zeros(N_BINS)
    for hits, alarms, lesion in counts:
        dice += 2.0 * hits / (hits + alarms + lesion)
        bound += 2.0 * hits / (hits + np.append(alarms[1:], 0) + lesion)
    return dice / len(counts), bound / len(counts)


def _dice_at_many(
    bearing: Sequence[SubjectScores], cuts: Float32[np.ndarray, " cuts"], pooled: bool
) -> Float64[np.ndarray, " cuts"]:
    hits_all, sums_all, total = np.zeros(len(cuts)), np.zeros(len(cuts)), np.zeros(len(cuts))
    for subject in bearing:
        hits = _reaching(subject.anomalous, cuts)
        sums = hits + _reaching(subject.normal, cuts) + subject.n_lesion
        hits_all, sums_all, total = hits_all + hits, sums_all + sums, total + 2.0 * hits / sums
    return 2.0 * hits_all / sums_all if pooled else total / len(bearing)


def _reaching(scores: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """How many scores are at least each cut; only scores between the extreme cuts are sorted."""
    between = np.sort(scores[(scores >= cuts[0]) & (scores < cuts[-1])])
    above = int(np.count_nonzero(scores >= cuts[-1]))
    counts: np.ndarray = above + len(between) - np.searchsorted(between, cuts, side="left")
    return counts
