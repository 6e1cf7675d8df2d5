"""Stages of a run: whole directories that are committed at once, and what they hold."""

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar

from core.runs.lock import hold_lock
from core.runs.provenance import computed_by, peak_memory_mb, reset_peak_memory
from core.runs.run_record import Run
from core.runs.store import check_writer, update_run
from data.errors import BadInput, EnvironmentProblem, IntegrityError
from data.files import (
    MANIFEST,
    committed_directory,
    committed_file,
    is_committed,
    load_committed_array,
    read_committed_json,
    refuse_links,
    refuse_outside,
    verify_directory,
)
from data.json_files import read_sealed_json, write_sealed_json
from data.names import folder_name
from data.whole_files import clear_litter, remove_unfinished

if TYPE_CHECKING:  # lists of runs come without it
    import numpy as np

T = TypeVar("T")
TURN = ".turn"
"""Within a run: the lock of those who commit beside its writer."""
_TURN_SECONDS = 20.0
MADE_BY: Mapping[str, str] = {
    "encoder": "pretrain",
    "detector": "fit",
    "scores": "score",
    "evaluation": "evaluate",
    "left-out": "evaluate --leave-one-out",
    "diagnosis": "diagnose",
    "diagnosis-reference": "diagnose",
    "whatifs": "what-if",
    "pooled-counts": "compare-pretraining",
}
"""The verb that makes a stage; the others have the name of their verb."""
_unkept: set[Path] = set()
_unkept_lock = threading.Lock()


@contextlib.contextmanager
def stage(run: Run, name: str) -> Iterator[Path]:
    """A scratch directory that is committed as `run/name` when the block ends; seconds and peak memory are recorded.

    `name` may be nested ("scores/sub-01"). A process that has lost the lock in the meantime commits nothing.
    """
    target = stage_directory(run, name)
    check_writer(run)
    reset_peak_memory()
    began = time.perf_counter()
    with committed_directory(target, within=run.directory, about=about_stage(run, name)) as scratch:
        yield scratch
        check_writer(run)
    seconds = round(time.perf_counter() - began, 3)
    update_run(run, stages={name: {"seconds": seconds, "peak_mb": peak_memory_mb(), "computed_by": computed_by()}})


def stage_name(stage: str, *ids: str) -> str:
    """The name of one stage of several, such as the scores of a subject: any id becomes one safe component."""
    return "/".join((stage, *map(folder_name, ids)))


def about_stage(run: Run, name: str) -> dict[str, Any]:
    """What the manifest of a stage says of itself: which one, of which run, and the verb that makes it."""
    first = name.partition("/")[0]
    return {"stage": name, "run": run.record.get("identity"), "made_by": MADE_BY.get(first, first)}


@contextlib.contextmanager
def stage_beside(run: Run, name: str) -> Iterator[Path]:
    """A scratch directory that is committed as `run/name` without the run's lock: for what is computed from a run.

    A job that writes the run at the same time is not in its way, and keeps off its scratch. Two processes that commit
    at once wait for one another: the block is for writing, compute before it.
    """
    target = stage_directory(run, name)
    refuse_links(run.directory)
    with _turn(run.directory / TURN):
        if target.parent == run.directory:  # where the writer commits, perhaps from another machine
            clear_litter(target.parent)
        else:
            remove_unfinished(target.parent)
        with committed_directory(target, within=run.directory, about=about_stage(run, name)) as scratch:
            yield scratch


@contextlib.contextmanager
def _turn(place: Path) -> Iterator[None]:
    """Hold the lock of `place`, after those who hold it for a moment. BadInput when it is not given back."""
    deadline = time.monotonic() + _TURN_SECONDS
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(hold_lock(place))
                break
            except BadInput:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield


def record_duration(run: Run, name: str, began: float) -> None:
    """Write seconds since `began` (time.perf_counter) and peak memory of a stage into run.json.

    Only there: within a committed directory they would make two equal results differ.
    """
    seconds = round(time.perf_counter() - began, 3)
    update_run(run, stages={name: {"seconds": seconds, "peak_mb": peak_memory_mb(), "computed_by": computed_by()}})


def stage_done(run: Run, name: str, verify: bool = False) -> bool:
    """Whether a stage is committed; with `verify` also whether every byte is what its manifest says."""
    directory = stage_directory(run, name)
    if not is_committed(directory):
        return False
    if verify:
        try:
            verify_stage(run, name)
        except IntegrityError:
            return False
    return True


