"""Scores of one subject, sorted once: every threshold's counts come from them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from core.metrics.score_histogram import N_BINS, ScoreHistogram, edges
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
            object.__setattr__(self, name, finite_scores(getattr(self, name), f"{name} scores of {self.subject_id!r}"))
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


def dice_at(subject: SubjectScores, threshold: float) -> float | None:
    """Dice of `score >= threshold`; None for a subject without lesion."""
    hits, alarms, missed = subject.counts(threshold)
    return 2.0 * hits / (2 * hits + alarms + missed) if subject.n_lesion else None


def pooled_dice_at(subjects: Sequence[SubjectScores], threshold: float) -> float | None:
    """Dice of all lesion-bearing subjects as one: weighs each by |segmentation| + |lesion|."""
    counts = [s.counts(threshold) for s in subjects if s.n_lesion]
    hits, alarms, missed = (sum(c[i] for c in counts) for i in range(3))
    return 2.0 * hits / (2 * hits + alarms + missed) if counts else None


def lesion_scores_in(bearing: Sequence[SubjectScores], bins: np.ndarray) -> np.ndarray:
    """The distinct scores of lesion voxels that fall into some bins of the histogram, ascending."""
    if len(bins) == 0:
        return np.empty(0, dtype=np.float32)
    keep = np.zeros(N_BINS, dtype=bool)
    keep[bins] = True
    cuts = edges()
    scores = np.concatenate([s.anomalous for s in bearing])
    return np.unique(scores[keep[np.searchsorted(cuts, scores, side="right") - 1]])


def finite_scores(scores: np.ndarray, what: str) -> np.ndarray:
    """Scores as float32. BadInput unless they are one list of finite numbers."""
    values = np.asarray(scores, dtype=np.float32)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise BadInput(f"{what[0].upper()}{what[1:]} are not one list of finite numbers. Mask the brain first.")
    return values
