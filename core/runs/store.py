"""Run directories: the only contract between a process that computes and everything that shows its results.

A run is a folder with `run.json` (what was asked, what came of it), `events.jsonl` (the journal) and one committed
directory per stage. Runs are ordered by a sequence number, never by a clock.
"""

import contextlib
import dataclasses
import datetime
import os
import re
import shutil
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from core.runs.journal import JOURNAL, append_line, read_lines
from core.runs.listing import list_heads, shown_path
from core.runs.lock import HEARTBEAT_SECONDS, check_fence, hold_lock
from core.runs.provenance import (
    environment,
    fingerprint,
    git_commit,
    numeric_differences,
    numeric_versions,
    plain,
    threads,
)
from core.runs.run_record import SCHEMA, Run, check_run_id, identity_of_record, read_record
from data import trouble
from data.errors import BadInput, EnvironmentProblem
from data.files import refuse_links
from data.json_files import write_json, write_sealed_json
from data.whole_files import clear_litter, remove_unfinished, scratch_name

STATUSES = ("running", "finished", "failed", "interrupted")


def create_run(
    runs: Path,
    *,
    kind: str,
    name: str,
    recipe: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    cohort: Mapping[str, Any] | None = None,
    split: Mapping[str, Any] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    seed: int = 0,
    parents: Mapping[str, str] | None = None,
    run_id: str | None = None,
) -> Run:
    """A new run with status "running". Its id is date, name and a hash of the recipe: 2026-11-21_padim_3f9a.

    EnvironmentProblem when `runs` cannot be written, before anything is computed.
    """
    if run_id is not None:
        check_run_id(run_id)
    now = datetime.datetime.now(datetime.UTC)
    record = {
        "schema": SCHEMA,
        "kind": kind,
        "name": name,
        "created": now.isoformat(timespec="seconds"),
        "sequence": claim_sequence(runs),
        "status": "running",
        "error": None,
        "recipe": plain(recipe),
        "settings": plain(settings or {}),
        "cohort": plain(cohort or {}),
        "split": plain(split or {}),
        "preprocessing": plain(preprocessing or {}),
        "seed": seed,
        "versions": environment(),
        "threads": threads(),
        "git_commit": git_commit(),
        "parents": plain(parents or {}),
        "equal_bits": {"claimed": True, "reasons": []},
        "stages": {},
    }
    record["identity"] = identity_of_record(record)
    stem = run_id or f"{now:%Y-%m-%d}_{_slug(name)}_{fingerprint(recipe)[:4]}"
    run = _claim_directory(runs, stem, record, exact=run_id is not None)
    _announce(run)
    return run


def update_run(
    run: Run,
    *,
    status: str | None = None,
    error: str | None = None,
    settings: Mapping[str, Any] | None = None,
    cohort: Mapping[str, Any] | None = None,
    split: Mapping[str, Any] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    parents: Mapping[str, str] | None = None,
    stages: Mapping[str, Mapping[str, Any]] | None = None,
    equal_bits: Mapping[str, Any] | None = None,
) -> Run:
    """Replace the named fields of run.json in one step. The error text goes when work resumes.

    Stages are merged, each with those versions that are not the ones that the run began with.
    """
    if status is not None and status not in STATUSES:
        raise BadInput(f"No status {status!r}. There are: {', '.join(STATUSES)}.")
    check_writer(run)
    record = read_record(run.directory)
    given = {
        "status": status,
        "error": error,
        "settings": settings,
        "cohort": cohort,
        "split": split,
        "preprocessing": preprocessing,
        "parents": parents,
        "equal_bits": equal_bits,
    }
    record |= {key: plain(value) for key, value in given.items() if value is not None}
    if status in ("running", "finished") and error is None:
        record["error"] = None
    if "identity" in record:
        record["identity"] = identity_of_record(record)
    record["stages"] = record.get("stages", {}) | plain(_with_versions(record, stages or {}))
    write_sealed_json(run.directory / "run.json", record)
    return dataclasses.replace(run, record=record)


def lose_equal_bits(run: Run, reason: str) -> Run:
    """Write into run.json that a repetition need not give the same bits, and why. A claim once lost stays lost."""
    held = read_record(run.directory).get("equal_bits") or {}
    reasons = list(dict.fromkeys([*held.get("reasons", ()), reason]))
    return update_run(run, equal_bits={"claimed": False, "reasons": reasons})


def unequal_bits(run: Run) -> str:
    """Why the same commands may not give this run's bits again, in a sentence; empty when they do."""
    reasons = (run.record.get("equal_bits") or {}).get("reasons", [])
    return f"The same commands may give slightly other numbers: {'; '.join(reasons)}." if reasons else ""