def refuse_lost_manifest(run: Run, name: str) -> None:
    """IntegrityError when files of a committed stage are there without a manifest: it is not one to come.

    An empty folder holds nothing that could be believed: it is as good as a deleted one.
    """
    directory = stage_directory(run, name)
    if name not in run.record["stages"] or is_committed(directory):
        return
    if directory.is_dir() and any(directory.iterdir()):
        again = MADE_BY.get(name, name)
        raise IntegrityError(
            f"{directory / MANIFEST} is missing, so nothing there can be believed. Delete {directory} and repeat "
            f"`{again}`; it is computed anew."
        )


def verify_stage(run: Run, name: str) -> None:
    """IntegrityError unless a stage is this run's own and every byte is what was committed."""
    verify_directory(stage_directory(run, name), _expected(run, name))


def stage_json(run: Run, name: str, file: str) -> Any:
    """The value of a JSON file of a stage. IntegrityError unless it is what this run committed."""
    return read_committed_json(stage_directory(run, name), file, _expected(run, name))


def stored_json(run: Run, name: str, file: str = "result.json") -> Any | None:
    """`stage_json`, or None when the stage is not there yet."""
    return stage_json(run, name, file) if stage_done(run, name) else None


def undamaged(read: Callable[[], T | None], say: Callable[[str], None]) -> T | None:
    """What `read` gives; None, and said, when it is damaged: for the one who computes it anew, or shows the rest."""
    try:
        return read()
    except IntegrityError as error:
        say(str(error))
        return None


def stage_array(run: Run, name: str, file: str) -> "np.ndarray":
    """A .npy file of a stage, memory-mapped. IntegrityError unless it is what this run committed."""
    return load_committed_array(stage_directory(run, name), file, _expected(run, name))


def stage_file(run: Run, name: str, file: str) -> Path:
    """The path of a file of a stage. IntegrityError unless it is what this run committed."""
    return committed_file(stage_directory(run, name), file, _expected(run, name))


def stage_directory(run: Run, name: str) -> Path:
    """Where a stage lies. BadInput for a name that would leave the run directory."""
    parts = _stage_parts(name)
    directory = run.directory.joinpath(*parts)
    above = directory.parents[: len(parts) - 1] if len(parts) > 1 else ()
    linked = any(map(os.path.islink, (directory, *above)))
    if linked and not directory.resolve().is_relative_to(run.directory.resolve()):
        raise BadInput(f"{name!r} leads out of the run directory through a link. Remove the link.")
    return directory


@functools.lru_cache(maxsize=4096)
def _stage_parts(name: str) -> tuple[str, ...]:
    """The folders of a stage's name, one in the other. BadInput for a name that would leave the run directory."""
    path = PurePath(name)
    parts = path.parts
    if not parts or path.is_absolute() or any(p == ".." or p.startswith(".tmp-") for p in parts) or "\0" in name:
        raise BadInput(f"{name!r} cannot name a stage. Use a name inside the run, such as scores/sub-01.")
    return parts


def keep_json(run: Run, name: str, value: Mapping[str, Any]) -> None:
    """Keep what can be computed again as `run/name.json`, with a digest of itself; where nothing can be written, not.

    Whoever reads a run may keep something: the file is replaced in one step, and needs no lock.
    """
    path = stage_directory(run, name + ".json")
    refuse_outside(path, run.directory)
    with kept_if_possible(run):
        write_sealed_json(path, value)


@contextlib.contextmanager
def kept_if_possible(run: Run) -> Iterator[None]:
    """For what is kept so that it need not be computed again: where it cannot be written, said once and done without.

    Runs that may only be read are so read by everything that reads. The note goes to stderr, once a run and process.
    """
    try:
        yield
    except EnvironmentProblem as problem:
        with _unkept_lock:
            if run.directory in _unkept:
                return
            _unkept.add(run.directory)
        print(f"note: run {run.run_id} keeps nothing of what is computed now: {problem}", file=sys.stderr)


def kept_json(run: Run, name: str) -> dict[str, Any] | None:
    """What `keep_json` kept; None when there is nothing, or it is damaged and must be computed again."""
    path = stage_directory(run, name + ".json")
    with contextlib.suppress(IntegrityError, OSError):
        return read_sealed_json(path)
    return None


def _expected(run: Run, name: str) -> dict[str, Any]:
    """What the manifest of a stage must say. Runs of schema 1 have no identity, and no stage of theirs names one."""
    return {"stage": name, "run": run.record.get("identity")}
