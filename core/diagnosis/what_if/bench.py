"""What a what-if works with: a run's maps, scans and detector, and the two sides of a pair."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32

from core.detectors.capabilities import LayerSets, can
from core.diagnosis.what_if.paired import N_BOOTSTRAP, ROLES, Scored, paired_evaluation, thresholds_of
from core.diagnosis.what_if.scored_again import rescored
from core.metrics.subject_scores import SubjectScores
from core.progress import Progress
from core.runs.run_record import Run
from core.study.cases import Case, cases
from core.study.data_source import PreparedVolumes
from core.study.fitted import load_detector
from core.study.run_scans import prepared_of, prepared_volumes, scored_subjects
from core.study.scoring import CHUNK
from core.study.stored_scores import RunScores
from core.types import Detector, LayerSet
from data.errors import IntegrityError
from data.prepared import Prepared
from data.volume import Volume

Scores = Float32[np.ndarray, "x y z"]


@dataclass(frozen=True)
class Outcome:
    """What a what-if found: its variants, and anything else that its result carries."""

    variants: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Bench:
    """One run under one layer set. Each side of a pair holds 4 bytes per brain voxel of every subject."""

    run: Run
    scores: RunScores
    layers: LayerSet
    quantile: float
    fp_ml_per_scan: float | None
    progress: Progress
    n_bootstrap: int = N_BOOTSTRAP

    @functools.cached_property
    def stored(self) -> dict[str, list[SubjectScores]]:
        """The run's own maps."""
        return self.from_maps("Reading score maps", lambda case: case)

    @functools.cached_property
    def detector(self) -> Detector:
        """The run's fitted detector, reduced to the layer set."""
        detector = load_detector(self.run)
        return detector.narrowed(self.layers) if can(detector, LayerSets) else detector

    @functools.cached_property
    def again(self) -> dict[str, list[SubjectScores]]:
        """The run's own scans scored again by its own detector: the other side of every pair that scores again."""
        again = self.from_volumes("Scoring as it was", [self.detector])[0]
        check_reproduced(self.run, self.stored, again)
        return again

    def maps(self, role: str) -> Iterator[Case]:
        """Subjects of a role with their stored maps, one at a time."""
        return cases(self.scores, role, self.layers)

    def from_maps(self, what: str, change: Callable[[Case], Case]) -> dict[str, list[SubjectScores]]:
        """Voxels of every subject after a change of its score map."""
        changed: dict[str, list[SubjectScores]] = {role: [] for role in ROLES}
        with self.progress.task(what, len(scored_subjects(self.run))) as advance:
            for role in ROLES:
                for case in self.maps(role):
                    changed[role].append(change(case).voxels)
                    advance(1, case.subject_id)
        return changed

    def from_volumes(
        self,
        what: str,
        detectors: Sequence[Detector],
        change: Callable[[Volume], Volume] | None = None,
        back: Callable[[Scores, Volume], Scores] | None = None,
    ) -> list[dict[str, list[SubjectScores]]]:
        """Voxels of every subject after its scan, changed, was scored by each of the detectors.

        `back` brings the scores of the changed scan onto the unchanged one.
        """
        changed: list[dict[str, list[SubjectScores]]] = [{role: [] for role in ROLES} for _ in detectors]
        subjects = scored_subjects(self.run)
        role_of = {i: role for role in ROLES for i in self.scores.subjects(role)}
        with self.progress.task(what, len(subjects)) as advance:
            together = self.run.record["settings"].get("scored_together", CHUNK)
            for start in range(0, len(subjects), together):
                chunk = [prepared_of(self.run, s["subject_id"]) for s in subjects[start : start + together]]
                volumes = [change(one.volume) if change else one.volume for one in chunk]
                scored = rescored(detectors, volumes, self.layers)
                for side, maps in zip(changed, scored, strict=True):
                    for prepared, scores in zip(chunk, maps, strict=True):
                        home = back(scores, prepared.volume) if back else scores
                        case = self._case(prepared, home)
                        side[role_of[case.subject_id]].append(case.voxels)
                advance(len(chunk), chunk[-1].volume.subject_id)
        return changed

    def _case(self, prepared: Prepared, scores: Scores) -> Case:
        lesion, subject_id = prepared.lesion, prepared.volume.subject_id
        marked = np.zeros(scores.shape, dtype=bool) if lesion is None else lesion.voxels
        return Case(subject_id, self.scores.is_healthy(subject_id), prepared.volume, marked, scores)

    def training(self, indices: Sequence[int] | None = None) -> PreparedVolumes:
        """Training scans (some of them), read one at a time."""
        ids = self.scores.subjects("train")
        chosen = ids if indices is None else [ids[i] for i in indices]
        return prepared_volumes(self.run, chosen)

    def pair(self, before: Scored, after: Scored) -> dict[str, Any]:
        """`paired_evaluation` by the rule of the run's own evaluation."""
        return paired_evaluation(
            before,
            after,
            quantile=self.quantile,
            fp_ml_per_scan=self.fp_ml_per_scan,
            n_bootstrap=self.n_bootstrap,
        )

    def cuts(self, scored: Scored) -> dict[str, float | None]:
        """`thresholds_of` by the rule of the run's own evaluation."""
        return thresholds_of(scored, quantile=self.quantile, fp_ml_per_scan=self.fp_ml_per_scan)


def variant_of(
    name: str,
    title: str,
    settings: Mapping[str, Any],
    paired: Mapping[str, Any],
    *,
    deployable: bool = False,
    needs_labels: bool = False,
) -> dict[str, Any]:
    """A variant as it is stored; `paired` is what `paired_evaluation` gave."""
    return {
        "id": name,
        "title": title,
        "deployable": deployable,
        "needs_labels": needs_labels,
        "settings": dict(settings),
        **paired,
    }


def check_reproduced(run: Run, stored: Scored, again: Scored) -> None:
    """IntegrityError unless scores that were computed again are the stored ones, up to rounding."""
    for role in ROLES:
        for one, other in zip(stored[role], again[role], strict=True):
            same = len(one.normal) == len(other.normal)
            if not same or not np.allclose(one.normal, other.normal, rtol=1e-2, atol=1e-2 * float(one.normal.std())):
                raise IntegrityError(
                    f"The detector of run {run.run_id} does not give the stored scores of {one.subject_id!r} back. "
                    f"Score and evaluate it again: python cli.py score {run.as_argument}"
                )
