"""Reading a run's scores: the score map of any subject under any layer set, and its voxels for the metrics."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32

from core.detectors import from_recipe
from core.detectors.capabilities import LayerSets, TwoParts, can
from core.features.layout import LAYOUT_FILES, load_layout
from core.features.score_maps import to_score_map
from core.metrics.subject_scores import SubjectScores
from core.runs.run_record import Run
from core.runs.stages import (
    refuse_lost_manifest,
    stage_array,
    stage_directory,
    stage_done,
    stage_file,
    stage_json,
    stage_name,
)
from core.study.run_scans import prepared_of, subjects_of
from core.study.scoring import LEFT_OUT, SUBJECT_FILE
from core.types import Detector, FeatureLayout, LayerSet, ScoreMap
from data.errors import BadInput
from data.files import manifest_sha256, read_manifest
from data.prepared import Prepared, to_native

Space = Literal["native", "working"]


def set_id(layers: LayerSet) -> str:
    """A layer set in one word: stage1+stage2."""
    return "+".join(layers)


@dataclass(frozen=True, eq=False)
class RunScores:
    """The stored scores of one run. Cheap to open: neither the encoder nor what was fitted is loaded."""

    run: Run
    detector: Detector
    """Unfitted: only its hyper-parameters are needed to turn distances into maps."""
    layout: FeatureLayout | None
    folder: str = "scores"
    """Where the scores lie: those of scans that were not learnt from, or of the learnt ones (`left_out`)."""

    def left_out(self) -> "RunScores":
        """The scores of the training scans, each by what was learnt from the others."""
        return replace(self, folder=LEFT_OUT)

    @property
    def layers(self) -> tuple[str, ...]:
        """The fitted layers; one pseudo-layer for detectors that have none."""
        if can(self.detector, LayerSets):
            return self.detector.features.layers
        return (type(self.detector).__name__.lower(),)

    @property
    def layer_sets(self) -> tuple[LayerSet, ...]:
        """Every layer set that was scored, in the order of the stored arrays."""
        return self.detector.layer_sets if can(self.detector, LayerSets) else (self.layers,)

    @property
    def unit(self) -> str:
        """Unit of the scores."""
        return self.detector.score_unit

    @property
    def cut_on_labels(self) -> bool:
        """Whether validation labels shaped the maps themselves: a gate that was cut on them."""
        return can(self.detector, TwoParts) and self.detector.threshold_from == "validation"

    def layer_set(self, which: str) -> LayerSet:
        """The layer set with this id, its layers in any order. BadInput lists what there is."""
        for layers in self.layer_sets:
            if sorted(layers) == sorted(which.split("+")):
                return layers
        if not can(self.detector, LayerSets):
            name = self.detector.plain_name
            raise BadInput(f"Run {self.run.run_id} is {name}: it has no layers to choose from, and got {which!r}.")
        raise BadInput(f"Layer set {which!r} is not in run {self.run.run_id}. Its layers: {', '.join(self.layers)}.")

    def layer_spacing_mm(self, layer: str) -> float:
        """In-plane spacing at which a layer's features are kept, mm."""
        assert self.layout is not None
        return self.layout.layer_grids[layer].spacing_mm[0]

    def subjects(self, role: str) -> list[str]:
        """Ids of one split."""
        return subjects_of(self.run, role)

    def is_healthy(self, subject_id: str) -> bool:
        """What the cohort says of a subject; one without a lesion mask may still be ill."""
        return any(s["subject_id"] == subject_id and s["healthy"] for s in self.run.record["cohort"]["subjects"])

    def prepared(self, subject_id: str) -> Prepared:
        """The prepared scan of a subject."""
        return prepared_of(self.run, subject_id)

    def distances(self, subject_id: str) -> Float32[np.ndarray, "layer_sets positions"]:
        """Stored distances of every layer set, memory-mapped."""
        return self._stored(subject_id, "distances.npy")

    def subject_scores(self, subject_id: str) -> dict[str, float]:
        """The stored score of the whole scan by layer set; empty for detectors that give none."""
        name = stage_name(self.folder, subject_id)
        if SUBJECT_FILE not in read_manifest(stage_directory(self.run, name))["files"]:
            return {}
        return dict(stage_json(self.run, name, SUBJECT_FILE)["scores"])

    def score_map(self, subject_id: str, layers: LayerSet) -> ScoreMap:
        """Score map on the working grid, NaN outside the brain."""
        volume = self.prepared(subject_id).volume
        if not can(self.detector, LayerSets):
            return ScoreMap(self._stored(subject_id, "scores.npy"), volume.grid, subject_id, self.unit)
        assert self.layout is not None
        row = np.array(self.distances(subject_id)[self.layer_sets.index(layers)])
        return to_score_map(
            row,
            self.layout,
            volume,
            self.unit,
            smoothing_mm=self.detector.smoothing_mm,
            median_voxels=self.detector.median_voxels,
        )

    def native_scores(self, subject_id: str, layers: LayerSet) -> Float32[np.ndarray, "x y z"]:
        """The score map in the scan's own space, one resample, NaN outside the brain."""
        score_map = self.score_map(subject_id, layers)
        return to_native(score_map.scores, score_map.grid, self.prepared(subject_id))

    def voxels(self, subject_id: str, layers: LayerSet, space: Space) -> SubjectScores:
        """In-brain scores of a subject, normal and anomalous apart."""
        prepared = self.prepared(subject_id)
        if space == "native":
            scores = self.native_scores(subject_id, layers)
            grid, lesion = prepared.native_grid, prepared.native_lesion
        else:
            score_map = self.score_map(subject_id, layers)
            scores, grid, lesion = score_map.scores, score_map.grid, prepared.lesion
        inside = np.isfinite(scores)
        ill = lesion.voxels if lesion is not None else np.zeros(scores.shape, dtype=bool)
        return SubjectScores(
            subject_id=subject_id,
            healthy=self.is_healthy(subject_id),
            normal=scores[inside & ~ill],
            anomalous=scores[inside & ill],
            voxel_ml=grid.voxel_volume_mm3 / 1000.0,
            lesion_unreachable_voxels=int(np.count_nonzero(ill & ~inside)),
        )

    def voxels_of(self, subject_ids: Sequence[str], layers: LayerSet, space: Space) -> list[SubjectScores]:
        """`voxels` of several subjects."""
        return [self.voxels(subject_id, layers, space) for subject_id in subject_ids]

    def _stored(self, subject_id: str, name: str) -> Float32[np.ndarray, "..."]:
        stage = stage_name(self.folder, subject_id)
        if not stage_done(self.run, stage):
            raise BadInput(
                f"Subject {subject_id!r} has no scores in run {self.run.run_id}. "
                f"Score it: python cli.py score {self.run.as_argument}"
            )
        return stage_array(self.run, stage, name)


def open_scores(run: Run) -> RunScores:
    """The scores of a run, ready to read."""
    if not stage_done(run, "detector"):
        refuse_lost_manifest(run, "detector")
        raise BadInput(f"Run {run.run_id} is not fitted yet ({run.status}). Look at its job on the Training page.")
    detector = from_recipe(run.record["recipe"])
    layout = None
    if can(detector, LayerSets):
        for name in LAYOUT_FILES:
            stage_file(run, "detector", name)
        directory = stage_directory(run, "detector")
        layout = _layout(str(directory), manifest_sha256(directory))
    return RunScores(run, detector, layout)


@functools.lru_cache(maxsize=8)
def _layout(directory: str, version: str) -> FeatureLayout:
    return load_layout(Path(directory))
