"""Scores of normal and anomalous voxels side by side: bins to draw, counts at a threshold, the two-density decision."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from core.metrics.bootstrap import Interval, mean_interval
from core.metrics.exact_curve import dice_from_rates
from core.metrics.subject_scores import SubjectScores, dice_at
from core.metrics.two_densities import Kind, TwoDensities
from data.errors import BadInput


@dataclass(frozen=True, eq=False)
class ScoreBins:
    """Voxel counts per score bin; `edges` has one more entry than the counts."""

    edges: Float64[np.ndarray, " edges"]
    normal: Int64[np.ndarray, " bins"]
    anomalous: Int64[np.ndarray, " bins"]


def score_bins(subjects: Sequence[SubjectScores], n_bins: int = 160, *, logarithmic: bool) -> ScoreBins:
    """Counts over the central 99.99 % of the scores, in equal steps of the score or of its logarithm.

    What lies beyond is counted in the end bins, so nothing is dropped.
    """
    normal = np.concatenate([s.normal for s in subjects])
    anomalous = np.concatenate([s.anomalous for s in subjects])
    everything = np.concatenate([normal, anomalous])
    if everything.size == 0:
        raise BadInput("No scored voxel in these subjects. Pick others.")
    low, high = (float(q) for q in np.quantile(everything, [5e-5, 1 - 5e-5]))
    high = max(high, low + 1e-6)
    if logarithmic:
        low = max(low, high * 1e-4, 1e-6)
        edges = np.geomspace(low, max(high, low * 1.01), n_bins + 1)
    else:
        edges = np.linspace(low, high, n_bins + 1)
    return ScoreBins(
        edges,
        np.histogram(np.clip(normal, edges[0], edges[-1]), edges)[0],
        np.histogram(np.clip(anomalous, edges[0], edges[-1]), edges)[0],
    )


@dataclass(frozen=True)
class Confusion:
    """What a threshold does to a set of subjects; lesion voxels that were never scored are misses."""

    true_positives: int
    false_positives: int
    misses: int
    true_negatives: int
    pooled_dice: float | None
    mean_dice: Interval
    """Over lesion-bearing subjects."""

    @property
    def tpr(self) -> float | None:
        """Share of lesion voxels that are found."""
        lesion = self.true_positives + self.misses
        return self.true_positives / lesion if lesion else None

    @property
    def fpr(self) -> float | None:
        """Share of normal voxels that are called lesion."""
        normal = self.false_positives + self.true_negatives
        return self.false_positives / normal if normal else None

    @property
    def prevalence(self) -> float:
        """Share of lesion voxels among all."""
        lesion = self.true_positives + self.misses
        return lesion / max(lesion + self.false_positives + self.true_negatives, 1)


def confusion(subjects: Sequence[SubjectScores], threshold: float) -> Confusion:
    """Counts of `score >= threshold` over all voxels, and Dice pooled and per lesion-bearing subject."""
    counts = np.array([s.counts(threshold) for s in subjects], dtype=np.int64).reshape(-1, 3)
    dice = [d for d in (dice_at(s, threshold) for s in subjects) if d is not None]
    return _confusion(counts, sum(len(s.normal) for s in subjects), dice)


def fit_densities(subjects: Sequence[SubjectScores], kind: Kind, prior: float | None) -> TwoDensities:
    """Densities of normal and anomalous voxels pooled over labelled subjects.

    An ill subject without a mask is left out: its lesions would count as normal tissue.
    """
    known = [s for s in subjects if s.healthy or s.n_lesion]
    if not any(len(s.anomalous) for s in known):
        raise BadInput("No labelled lesion voxel to fit a density on. Add validation subjects with lesion masks.")
    return TwoDensities.fit(
        np.concatenate([s.normal for s in known]), np.concatenate([s.anomalous for s in known]), kind, prior
    )


def two_density_confusion(subjects: Sequence[SubjectScores], densities: TwoDensities) -> Confusion:
    """The same for the likelihood-ratio decision, which may cut at several scores or nowhere."""
    counts, dice = [], []
    for subject in subjects:
        hits = int(np.count_nonzero(densities.classify(subject.anomalous)))
        alarms = int(np.count_nonzero(densities.classify(subject.normal)))
        counts.append((hits, alarms, subject.n_lesion - hits))
        if subject.n_lesion:
            dice.append(2.0 * hits / (hits + alarms + subject.n_lesion))
    normal = sum(len(s.normal) for s in subjects)
    return _confusion(np.array(counts, dtype=np.int64).reshape(-1, 3), normal, dice)


def dice_over_prevalences(
    found: Confusion, n: int = 120
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Prevalences from 0.01 % to 30 %, and the pooled Dice that the same rates would give there."""
    if found.tpr is None or found.fpr is None:
        raise BadInput("Without lesion and normal voxels there are no rates. Pick lesion-bearing subjects.")
    prevalence = np.geomspace(1e-4, 0.3, n)
    return prevalence, np.array([dice_from_rates(float(p), found.tpr, found.fpr) for p in prevalence])


def _confusion(counts: Int64[np.ndarray, "subjects 3"], normal: int, dice: Sequence[float]) -> Confusion:
    hits, alarms, misses = (int(c) for c in counts.sum(axis=0))
    return Confusion(
        hits,
        alarms,
        misses,
        normal - alarms,
        2.0 * hits / (2 * hits + alarms + misses) if hits + misses else None,
        mean_interval(list(dice), seed=0, n_resamples=2000),
    )
