"""What the evaluation of a run has committed. Apart from the evaluation, so that reading a number needs no torch."""

import contextlib
from typing import Any

from core.runs.journal import JOURNAL
from core.runs.run_record import Run
from core.runs.stages import refuse_lost_manifest, stage_directory, stage_done, stage_json
from core.runs.store import read_events
from data.errors import BadInput
from data.files import MANIFEST
from data.hashed import sha256_file

EVALUATED = "evaluated"
"""Kind of the event that counts a look at the test set."""


def read_metrics(run: Run) -> dict[str, Any]:
    """What `evaluate_run` committed. BadInput with the command when there is nothing yet."""
    if not stage_done(run, "evaluation"):
        refuse_lost_manifest(run, "evaluation")
        raise BadInput(f"Run {run.run_id} is not evaluated yet. Do it: python cli.py evaluate {run.as_argument}")
    metrics: dict[str, Any] = stage_json(run, "evaluation", "metrics.json")
    return metrics


def read_levels(run: Run) -> dict[str, list[float]]:
    """The byte levels of every layer set's maps, as `evaluate_run` committed them."""
    levels: dict[str, list[float]] = stage_json(run, "evaluation", "levels.json")
    return levels


def looks_at_test(run: Run) -> int:
    """How often this run has looked at its test set.

    An evaluation whose process was killed after its commit counts once with its repetition, and by itself when another
    one follows; the committed evaluation counts even when the journal does not tell of it. 0 means that there is no
    journal any more, so that nobody knows.
    """
    if not (run.directory / JOURNAL).is_file():
        return 0
    told = looks_told(run)
    present = evaluation_name(run)
    if present is not None and told and told[-1][0] not in ("", present):
        told = [*told, (present, True)]
    if present is not None and not told:
        told = [(present, True)]
    following = [name for name, _ in told[1:]] + [None]
    repeated = sum(not returned and name == after for (name, returned), after in zip(told, following, strict=True))
    return len(told) - repeated


def looks_told(run: Run) -> list[tuple[str, bool]]:
    """The evaluations in the journal: name (empty for those of versions that wrote none), and whether it returned."""
    return [
        (str(event.get("evaluation") or ""), event.get("returned") is not False)
        for event in read_events(run)
        if event.get("kind") == EVALUATED
    ]


def evaluation_name(run: Run) -> str | None:
    """What tells the committed evaluation from every other: the hash of its manifest."""
    with contextlib.suppress(OSError):
        return sha256_file(stage_directory(run, "evaluation") / MANIFEST)
    return None
