"""One subject as the diagnosis sees it: scan, lesion and score map on the working grid."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from core.metrics.subject_scores import SubjectScores
from core.runs.stages import stage_directory, stage_name
from core.study.stored_scores import RunScores
from core.types import LayerSet
from data.files import is_committed, read_manifest
from data.volume import Volume


@dataclass(frozen=True, eq=False)
class Case:
    """A subject's scan, truth and scores, all on the working grid."""

    subject_id: str
    healthy: bool
    """What the cohort says; such a case has no lesion voxel."""
    volume: Volume
    lesion: Bool[np.ndarray, "x y z"]
    scores: Float32[np.ndarray, "x y z"]
    """NaN outside the scored brain."""

    @property
    def voxel_ml(self) -> float:
        """Volume of one working-grid voxel, mL."""
        return self.volume.grid.voxel_volume_mm3 / 1000.0

    @property
    def voxels(self) -> SubjectScores:
        """In-brain scores, normal and anomalous apart, as the metrics take them."""
        inside = np.isfinite(self.scores)
        return SubjectScores(
            subject_id=self.subject_id,
            healthy=self.healthy,
            normal=self.scores[inside & ~self.lesion],
            anomalous=self.scores[inside & self.lesion],
            voxel_ml=self.voxel_ml,
            lesion_unreachable_voxels=int(np.count_nonzero(self.lesion & ~inside)),
        )


def case_of(scores: RunScores, subject_id: str, layers: LayerSet) -> Case:
    """One subject of a run under one layer set, smoothing and median of the run's recipe included."""
    prepared = scores.prepared(subject_id)
    lesion = prepared.lesion
    marked = np.zeros(prepared.volume.grid.shape, dtype=bool) if lesion is None else lesion.voxels
    found = scores.score_map(subject_id, layers).scores
    return Case(subject_id, scores.is_healthy(subject_id), prepared.volume, marked, found)


def made_from(scores: RunScores, subject_id: str) -> dict[str, Any]:
    """What any figure of a scored subject depends on, for fingerprints: its stored scores, the recipe, its scan."""
    directory = stage_directory(scores.run, stage_name("scores", subject_id))
    subjects = scores.run.record["cohort"]["subjects"]
    return {
        "scores": dict(read_manifest(directory)["files"]) if is_committed(directory) else None,
        "recipe": scores.run.record["recipe"],
        "prepared": next((s["key"] for s in subjects if s["subject_id"] == subject_id), None),
    }


def cases(scores: RunScores, role: str, layers: LayerSet) -> Iterator[Case]:
    """The subjects of one split, one at a time, in the split's order."""
    for subject_id in scores.subjects(role):
        yield case_of(scores, subject_id, layers)
