"""Commands of cli.py as lists of words, from settings and from runs: what a button starts, a terminal can repeat."""

import dataclasses
import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.detectors import recipe_json
from core.detectors.capabilities import LayerSets, can
from core.presentation.training_view import asked_run_id
from core.pretraining.simclr import SimclrSettings
from core.recipes import as_json, from_json
from core.runs.jobs import Job, list_jobs, start_job
from core.runs.listing import open_run
from core.runs.run_record import Run, read_run
from core.runs.stages import kept_if_possible, stage_done, stage_name
from core.study.again import Place, argv_of, choice_words, comparison_argv, detector_words, scan_words, settings_words
from core.study.run_summary import run_rows
from core.types import Detector
from data.choices import NOTHING, Choices
from data.cohort import ROLES
from data.errors import BadInput
from data.json_files import write_json
from data.names import folder_name
from data.prepared import Preprocessing

TAKE_OVER = "--take-over"


@dataclass(frozen=True)
class Scans:
    """Which scans a command works on."""

    cohort: str
    layout: str = "auto"
    split: str | None = None
    """A file with the four lists; None lets the table or the seeded draw decide."""
    preprocessing: Preprocessing = dataclasses.field(default_factory=Preprocessing)
    choices: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What was said of the data set besides, as `Choices.said` gives it."""


@dataclass(frozen=True)
class Step:
    """The next command for a run, and what its button says."""

    label: str
    argv: tuple[str, ...]
    run_id: str


def scans_of(runs: Path, run: Run) -> Scans:
    """The scans, the split and the preprocessing of a run, to be used again; its split is written to a file.

    So a second encoder or a detector sees exactly the training subjects of the first, whatever the split came from.
    """
    path = runs.absolute() / ".splits" / f"{folder_name(run.run_id)}.json"
    with kept_if_possible(run):
        write_json(path, {role: list(run.record["split"].get(role, [])) for role in ROLES})
    cohort = run.record["cohort"]
    preprocessing = from_json(Preprocessing, run.record["preprocessing"])
    said = cohort.get("choices") or {}
    return Scans(str(cohort["path"]), str(cohort.get("layout", "auto")), str(path), preprocessing, said)


def scans_at(path: str, layout: str, preprocessing: Preprocessing, choices: Choices = NOTHING) -> Scans:
    """Scans at a path that somebody typed; BadInput when nothing is there."""
    found = Path(path.strip()).expanduser()
    if not path.strip() or not found.exists():
        raise BadInput(
            f"No cohort at {path.strip()!r}. Give the path, on the machine that serves this page, of a table "
            "(CSV, TSV) or of a data set's folder."
        )
    return Scans(str(found.resolve()), layout, None, preprocessing, as_json(choices.said()))


def check_argv(path: str, layout: str, contrasts: Sequence[str], choices: Choices = NOTHING) -> list[str]:
    """`check` of the cohort at a path, with its findings as JSON."""
    scans = scans_at(path, layout, Preprocessing(), choices)
    words = ["check", scans.cohort, "--layout", layout, "--json", *choice_words(scans.choices)]
    return [*words, "--contrasts", *contrasts] if contrasts else words


def prepare_argv(runs: Path, run: Run) -> list[str]:
    """`prepare` of the scans of a run as it had them, so that what the cache lost is there again."""
    cohort = run.record["cohort"]
    place = Place(
        str(cohort["path"]),
        str(cohort.get("layout", "auto")),
        None,
        str(runs.absolute()),
        cohort.get("choices") or {},
    )
    return ["prepare", *scan_words(place, run.record["preprocessing"])]


def pretrain_argv(
    runs: Path, scans: Scans, settings: SimclrSettings, name: str, run_id: str | None = None
) -> list[str]:
    """`pretrain` with every setting said, under a run id that the settings determine (see `pretrain_id`)."""
    settings = dataclasses.replace(
        settings, encoder=dataclasses.replace(settings.encoder, in_channels=len(scans.preprocessing.contrasts))
    )
    return [
        *("pretrain", *scan_words(_place(runs, scans), as_json(scans.preprocessing))),
        *(f"--name={name}", "--run-id", run_id or pretrain_id(scans, settings, name)),
        *settings_words("simclr", as_json(settings)),
    ]


def pretrain_id(scans: Scans, settings: SimclrSettings, name: str) -> str:
    """A run id of name, scans and settings: asking twice for the same training gives one run, not two."""
    described = json.dumps([as_json(scans), as_json(settings)], sort_keys=True).encode()
    stem = _slug(name) or "simclr"
    return f"{stem}-{hashlib.sha256(described).hexdigest()[:6]}"


def fit_argv(runs: Path, encoder: Run, detector: Detector, name: str) -> list[str]:
    """`fit` of a detector with every setting that is not the catalogue's, on the scans and split of an encoder's run.

    One that models features does so with that encoder. The settings determine the run's id, as in `pretrain_id`.
    """
    scans = scans_of(runs, encoder)
    words = detector_words(recipe_json(detector), encoder.run_id if can(detector, LayerSets) else "")
    described = json.dumps([as_json(scans), words], sort_keys=True).encode()
    run_id = f"{_slug(name) or words[1]}-{hashlib.sha256(described).hexdigest()[:6]}"
    place = scan_words(_place(runs, scans), as_json(scans.preprocessing))
    return ["fit", *place, *words, f"--name={name or words[1]}", "--run-id", run_id]


def steps_that_wait(runs: Path, most: int = 4) -> list[Step]:
    """What comes next for detector runs that are not evaluated yet, the newest first."""
    found = []
    for row in run_rows(runs)[0]:
        if row["kind"] == "detector" and row["status"] not in ("running", "damaged") and not row["evaluated"]:
            run = read_run(runs / row["run_id"])
            step = _step_of_detector(runs, run, run) if stage_done(run, "detector") else None
            found += [] if step is None else [step]
        if len(found) == most:
            break
    return found


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]


def resume_argv(runs: Path, run: Run | None, job: Job | None) -> list[str]:
    """What continues a training: its job's own words again, or the same said from the run's record."""
    if job is not None and asked_run_id(job) is not None:
        return [word for word in job.argv if word != TAKE_OVER]
    assert run is not None
    recipe = {key: value for key, value in run.record["recipe"].items() if key != "kind"}
    return pretrain_argv(runs, scans_of(runs, run), from_json(SimclrSettings, recipe), run.name, run.run_id)


def next_step(runs: Path, encoder: Run) -> Step | None:
    """What is missing between a trained encoder and its Dice: fit, score, evaluate; None when all is there."""
    for row in run_rows(runs)[0]:
        if row["kind"] == "detector" and row["encoder"] == encoder.run_id:
            return _step_of_detector(runs, encoder, read_run(runs / row["run_id"]))
    run_id = f"{encoder.run_id[:88]}-gaussian"
    return Step("Fit a Gaussian on this encoder", tuple(_fit_argv(runs, encoder, run_id)), run_id)


def take_over_argv(runs: Path, run: Run, job: Job | None = None) -> list[str] | None:
    """What goes on with a run in place of a writer that does not answer; None when its record does not say what."""
    if run.kind == "encoder" and not stage_done(run, "encoder"):
        words = resume_argv(runs, run, job)
    elif run.kind == "detector" and (step := _step_of_detector(runs, run, run)) is not None:
        words = list(step.argv)
    else:
        return None
    return words if TAKE_OVER in words else [*words, TAKE_OVER]


def again_argv(runs: Path, run: Run) -> list[str]:
    """What makes a run again, on the scans, the split and the preprocessing that it had."""
    return argv_of(run, _place(runs, scans_of(runs, run)))


def compare_again_argv(runs: Path, found: Mapping[str, Any]) -> list[str]:
    """What makes a finished comparison again, on the split of its own runs."""
    seed = found["plan"]["seeds"][0]
    run = open_run(runs, f"cmp-{found['plan']['name']}-untrained-s{seed}")
    return comparison_argv(found, _place(runs, scans_of(runs, run)))


def start_once(runs: Path, argv: Sequence[str]) -> Job:
    """Start a command unless the same one is at work; a double click, or another browser, gets the same job.

    The token counts the ended jobs of the same words, so a repetition after an end is a new job.
    """
    words = list(argv)
    ended = 0
    for job in list_jobs(runs):
        if list(job.argv) == words:
            if job.active:
                return job
            ended += 1
    return start_job(runs, words, token=json.dumps([words, ended]))


def in_shell(argv: Sequence[str]) -> str:
    """The command as it would be typed."""
    return "python cli.py " + shlex.join(argv)


def _step_of_detector(runs: Path, encoder: Run, run: Run) -> Step | None:
    where = ("--runs", str(runs.absolute()))
    if not stage_done(run, "detector"):
        if run.run_id != f"{encoder.run_id[:88]}-gaussian":
            return None
        asked = run.record["recipe"] and run.record["cohort"]  # begun in another way than by this button
        again = again_argv(runs, run) if asked else _fit_argv(runs, encoder, run.run_id)
        return Step("Go on fitting the Gaussian", tuple(again), run.run_id)
    scored = [i for role in ROLES[1:] for i in run.record["split"].get(role, [])]
    if not all(stage_done(run, stage_name("scores", i)) for i in scored):
        return Step(f"Score the scans with {run.name}", ("score", run.run_id, *where), run.run_id)
    if not stage_done(run, "evaluation"):
        return Step(f"Evaluate {run.name}", ("evaluate", run.run_id, *where), run.run_id)
    return None


def _fit_argv(runs: Path, encoder: Run, run_id: str) -> list[str]:
    scans = scans_of(runs, encoder)
    return [
        *("fit", *scan_words(_place(runs, scans), as_json(scans.preprocessing))),
        *("--detector", "gaussian", "--encoder", encoder.run_id),
        *(f"--name=Gaussian, {encoder.name}", "--run-id", run_id),
    ]


def _place(runs: Path, scans: Scans) -> Place:
    return Place(scans.cohort, scans.layout, scans.split, str(runs.absolute()), scans.choices)