@contextlib.contextmanager
def lock(run: Run, take_over: bool | None = None, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> Iterator[Run]:
    """Be the only writer of a run: `with lock(run) as run:`. Repairs what a killed predecessor left unfinished.

    BadInput when another process is writing; it says since when, which process, on which machine.
    """
    if not run.directory.is_dir():
        raise BadInput(f"Run {run.run_id} is no longer at {run.directory}: it was deleted or renamed.")
    refuse_links(run.directory)
    with hold_lock(run.directory, take_over, heartbeat_seconds) as generation:
        for parent in (run.directory, *(entry for entry in run.directory.iterdir() if _is_stage_parent(entry))):
            remove_unfinished(parent)
        held = Run(run.directory, read_record(run.directory), generation)
        _announce(held)
        yield held


def check_same(run: Run, asked: Mapping[str, Any], may_change: Collection[str] = ()) -> None:
    """Raise BadInput, showing every difference, unless `asked` agrees with what the run was started with.

    `asked` maps fields of run.json (recipe, settings, cohort, preprocessing, seed, ...) to their values now;
    `may_change` names keys that do not affect results, such as "settings.workers".
    """
    differences = [
        f"{key}: {before!r} -> {now!r}"
        for field, value in asked.items()
        for key, before, now in _differences(field, run.record.get(field), plain(value))
        if key not in may_change
    ]
    if differences:
        raise BadInput(
            f"Run {run.run_id} was started otherwise: {'; '.join(differences[:8])}"
            f"{' and more' if len(differences) > 8 else ''}. Repeat the command as it was, or start a new run."
        )


def append_event(run: Run, kind: str, values: Mapping[str, Any]) -> bool:
    """Append one event to the run's journal; False (and one warning a minute) when the disk refuses it."""
    return append_line(run.directory / JOURNAL, kind, values)


def read_events(run: Run, after: int = 0) -> list[dict[str, Any]]:
    """Events of the journal behind byte `after`; each carries `offset`, to be given as the next `after`."""
    return read_lines(run.directory / JOURNAL, after)


def claim_sequence(root: Path) -> int:
    """The next number of a directory, given to one caller only: an empty file that can be created once is the claim."""
    claims = root / ".sequence"
    try:
        claims.mkdir(parents=True, exist_ok=True)
        number = max((int(name) for name in os.listdir(claims) if name.isdecimal()), default=0)
        if not number:
            number = max((head.sequence for head in list_heads(root)[0]), default=0)
        while True:
            number += 1
            with contextlib.suppress(FileExistsError):
                os.close(os.open(claims / f"{number:08d}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
                return number
    except OSError as error:
        raise EnvironmentProblem(
            f"Cannot write in {shown_path(root)}: {error.strerror}. {trouble.remedy(error, root)}"
        ) from error


def _claim_directory(runs: Path, stem: str, record: dict[str, Any], exact: bool) -> Run:
    clear_litter(runs)
    scratch = runs / scratch_name()
    for attempt in range(1, 1000):
        run_id = stem if attempt == 1 else f"{stem}-{attempt}"
        record["run_id"] = run_id
        write_sealed_json(scratch / "run.json", record)
        try:
            scratch.rename(runs / run_id)
        except OSError as error:
            if not (runs / run_id).exists():
                shutil.rmtree(scratch, ignore_errors=True)
                raise EnvironmentProblem(
                    f"Cannot write {runs / run_id}: {error.strerror}. {trouble.remedy(error, runs)}"
                ) from error
            if exact:
                break
            continue
        return Run(runs / run_id, record)
    shutil.rmtree(scratch, ignore_errors=True)
    raise BadInput(f"There is a run {stem!r} in {shown_path(runs)} already. Choose another name, or resume that one.")


def _with_versions(record: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Each stage with the versions, of what numbers depend on, that are not those that the run began with."""
    if not stages:
        return {}
    differing = numeric_differences(record.get("versions") or {}, numeric_versions())
    own = {"versions": {name: now for name, _, now in differing}} if differing else {}
    return {name: {**stage, **own} for name, stage in stages.items()}


def check_writer(run: Run) -> None:
    """BadInput when the run is gone, Interrupted when another writer took its lock."""
    if not run.directory.is_dir():
        raise BadInput(f"Run {run.run_id} is no longer at {run.directory}: it was deleted or renamed.")
    if run.generation is not None:
        check_fence(run.directory, run.generation)


def _is_stage_parent(entry: Path) -> bool:
    return entry.is_dir() and not entry.is_symlink() and not entry.name.startswith(".") and entry.name != "lock"


def _announce(run: Run) -> None:
    # A job that started this process wants to know which run it works on.
    job = os.environ.get("DICESCOPE_JOB")
    if job and Path(job).is_dir():
        write_json(Path(job) / "run.json", {"run_id": run.run_id})


def _differences(key: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            yield from _differences(f"{key}.{name}", before.get(name), now.get(name))
    elif before != now:
        yield key, before, now


def _slug(name: str) -> str:
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_name.lower()).strip("-")[:40].strip("-") or "run"
