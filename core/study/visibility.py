"""Visibility of an encoder run, kept with the run; and of a set of views before any run is made with it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from core import devices
from core.disk_plan import visibility_bytes
from core.pretraining.view_settings import ViewSettings
from core.pretraining.visibility.changes import FAMILIES
from core.pretraining.visibility.intensity import intensity_effects
from core.pretraining.visibility.measure import Visibility, measure_visibility, windows_of
from core.pretraining.visibility.settings import VisibilitySettings
from core.pretraining.visibility.trained import compare_training
from core.pretraining.visibility.words import before_sentences, trained_sentences
from core.progress import Progress
from core.recipes import as_json, from_json
from core.runs.provenance import fingerprint
from core.runs.run_record import Run
from core.runs.stages import stage, stage_directory, stage_done, stage_file, stored_json, undamaged, verify_stage
from core.runs.store import lock
from core.study.data_source import PreparedVolumes
from core.study.run_scans import prepared_volumes
from data.errors import BadInput
from data.hashed import known_sha256
from data.json_files import write_json
from data.ranges import refuse_out_of_range
from data.room import require_room
from data.volume import Volume
from models.encoder import Encoder, load_encoder, make_encoder
from models.settings import EncoderSettings

METHOD = 2
"""Counts up whenever the same run and settings would give other figures."""
DIRECTORY = "visibility"


def visibility_of_run(run: Run, progress: Progress, settings: VisibilitySettings | None = None) -> dict[str, Any]:
    """Visibility in the trained encoder of a run and in the untrained one of the same seed, with sentences.

    Healthy training scans of the run only; lesions are planted into copies of them, and no label is read. Committed to
    `run/visibility`, and read from there when nothing has changed. BadInput when the run has no finished encoder.
    """
    settings = settings or VisibilitySettings()
    _check_finished(run)
    made_from = _made_from(run, settings)
    stored = undamaged(lambda: stored_visibility(run), progress.say)
    if stored is not None and stored["made_from"] == made_from:
        progress.say(f"Visibility of {run.run_id} is there already; nothing has changed.")
        return stored
    require_room(run.directory, _bytes_to_write(run, settings), "The measurement of visibility", at_most=True)
    with lock(run) as run:
        result = measured_of_run(run, progress, settings)
        with stage(run, DIRECTORY) as scratch:
            write_json(scratch / "result.json", result)
    committed = stored_visibility(run)
    assert committed is not None
    return committed


def _bytes_to_write(run: Run, settings: VisibilitySettings) -> int:
    """At most: views that are off move nothing and are not listed."""
    encoder = make_encoder(from_json(EncoderSettings, run.record["recipe"]["encoder"]))
    return visibility_bytes(len(encoder.taps), len(FAMILIES), len(settings.kinds()), settings.scans)


def stored_visibility(run: Run) -> dict[str, Any] | None:
    """The committed result; None when there is none, or encoder, scans or views have changed since.

    IntegrityError when it is damaged.
    """
    stored: dict[str, Any] | None = stored_json(run, DIRECTORY)
    if stored is None or not stage_done(run, "encoder"):
        return None
    present = _made_from(run, from_json(VisibilitySettings, stored["settings"]))
    return stored if stored["made_from"] == present else None


def measured_of_run(run: Run, progress: Progress, settings: VisibilitySettings) -> dict[str, Any]:
    """The same, measured now and written nowhere."""
    _check_finished(run)
    verify_stage(run, "encoder")
    try:
        trained, encoder = load_encoder(stage_directory(run, "encoder"))
    except ValueError as error:  # models knows no error of ours
        raise BadInput(str(error)) from error
    views = views_of(run)
    windows = windows_of(training_volumes(run), views, settings)
    networks = {"untrained": _ready(make_encoder(encoder)), "trained": _ready(trained)}
    with progress.task("Visibility of lesions", len(windows)) as advance:
        found = measure_visibility(windows, networks, views, settings, advance)
    compared = compare_training(found["untrained"], found["trained"], settings.seed)
    return {
        **_described(views, settings, found["trained"]),
        "run_id": run.run_id,
        "made_from": _made_from(run, settings),
        "untrained": as_json(found["untrained"]),
        "trained": as_json(found["trained"]),
        "compared": as_json(compared),
        "sentences": list(trained_sentences(found["untrained"], found["trained"], compared, settings)),
    }


def visibility_before(
    volumes: Sequence[Volume],
    views: ViewSettings,
    encoder: EncoderSettings | None,
    settings: VisibilitySettings | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What a set of views does to healthy scans beside what lesions do, before anything is trained.

    Brightness needs no network. With `encoder`, also the features of that network, untrained.
    """
    settings = settings or VisibilitySettings()
    windows = windows_of(volumes, views, settings)
    effects = intensity_effects(windows, views, settings)
    untrained = None
    if encoder is not None:
        try:
            network = make_encoder(replace(encoder, in_channels=windows[0].inside.voxels.shape[0]))
        except ValueError as error:
            raise BadInput(str(error)) from error
        untrained = measure_visibility(windows, {"untrained": _ready(network)}, views, settings)["untrained"]
    if progress is not None:
        progress.say(f"Views and lesions were looked at in {len(windows)} healthy scans.")
    return {
        **_described(views, settings, untrained),
        "subjects": [window.volume.subject_id for window in windows],
        "untrained": as_json(untrained),
        "intensity": as_json(effects),
        "sentences": list(before_sentences(effects, untrained, settings)),
    }


