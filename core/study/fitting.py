"""Fit: a detector learns from the training split."""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.detectors import recipe_json
from core.detectors.capabilities import LayerSets, SearchIndex, TellsSize, can
from core.disk_plan import grid_bytes
from core.features.extraction import check_features
from core.features.layout import feature_stride
from core.progress import Progress
from core.recipes import as_json, changed, from_json
from core.runs.run_record import Run
from core.runs.stages import stage, stage_directory, stage_done, verify_stage
from core.runs.store import lock, update_run
from core.study.data_source import DataSource, Study, cache_directory
from core.study.fitted import index_cache
from core.study.opening import (
    check_given_id,
    open_or_create,
    recorded_outcome,
    tell_versions,
    training_volumes,
)
from core.study.preparing import prepare
from core.types import Detector
from data.cohort import ROLES
from data.errors import BadInput, IntegrityError
from data.hashed import sha256_file
from data.health import grouped, health_summary
from data.prepared import Preprocessing
from data.prepared_cache import load_voxel_hash
from data.ranges import refuse_out_of_range
from data.room import require_room
from data.template import working_grid
from data.volume import Volume
from models.encoder import make_encoder
from models.settings import EncoderSettings


def fit(
    runs: Path,
    source: DataSource,
    detector: Detector,
    progress: Progress,
    *,
    name: str,
    run_id: str | None = None,
    encoder_run: Run | None = None,
) -> Run:
    """Fit a detector to the training split; `encoder_run` gives it that run's encoder."""
    refuse_out_of_range(detector)
    check_given_id(run_id)
    if encoder_run is not None:
        _check_encoder(detector, encoder_run)
    if can(detector, LayerSets):
        _check_layers(detector, encoder_run, source.preprocessing)
    study = prepare(runs, source, progress)
    _tell_notes(study, progress)
    if not study.split.calibration:
        progress.say(
            "note: no calibration subject, so this run gets no label-free threshold: it is judged at the thresholds of "
            "validation labels and of oracles alone. Give healthy subjects the role calibration for one."
        )
    parents: dict[str, str] = {}
    if encoder_run is not None:
        detector, parents = _with_encoder(detector, encoder_run, study)
    elif can(detector, LayerSets) and not detector.weights:
        contrasts = len(source.preprocessing.contrasts)
        detector = changed(detector, encoder=replace(detector.encoder, in_channels=contrasts))
    recipe = recipe_json(detector)
    if encoder_run is not None:  # by its run, not by its path: a study that has moved is the same study
        recipe["weights"] = f"{encoder_run.run_id}/encoder"
    run = open_or_create(runs, "detector", name, recipe, study, run_id, parents)
    tell_versions(run, progress)
    with lock(run) as run, recorded_outcome(run):
        if stage_done(run, "detector"):
            return run
        update_run(run, status="running")
        _learn(run, detector, recipe, training_volumes(run, study), progress)
    return run


def _learn(
    run: Run, detector: Detector, recipe: Mapping[str, Any], volumes: Sequence[Volume], progress: Progress
) -> None:
    """Fit and commit, telling what it will take and how far it is."""
    with progress.task("Fitting", len(volumes)) as advance:
        seen = 0

        def monitor(number: int, values: Mapping[str, float]) -> None:
            nonlocal seen
            if "disk_bytes" in values:
                require_room(run.directory, int(values["disk_bytes"]), "What is fitted")
            if "planned_bytes" in values and can(detector, LayerSets):
                progress.say(detector.plan_text_)
            advance(max(number - seen, 0), f"{values['chosen']:.0f} patches chosen" if "chosen" in values else "")
            seen = max(number, seen)

        if not can(detector, LayerSets):
            require_room(run.directory, _fitted_bytes(detector, volumes[0]), "What is fitted")
        with stage(run, "detector") as scratch:
            if can(detector, SearchIndex):
                detector.index_cache_ = index_cache(run)
            detector.fit(volumes, monitor)
            _save(detector, recipe, scratch)
            if can(detector, LayerSets):  # before the commit: a run killed between the two is not fitted again
                settings = detector.fitted_settings()
                update_run(run, settings=settings)
                if "audit" in settings:
                    progress.say(f"note: {settings['audit']}")


