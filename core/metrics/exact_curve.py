"""Precision, recall and Dice at every threshold, exactly: AUPRC, AUROC and the best Dice."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from core.metrics.subject_scores import finite_scores
from data.errors import BadInput


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


def exact_curve(
    positives: Float32[np.ndarray, " positives"], negatives: Float32[np.ndarray, " negatives"], *, unreachable: int = 0
) -> ExactCurve:
    """Every threshold-free figure by sorting lesion and normal scores apart. Ties are handled as in scikit-learn.

    AUPRC is average precision, Σ (Rₖ − Rₖ₋₁) Pₖ. AUPRC, AUROC and FPR95 are over scored voxels; `unreachable` lesion
    voxels enter Dice as missed. BadInput without a lesion voxel, or when a score is not finite.
    """
    p = np.sort(finite_scores(positives, "lesion scores"))
    n = np.sort(finite_scores(negatives, "normal scores"))
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


def dice_from_rates(prevalence: float, tpr: float, fpr: float) -> float:
    """Dice at a prevalence π and rates T, F: 2πT / (π(1+T) + (1−π)F)."""
    return 2 * prevalence * tpr / (prevalence * (1 + tpr) + (1 - prevalence) * fpr)


def fpr_for_dice_half(prevalence: float, tpr: float) -> float:
    """False-positive rate at which Dice is exactly one half: π(3T−1)/(1−π); negative when T < 1/3 rules it out."""
    return prevalence * (3 * tpr - 1) / (1 - prevalence)


def all_positive_dice(prevalence: float) -> float:
    """Dice of calling every voxel lesion: 2π/(1+π)."""
    return 2 * prevalence / (1 + prevalence)


def _auroc(n: np.ndarray, cuts: np.ndarray, counts: np.ndarray, left: np.ndarray) -> float | None:
    if len(n) == 0:
        return None
    right = np.searchsorted(n, cuts, side="right")
    return float((counts * (left + right)).sum() / (2.0 * counts.sum() * len(n)))
