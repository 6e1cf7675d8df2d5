"""Versions that a run was made with against those that are here: whether its numbers may stand beside new ones."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from core.runs.provenance import numeric_differences, numeric_versions
from core.runs.run_record import Run
from core.runs.store import lose_equal_bits

_MOST = 3
_VERSION = re.compile(r"[0-9A-Za-z.+_-]{1,40}")


def version_notes(run: Run, present: Mapping[str, str] | None = None) -> list[str]:
    """What a reader of the run's numbers has to know of versions, a sentence each; nothing when all are as they were.

    Compared: Python's minor version and the packages that numbers depend on, as recorded at the start of the run and
    by each stage that ran with others. A package that was not recorded is not judged. `present`: what is here, when it
    was asked already.
    """
    recorded = _mapping(run.record.get("versions"))
    present = numeric_versions() if present is None else present
    notes = []
    if differing := numeric_differences(recorded, present):
        notes.append(
            f"Made with {_listed([f'{n} {_shown(then)}' for n, then, _ in differing])}, here is "
            f"{_listed([f'{n} {now}' for n, _, now in differing])}: numbers may differ in the last bits; do not mix "
            "them in one table."
        )
    for name, stage in _mapping(run.record.get("stages")).items():
        own = _mapping(_mapping(stage).get("versions"))
        if own:
            told = _listed([f"{_shown(package)} {_shown(version)}" for package, version in own.items()])
            notes.append(f"Its stage {_shown(name)} ran with {told}, unlike the run's beginning.")
    claim = _mapping(run.record.get("equal_bits"))
    if claim.get("claimed") is False:
        reasons = claim.get("reasons")
        why = "; ".join(map(str, reasons)) if isinstance(reasons, list) else ""
        notes.append(f"Equal bits on repetition are not claimed for it{': ' + why if why else ''}.")
    return notes


def note_resumed(run: Run, what: str) -> Run:
    """Withdraw the claim of equal bits when half-done work goes on with other versions than the run began with."""
    differing = numeric_differences(_mapping(run.record.get("versions")), numeric_versions())
    if not differing:
        return run
    told = _listed([f"{name} {_shown(then)} before, {now} then" for name, then, now in differing])
    return lose_equal_bits(run, f"{what} went on with other versions ({told})")


def notes_by_text(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Every version note of several runs, with the ids of those that it is about."""
    present = numeric_versions()
    return notes_of((run.run_id, version_notes(run, present)) for run in runs)


def notes_of(runs: Iterable[tuple[str, Sequence[str]]]) -> dict[str, list[str]]:
    """Notes by their text, with the ids of the runs that they are about, from ids and their notes."""
    found: dict[str, list[str]] = {}
    for run_id, notes in runs:
        for note in notes:
            found.setdefault(note, []).append(run_id)
    return found


def noted(note: str, run_ids: Sequence[str]) -> str:
    """One note in one line, in front of it the runs that it is about."""
    more = f" and {len(run_ids) - _MOST} more" if len(run_ids) > _MOST else ""
    return f"{', '.join(run_ids[:_MOST])}{more}: {note}"


def _listed(parts: Sequence[str]) -> str:
    return ", ".join(parts)


def _shown(text: Any) -> str:
    """A name or a version from a record, which somebody else may have written."""
    return str(text) if _VERSION.fullmatch(str(text)) else repr(str(text)[:40])


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