def _tell_notes(study: Study, progress: Progress) -> None:
    """What concerns the scans that are learnt from: who is healthy on whose word, and what was noticed."""
    train = set(study.split.train)
    progress.say("Training scans: " + health_summary([(s.healthy, s.health_from) for s in study.cohort.subjects
                                                      if s.subject_id in train]))  # fmt: skip
    told = study.prepared.notes(study.split.train)
    for note in (*study.cohort.notes, *grouped([(i, note) for i, notes in told.items() for note in notes], most=8)):
        progress.say(f"note: {note}")


def _fitted_bytes(detector: Detector, volume: Volume) -> int:
    """Of a fitted detector without layers: what it says, or its recipe alone."""
    return detector.fitted_bytes(volume) if can(detector, TellsSize) else grid_bytes(0)


def _save(detector: Detector, recipe: Mapping[str, Any], directory: Path) -> None:
    if can(detector, LayerSets):
        detector.weights = recipe["weights"]
    detector.save(directory)


def _check_layers(detector: LayerSets, encoder_run: Run | None, preprocessing: Preprocessing) -> None:
    """Unknown layers, an even neighbourhood and an odd feature grid are refused before any scan is prepared."""
    settings = detector.encoder
    if encoder_run is not None:
        settings = from_json(EncoderSettings, encoder_run.record["recipe"]["encoder"])
    try:
        encoder = make_encoder(settings)
    except ValueError as error:  # models knows no error of ours
        raise BadInput(str(error)) from error
    check_features(detector.features, encoder)
    feature_stride(encoder, detector.features.grid, working_grid(preprocessing.spacing_mm))


def _check_encoder(detector: Detector, encoder_run: Run) -> None:
    if not can(detector, LayerSets):
        raise BadInput(f"The detector is {detector.plain_name} and takes no encoder. Leave --encoder out.")
    if not stage_done(encoder_run, "encoder"):
        raise BadInput(
            f"Encoder run {encoder_run.run_id} is {encoder_run.status}: it has no finished encoder. "
            f"Finish it: python cli.py pretrain --run-id {encoder_run.run_id} ..."
        )


def _with_encoder(detector: Detector, encoder_run: Run, study: Study) -> tuple[Detector, dict[str, str]]:
    weights = stage_directory(encoder_run, "encoder")
    verify_stage(encoder_run, "encoder")
    _refuse_foreign_encoder(encoder_run, study)
    parents = {"encoder": encoder_run.run_id, "encoder_sha256": sha256_file(weights / "encoder.safetensors")}
    return changed(detector, weights=str(weights)), parents


def _refuse_foreign_encoder(encoder_run: Run, study: Study) -> None:
    """An encoder that saw a subject of the other splits leaks; one trained on other preparation sees other inputs."""
    seen = set(encoder_run.record["split"]["train"])
    leaked = [i for role in ROLES[1:] for i in getattr(study.split, role) if i in seen]
    if leaked:
        raise BadInput(
            f"Encoder {encoder_run.run_id} was trained on {len(leaked)} subject(s) that calibrate, validate or "
            f"test here: {', '.join(leaked[:5])}. Use the same --split for both, or pretrain another encoder."
        )
    others = {study.prepared.voxel_hashes[i]: i for role in ROLES[1:] for i in getattr(study.split, role)}
    same = [f"{i} is {others[found]} here" for i, found in _voxel_hashes(encoder_run, seen).items() if found in others]
    if same:
        raise BadInput(
            f"Encoder {encoder_run.run_id} was trained on the voxels of {len(same)} scan(s) that calibrate, validate "
            f"or test here under another name: {'; '.join(same[:5])}. Take them out, or pretrain another encoder."
        )
    asked, trained = as_json(study.source.preprocessing), encoder_run.record["preprocessing"]
    changed = [k for k in ("contrasts", "registration", "spacing_mm", "intensity") if asked[k] != trained.get(k)]
    if changed:
        raise BadInput(
            f"Encoder {encoder_run.run_id} was trained on scans prepared otherwise: "
            + "; ".join(f"{k} {trained.get(k)!r}, here {asked[k]!r}" for k in changed)
            + ". Prepare these scans in the same way."
        )


def _voxel_hashes(run: Run, subject_ids: Collection[str]) -> dict[str, str]:
    """Hashes of the scans' voxels by subject, as far as their prepared scans are still in the cache."""
    found = {}
    for subject in run.record["cohort"]["subjects"]:
        if subject["subject_id"] in subject_ids:
            with contextlib.suppress(IntegrityError, KeyError):
                subject_id = str(subject["subject_id"])
                found[subject_id] = load_voxel_hash(cache_directory(run.directory.parent), subject["key"], subject_id)
    return found
