"""Pretrain: an encoder is trained by SimCLR on the training split."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from core.pretraining.checkpoints import checkpoint_history, checkpoint_step
from core.pretraining.simclr import SimclrSettings, bytes_to_train, check_settings, pretrain_encoder
from core.pretraining.view_settings import check_crop
from core.progress import Progress
from core.recipes import as_json
from core.runs.provenance import reset_peak_memory
from core.runs.run_record import Run
from core.runs.stages import about_stage, record_duration, stage_done
from core.runs.store import lock, update_run
from core.runs.versions import note_resumed
from core.study.data_source import DataSource, Study
from core.study.opening import (
    check_given_id,
    compare_threads,
    open_or_create,
    recorded_outcome,
    tell_versions,
    training_volumes,
)
from core.study.preparing import prepare, split_of
from data.files import is_committed
from data.layout import read_cohort
from data.room import require_room, size
from data.template import working_grid


def pretrain(
    runs: Path,
    source: DataSource,
    settings: SimclrSettings,
    progress: Progress,
    *,
    name: str = "simclr",
    run_id: str | None = None,
) -> Run:
    """Train an encoder by SimCLR on the training split. The same `run_id` and settings resume a stopped run."""
    settings = replace(settings, encoder=replace(settings.encoder, in_channels=len(source.preprocessing.contrasts)))
    check_settings(settings)
    check_given_id(run_id)
    check_crop(settings.views, working_grid(source.preprocessing.spacing_mm).shape)
    check_settings(settings, len(split_of(read_cohort(source.cohort, source.layout, source.choices), source).train))
    study = prepare(runs, source, progress)
    check_settings(settings, len(study.split.train))  # again: some of the scans may have been set aside
    recipe = {"kind": "SimCLR", **as_json(settings)}
    if run_id is None or not is_committed(runs / run_id / "encoder"):
        progress.say(_room_to_train(runs, run_id, study, settings))
    run = open_or_create(runs, "encoder", name, recipe, study, run_id, {})
    tell_versions(run, progress)
    with lock(run) as run, recorded_outcome(run):
        if stage_done(run, "encoder"):
            return run
        update_run(run, status="running")
        began = time.perf_counter()
        reset_peak_memory()
        seen = checkpoint_step(run.directory)
        if seen:
            note_resumed(run, f"training, at step {seen},")
            progress.say(f"Training goes on from step {seen} of {settings.steps}.")
            run = compare_threads(run, checkpoint_history(run.directory), "trained", progress)
        with progress.task("Training the encoder", settings.steps - seen) as advance:

            def monitor(step: int, values: Mapping[str, float]) -> None:
                nonlocal seen
                advance(max(step - seen, 0), f"loss {values.get('loss', float('nan')):.3f}")
                seen = max(step, seen)

            about = about_stage(run, "encoder")
            pretrain_encoder(training_volumes(run, study), settings, run.directory, monitor, about)
        record_duration(run, "encoder", began)
    return run


def _room_to_train(runs: Path, run_id: str | None, study: Study, settings: SimclrSettings) -> str:
    """Refuses a training whose checkpoints and encoder have no room; what they take, in words."""
    directory = runs if run_id is None else runs / run_id
    needed = bytes_to_train(study.volumes("train"), settings, directory)
    require_room(directory, needed, "Training")
    return f"Checkpoints and encoder take up to {size(needed)} on disk."
