"""How good score maps are, given the labels: exact curves, Dice under named threshold rules, intervals over subjects.

This module sees lesion labels. Voxels outside the scored brain are left out of AUPRC and AUROC, and lesion voxels
there count as missed in every Dice. Healthy scans have no Dice; they have false positives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from core.bootstrap import mean_interval
from core.calibration import QUANTILE, threshold_at_fp_ml, threshold_at_quantile
from core.curves import N_BINS, ScoreHistogram, edges
from core.types import ScoreMap
from data.errors import BadInput
from data.volume import Mask


@dataclass(frozen=True, eq=False)
class SubjectScores:
    """Scores of one subject inside the brain, normal and anomalous voxels apart."""

    subject_id: str
    healthy: bool
    normal: Float32[np.ndarray, " normal"]
    anomalous: Float32[np.ndarray, " anomalous"]
    voxel_ml: float
    lesion_unreachable_voxels: int = 0
    """Lesion voxels outside the scored brain; they count as missed."""

    def __post_init__(self) -> None:
        for name in ("normal", "anomalous"):
            object.__setattr__(self, name, _finite(getattr(self, name), f"{name} scores of {self.subject_id!r}"))
        if self.healthy and self.n_lesion:
            raise BadInput(f"Subject {self.subject_id!r} is called healthy and has {self.n_lesion} lesion voxels.")

    @property
    def n_lesion(self) -> int:
        """Lesion voxels, unreachable ones included."""
        return len(self.anomalous) + self.lesion_unreachable_voxels

    def histogram(self) -> ScoreHistogram:
        """Its mergeable histogram."""
        return ScoreHistogram.of_classes(self.normal, self.anomalous, self.lesion_unreachable_voxels)

    def counts(self, threshold: float) -> tuple[int, int, int]:
        """True positives, false positives and missed lesion voxels of `score >= threshold`."""
        hits = int(np.count_nonzero(self.anomalous >= threshold))
        return hits, int(np.count_nonzero(self.normal >= threshold)), self.n_lesion - hits


@dataclass(frozen=True)
class ExactCurve:
    """Figures of one set of voxels, exact over every cut point. None where undefined."""

    auprc: float
    auroc: float | None
    best_dice: float
    best_threshold: float | None
    """Dice is highest for score ≥ this; None when nothing was scored."""
    fpr95: float | None
    """Lowest false-positive rate at which at least 95 % of the scored lesion voxels are found."""
    n_positive: int
    n_negative: int

    @property
    def prevalence(self) -> float:
        """Share of lesion voxels: the AUPRC of a random score."""
        return self.n_positive / (self.n_positive + self.n_negative)


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


def subject_scores(score_map: ScoreMap, lesion: Mask | None, *, healthy: bool) -> SubjectScores:
    """Split a score map by its lesion mask. `lesion` may be None for a healthy subject only."""
    if lesion is None and not healthy:
        raise BadInput(f"Subject {score_map.subject_id!r} is not healthy and has no lesion mask. Leave it out of Dice.")
    if lesion is not None and not lesion.grid.matches(score_map.grid):
        raise BadInput(
            f"Score map and lesion mask of {score_map.subject_id!r} are on different grids "
            f"({score_map.grid.shape} and {lesion.grid.shape}). Resample the score map onto lesion.grid first."
        )
    marked = np.zeros(score_map.grid.shape, dtype=bool) if lesion is None else lesion.voxels
    scored = np.isfinite(score_map.scores)
    return SubjectScores(
        score_map.subject_id,
        healthy,
        score_map.scores[scored & ~marked],
        score_map.scores[scored & marked],
        score_map.grid.voxel_volume_mm3 / 1000,
        int(np.count_nonzero(marked & ~scored)),
    )


def exact_curve(
    positives: Float32[np.ndarray, " positives"], negatives: Float32[np.ndarray, " negatives"], *, unreachable: int = 0
) -> ExactCurve:
    """Every threshold-free figure by sorting lesion and normal scores apart. Ties are handled as in scikit-learn.

    AUPRC is average precision, Σ (Rₖ − Rₖ₋₁) Pₖ. AUPRC, AUROC and FPR95 are over scored voxels; `unreachable` lesion
    voxels enter Dice as missed. BadInput without a lesion voxel, or when a score is not finite.
    """
    p = np.sort(_finite(positives, "lesion scores"))
    n = np.sort(_finite(negatives, "normal scores"))
    if len(p) + unreachable == 0:
        raise BadInput("No lesion voxel: AUPRC and Dice are undefined. Report false positives instead.")
    if len(p) == 0:
        return ExactCurve(0.0, None, 0.0, None, None, unreachable, len(n))
    cuts, counts = np.unique(p, return_counts=True)
    hits = np.cumsum(counts[::-1])[::-1]
    left = np.searchsorted(n, cuts, side="left")
    alarms = len(n) - left
    dice = 2.0 * hits / (hits + alarms + len(p) + unreachable)
    best = int(dice.argmax())
    enough = np.flatnonzero(hits >= 0.95 * len(p))[-1]
    return ExactCurve(
        auprc=float((counts * (hits / (hits + alarms))).sum() / len(p)),
        auroc=_auroc(n, cuts, counts, left),
        best_dice=float(dice[best]),
        best_threshold=float(cuts[best]),
        fpr95=float(alarms[enough] / len(n)) if len(n) else None,
        n_positive=len(p) + unreachable,
        n_negative=len(n),
    )


def average_precision(positives: Float32[np.ndarray, " p"], negatives: Float32[np.ndarray, " n"]) -> float:
    """Average precision of `exact_curve`."""
    return exact_curve(positives, negatives).auprc


def auroc(positives: Float32[np.ndarray, " p"], negatives: Float32[np.ndarray, " n"]) -> float | None:
    """Probability that a lesion voxel outscores a normal one, ties counting half; None without normal voxels."""
    return exact_curve(positives, negatives).auroc


def best_dice(positives: Float32[np.ndarray, " p"], negatives: Float32[np.ndarray, " n"]) -> tuple[float, float | None]:
    """Highest Dice over all cut points, and its threshold."""
    curve = exact_curve(positives, negatives)
    return curve.best_dice, curve.best_threshold


def dice_at(subject: SubjectScores, threshold: float) -> float | None:
    """Dice of `score >= threshold`; None for a subject without lesion."""
    hits, alarms, missed = subject.counts(threshold)
    return 2.0 * hits / (2 * hits + alarms + missed) if subject.n_lesion else None


def pooled_dice_at(subjects: Sequence[SubjectScores], threshold: float) -> float | None:
    """Dice of all lesion-bearing subjects as one: weighs each by |segmentation| + |lesion|."""
    counts = [s.counts(threshold) for s in subjects if s.n_lesion]
    hits, alarms, missed = (sum(c[i] for c in counts) for i in range(3))
    return 2.0 * hits / (2 * hits + alarms + missed) if counts else None


def dice_from_rates(prevalence: float, tpr: float, fpr: float) -> float:
    """Dice at a prevalence π and rates T, F: 2πT / (π(1+T) + (1−π)F)."""
    return 2 * prevalence * tpr / (prevalence * (1 + tpr) + (1 - prevalence) * fpr)


def fpr_for_dice_half(prevalence: float, tpr: float) -> float:
    """False-positive rate at which Dice is exactly one half: π(3T−1)/(1−π); negative when T < 1/3 rules it out."""
    return prevalence * (3 * tpr - 1) / (1 - prevalence)


def all_positive_dice(prevalence: float) -> float:
    """Dice of calling every voxel lesion: 2π/(1+π)."""
    return 2 * prevalence / (1 + prevalence)


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
    candidates = _lesion_scores_in(bearing, np.flatnonzero(bound > at_edges[best]))
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


def _lesion_scores_in(bearing: Sequence[SubjectScores], bins: np.ndarray) -> np.ndarray:
    if len(bins) == 0:
        return np.empty(0, dtype=np.float32)
    keep = np.zeros(N_BINS, dtype=bool)
    keep[bins] = True
    cuts = edges()
    scores = np.concatenate([s.anomalous for s in bearing])
    return np.unique(scores[keep[np.searchsorted(cuts, scores, side="right") - 1]])


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


def _auroc(n: np.ndarray, cuts: np.ndarray, counts: np.ndarray, left: np.ndarray) -> float | None:
    if len(n) == 0:
        return None
    right = np.searchsorted(n, cuts, side="right")
    return float((counts * (left + right)).sum() / (2.0 * counts.sum() * len(n)))


def _finite(scores: np.ndarray, what: str) -> np.ndarray:
    values = np.asarray(scores, dtype=np.float32)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise BadInput(f"{what[0].upper()}{what[1:]} are not one list of finite numbers. Mask the brain first.")
    return values
