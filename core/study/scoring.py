"""Score: every held-out scan gets its score map."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.detectors.capabilities import LayerSets, LeavesOut, ScanScores, can
from core.disk_plan import grid_bytes
from core.progress import Progress
from core.runs.provenance import computed_by, reset_peak_memory
from core.runs.run_record import Run
from core.runs.stages import about_stage, record_duration, stage_directory, stage_done, stage_name, verify_stage
from core.runs.store import lock, update_run
from core.runs.versions import note_resumed
from core.study.fitted import load_detector
from core.study.opening import (
    compare_threads,
    recorded_outcome,
)
from core.study.run_scans import has_scan, prepared_of, preprocessing_of, scored_subjects
from core.types import Detector
from data.errors import BadInput, EnvironmentProblem, IntegrityError, together
from data.files import committed_directory
from data.json_files import write_json
from data.ranges import check_range
from data.room import require_room
from data.template import working_grid

CHUNK = 24
"""Subjects scored together where memory allows: more gain no speed."""
LEFT_OUT = "left-out"
"""Stage with the scores of the training scans, each by what was learnt from the others."""
SUBJECT_FILE = "subject.json"
"""Beside a scan's distances: one score of the whole scan per layer set, where the detector gives one."""


def score(run: Run, progress: Progress, *, memory_gb: float | None = None) -> Run:
    """Score every calibration, validation and test subject under every layer set; one directory per subject.

    As many subjects at a time as fit into the detector's memory limit (or `memory_gb`). The number is kept with the
    run and changes no bit: a subject gets the same scores alone as among others.
    """
    if memory_gb is not None:
        check_range("memory_gb", memory_gb)
    detector = None
    subjects = scored_subjects(run)
    began = time.perf_counter()
    reset_peak_memory()
    problems: dict[str, BadInput | EnvironmentProblem | IntegrityError] = {}
    missing = _unscored(run, subjects, problems)
    if problems and not missing:
        raise together(problems, "All others are scored.")
    if run.status == "finished" and not missing:
        return run  # nothing to write: the run may be one that can only be read
    with lock(run) as run, recorded_outcome(run), progress.task("Scoring", len(subjects)) as advance:
        if missing:
            run = update_run(run, status="running")
            if len(missing) < len(subjects):
                run = note_resumed(run, "scoring")
            detector = load_detector(run)
            _room_for_scores(run, detector, subjects)
            if len(missing) < len(subjects):
                before = run.record["stages"].get("scores", {}).get("computed_by")
                run = compare_threads(run, (before,) if before else (), "scored", progress)
            run = update_run(run, stages={"scores": {"computed_by": computed_by()}})
            run = _scored_together(run, detector, memory_gb)
        together_n = run.record["settings"].get("scored_together", CHUNK)
        for start in range(0, len(subjects), together_n):
            chunk = subjects[start : start + together_n]
            todo = [s for s in chunk if s["subject_id"] in missing and has_scan(run, s, problems)]
            if detector is not None and todo:
                _score_chunk(run, detector, todo)
            advance(len(chunk), chunk[-1]["subject_id"])
        if detector is not None:
            record_duration(run, "scores", began)
        if problems:
            raise together(problems, "All others are scored.")
    return run


def score_left_out(run: Run, progress: Progress) -> None:
    """Score every training scan by the Gaussian of all the others: healthy scores where no scan was held out.

    Exact, from what the Gaussian keeps of its training scans (Sherman-Morrison on the Gram matrix). The run must be
    locked. BadInput for detectors that keep too little.
    """
    ids = list(run.record["split"]["train"])  # in the order in which they were learnt from
    names = {i: stage_name(LEFT_OUT, i) for i in ids}
    if all(stage_done(run, name, verify=True) for name in names.values()):
        return
    detector = load_detector(run)
    if not can(detector, LeavesOut):
        raise BadInput(
            f"Run {run.run_id} is {detector.plain_name}, which does not know the scores of its training scans without "
            "themselves (a Gaussian does). Hold healthy subjects out: give them the role calibration."
        )
    with progress.task("Scoring each training scan by the others", 1) as advance:
        distances = detector.left_out()
        for number, subject_id in enumerate(ids):
            target = stage_directory(run, names[subject_id])
            about = about_stage(run, names[subject_id])
            with committed_directory(target, within=run.directory, about=about) as scratch:
                np.save(scratch / "distances.npy", np.ascontiguousarray(distances[:, number], dtype=np.float32))
        advance(1, f"{len(ids)} scans")


def _unscored(run: Run, subjects: Sequence[Mapping[str, Any]], problems: dict[str, Any]) -> set[str]:
    """Ids of those who have no scores yet; those whose scores are damaged are put among the problems."""
    missing = set()
    for subject in subjects:
        try:
            if not _is_scored(run, subject):
                missing.add(str(subject["subject_id"]))
        except IntegrityError as problem:
            problems[str(subject["subject_id"])] = problem
    return missing


def _is_scored(run: Run, subject: Mapping[str, Any]) -> bool:
    name = stage_name("scores", subject["subject_id"])
    if not stage_done(run, name):
        return False
    verify_stage(run, name)
    return True


def _scored_together(run: Run, detector: Detector, memory_gb: float | None) -> Run:
    if not can(detector, LayerSets) or "scored_together" in run.record["settings"]:
        return run
    together = detector.subjects_together(CHUNK, memory_gb)
    return update_run(run, settings={**run.record["settings"], "scored_together": together})


def _score_chunk(run: Run, detector: Detector, chunk: Sequence[Mapping[str, Any]]) -> None:
    volumes = [prepared_of(run, s["subject_id"]).volume for s in chunk]
    whole: dict[str, dict[str, float]] = {}
    if can(detector, ScanScores):
        distances, subjects = detector.distances_and_subject_scores(volumes)
        arrays = {v.subject_id: ("distances.npy", distances[:, n]) for n, v in enumerate(volumes)}
        whole = {v.subject_id: {"+".join(s): value for s, value in subjects[n].items()} for n, v in enumerate(volumes)}
    elif can(detector, LayerSets):
        distances = detector.distances(volumes)
        arrays = {v.subject_id: ("distances.npy", distances[:, n]) for n, v in enumerate(volumes)}
    else:
        arrays = {v.subject_id: ("scores.npy", detector.score(v).scores) for v in volumes}
    for subject_id, (name, array) in arrays.items():
        stage = stage_name("scores", subject_id)
        target = stage_directory(run, stage)
        with committed_directory(target, within=run.directory, about=about_stage(run, stage)) as scratch:
            np.save(scratch / name, np.ascontiguousarray(array, dtype=np.float32))
            if subject_id in whole:
                write_json(scratch / SUBJECT_FILE, {"scores": whole[subject_id]})


def _room_for_scores(run: Run, detector: Detector, subjects: Sequence[Mapping[str, Any]]) -> None:
    left = [subject for subject in subjects if not _is_scored(run, subject)]
    if can(detector, LayerSets):
        values = len(detector.layer_sets) * len(detector.layout_.positions)
    else:
        values = int(np.prod(working_grid(preprocessing_of(run).spacing_mm).shape))
    require_room(run.directory, len(left) * grid_bytes(values), f"Scoring {len(left)} scans")