def visibility_before_of_run(run: Run, recipe: Mapping[str, Any], settings: VisibilitySettings) -> dict[str, Any]:
    """`visibility_before` on the training scans of a run, for a recipe with other `views` or `encoder`."""
    views = from_json(ViewSettings, recipe["views"])
    return visibility_before(training_volumes(run), views, from_json(EncoderSettings, recipe["encoder"]), settings)


def encoder_settings(architecture: str, width: int, seed: int) -> EncoderSettings:
    """Settings of an untrained encoder from plain values. BadInput when there is no such network."""
    settings = from_json(EncoderSettings, {"architecture": architecture, "width": width, "seed": seed})
    refuse_out_of_range(settings)
    try:
        make_encoder(settings)
    except ValueError as error:  # models knows no error of ours
        raise BadInput(str(error)) from error
    return settings


def training_volumes(run: Run) -> PreparedVolumes:
    """The prepared healthy scans that the run trains on. BadInput when it lists none."""
    chosen = set(run.record["split"].get("train", ()))
    subjects = run.record["cohort"].get("subjects", ())
    ids = sorted(s["subject_id"] for s in subjects if s["subject_id"] in chosen and s.get("healthy", True))
    if not ids:
        raise BadInput(f"Run {run.run_id} names no healthy training scan to measure on.")
    return prepared_volumes(run, ids)


def views_of(run: Run) -> ViewSettings:
    """How the views of a run differ."""
    return from_json(ViewSettings, run.record["recipe"]["views"])


def _check_finished(run: Run) -> None:
    if run.kind != "encoder" or not stage_done(run, "encoder"):
        raise BadInput(
            f"Run {run.run_id} has no finished encoder. Finish it: python cli.py pretrain --run-id {run.run_id} ..., "
            "or give an encoder run. Before training: python cli.py visibility-before COHORT"
        )


def _made_from(run: Run, settings: VisibilitySettings) -> str:
    volumes = training_volumes(run)
    return fingerprint(
        {
            "method": METHOD,
            "settings": as_json(settings),
            "views": as_json(views_of(run)),
            "encoder": known_sha256(stage_file(run, "encoder", "encoder.safetensors")),
            "scans": sorted(volumes.keys),
        }
    )


def _described(views: ViewSettings, settings: VisibilitySettings, found: Visibility | None) -> dict[str, Any]:
    return {
        "settings": as_json(settings),
        "views": as_json(views),
        "example": settings.example().name,
        "subjects": list(found.subjects) if found is not None else [],
        "shares": dict(found.shares) if found is not None else {},
    }


def _ready(network: Encoder) -> Encoder:
    return network.eval().to(devices.device())
