"""The commands that made a run, as they would be typed: no path of the machine they ran on."""

import contextlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.detectors import kinds_that_can
from core.detectors.capabilities import TwoParts
from core.presentation.commands import in_shell
from core.runs.evaluated import read_metrics
from core.runs.listing import open_run
from core.runs.run_record import RUNS_DEFAULT, Run
from core.study.again import Place, argv_of, limits_argv, post_processing_argv, rule_words, what_if_argv
from data.errors import BadInput, IntegrityError

SPLIT_FILE = "split.json"


def commands_of(run: Run, metrics: Mapping[str, Any], diagnosis: Mapping[str, Any] | None) -> list[list[str]]:
    """Words of each command, in order: pretrain (when the encoder's run is here), fit, score, evaluate, and what the
    diagnosis has stored."""
    where = _place(run).runs_words()
    made = [*_making(run, metrics), ["evaluate", run.run_id, *where, *rule_words(metrics)]]
    if diagnosis is not None:
        made += [[*words, *where] for words in _explorations(run, diagnosis)]
        asked = [*_asked(metrics, diagnosis), *_protocol(diagnosis)]
        made.append(["diagnose", run.run_id, *where, *asked])
        return [*made, ["report", run.run_id, *where, *asked]]
    return [*made, ["report", run.run_id, *where]]


def _making(run: Run, metrics: Mapping[str, Any]) -> list[list[str]]:
    """From the scans to the scores; of a gated run first its two parts, as far as their runs are here."""
    if run.record["recipe"]["kind"] in kinds_that_can(TwoParts):
        return [*_parts(run), argv_of(run, _place(run), metrics=metrics)]
    encoder, place = _encoder(run), _place(run)
    made = [] if encoder is None else [argv_of(encoder, _place(encoder))]
    weights = Path(str(run.record["recipe"].get("weights") or "")).name
    return [*made, argv_of(run, place, weights=weights), ["score", run.run_id, *place.runs_words()]]


def _parts(run: Run) -> list[list[str]]:
    """What makes and evaluates the two runs of a gated one: each by its own rule, by which the gate may be cut."""
    made: list[list[str]] = []
    for which in dict.fromkeys((run.record["parents"]["gate"], run.record["parents"]["second"])):
        with contextlib.suppress(BadInput, IntegrityError):
            part = open_run(run.directory.parent, which)
            metrics = read_metrics(part)
            evaluate = ["evaluate", part.run_id, *_place(part).runs_words(), *rule_words(metrics)]
            made += [*_making(part, metrics), evaluate]
    return [words for n, words in enumerate(made) if words not in made[:n]]


def in_words(run: Run, metrics: Mapping[str, Any], diagnosis: Mapping[str, Any] | None) -> list[str]:
    """The commands for a shell, beginning with the one that writes the split of the run to a file."""
    record = json.dumps(Path(shown_runs(run), run.run_id, "run.json").as_posix())
    script = f'import json; json.dump(json.load(open({record}))["split"], open("{SPLIT_FILE}", "w"))'
    return [shlex.join(["python", "-c", script]), *map(in_shell, commands_of(run, metrics, diagnosis))]


def typed(run: Run, verb: str) -> str:
    """One command on a run as it would be typed."""
    return in_shell([verb, run.run_id, *_place(run).runs_words()])


def shown_runs(run: Run) -> str:
    """The runs directory as the user gave it; of an absolute path only what lies below here, else its last name."""
    return without_machine(run.directory.parent)


def without_machine(path: Path, runs: Path | None = None) -> str:
    """A path without the machine: relative to here, or to what holds the runs, else its last two names."""
    if not path.is_absolute():
        return path.as_posix()
    for base in (Path.cwd(), *([] if runs is None else [runs.absolute().parent])):
        if path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return path.name if runs is None else Path(*path.parts[-2:]).as_posix().lstrip("/")


def _place(run: Run) -> Place:
    """Where the commands find things: no path of the machine, and the split in a file."""
    cohort, runs = run.record["cohort"], shown_runs(run)
    path = without_machine(Path(str(cohort.get("path") or "cohort.csv")), run.directory.parent)
    other = runs if runs != RUNS_DEFAULT.as_posix() else None
    return Place(path, str(cohort.get("layout", "auto")), SPLIT_FILE, other, cohort.get("choices") or {})


def _explorations(run: Run, diagnosis: Mapping[str, Any]) -> list[list[str]]:
    """The jobs whose results the diagnosis has stored, each with the settings that it was done with."""
    layers = str(diagnosis["layer_set"])
    words = [
        what_if_argv(run.run_id, str(found["name"]), layers, found.get("protocol"))
        for found in diagnosis.get("what_ifs") or []
    ]
    words += [post_processing_argv(run.run_id, layers)] if diagnosis.get("post_processing") else []
    limits = diagnosis.get("detection_limits")
    return [*words, *([limits_argv(run.run_id, layers, limits)] if limits else [])]


def _asked(metrics: Mapping[str, Any], diagnosis: Mapping[str, Any]) -> list[str]:
    same = diagnosis["layer_set"] == metrics["headline"]
    return [] if same else ["--layers", str(diagnosis["layer_set"])]


def _protocol(diagnosis: Mapping[str, Any]) -> list[str]:
    return [] if diagnosis["protocol"] == "healthy" else ["--protocol", str(diagnosis["protocol"])]


def _encoder(run: Run) -> Run | None:
    parent = run.record.get("parents", {}).get("encoder")
    if not parent:
        return None
    try:
        return open_run(run.directory.parent, str(parent), "encoder")
    except (BadInput, IntegrityError):
        return None
