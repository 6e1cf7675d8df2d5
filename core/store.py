"""Run directories: the only contract between a process that computes and everything that shows its results.

A run is a folder with `run.json` (what was asked, what came of it), `events.jsonl` (the journal) and one committed
directory per stage. Runs are ordered by a sequence number, never by a clock.
"""

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import marshal
import os
import re
import shlex
import shutil
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar

from core.journal import JOURNAL, append_line, read_lines
from core.lock import HEARTBEAT_SECONDS, check_fence, hold_lock, lock_holder
from core.provenance import computed_by, numeric_differences, numeric_versions, plain, reset_peak_memory, threads
from core.provenance import environment as environment
from core.provenance import fingerprint as fingerprint
from core.provenance import git_commit as git_commit
from core.provenance import peak_memory_mb as peak_memory_mb
from core.record_shape import wrong_fields, wrong_leaves
from core.remembered import identity_of, remembered
from data import trouble
from data.cohort import ROLES, Split
from data.errors import BadInput, EnvironmentProblem, IntegrityError
from data.files import (
    MANIFEST,
    SEAL,
    clear_litter,
    committed_directory,
    committed_file,
    compact_json,
    content_digest,
    digest_with_known,
    is_committed,
    load_committed_array,
    parsed_json,
    read_committed_json,
    read_sealed_json,
    read_text,
    refuse_links,
    refuse_outside,
    remove_unfinished,
    scratch_name,
    verify_directory,
    without_seal,
    write_json,
    write_sealed_json,
)
from data.names import folder_name

if TYPE_CHECKING:  # lists of runs come without it
    import numpy as np

T = TypeVar("T")
RUNS_DEFAULT = Path("runs")
TURN = ".turn"
"""Within a run: the lock of those who commit beside its writer."""
_TURN_SECONDS = 20.0
SCHEMA = 2
"""Of run.json: 2 carries a digest of itself and the identity that its stages name; 1 has neither and is still read."""
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
_IDENTITY = ("kind", "recipe", "cohort", "split", "preprocessing", "seed", "parents")
"""What a run was started with: its stages carry a hash of it, so that none is taken for another run's."""
STATUSES = ("running", "finished", "failed", "interrupted")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MAKER = "heads 1"
"""Changes with what `list_heads` keeps."""


_unkept: set[Path] = set()
_unkept_lock = threading.Lock()


@dataclass(frozen=True)
class Run:
    """One run directory and what its run.json said when it was read."""

    directory: Path
    record: dict[str, Any]
    generation: int | None = None
    """The fencing token of `lock`, when this process holds it."""

    @property
    def run_id(self) -> str:
        """Name of the run, unique in its runs directory."""
        return str(self.record["run_id"])

    @property
    def as_argument(self) -> str:
        """How a printed command names it: its id, and where it lies unless that is the usual place."""
        return self.run_id + runs_flag(self.directory.parent)

    @property
    def kind(self) -> str:
        """What it made: encoder, detector, demo."""
        return str(self.record["kind"])

    @property
    def name(self) -> str:
        """What the user called it."""
        return str(self.record["name"])

    @property
    def status(self) -> str:
        """running, finished, failed or interrupted, as written; `current_status` also asks whether it is alive."""
        return str(self.record["status"])

    @property
    def sequence(self) -> int:
        """Place in the order of creation."""
        return int(self.record["sequence"])


def runs_flag(runs: Path) -> str:
    """What a printed command needs so that it finds the same runs directory."""
    return "" if runs == RUNS_DEFAULT else f" --runs {shlex.quote(str(runs))}"


@dataclass(frozen=True)
class Head:
    """What is asked of every run when one is looked for."""

    run_id: str
    kind: str
    name: str
    sequence: int


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


def identity_of_record(record: Mapping[str, Any]) -> str:
    """What a run was started with, as a digest. Not where its table lies, nor in which order it names its scans."""
    told = _for_identity(record)
    return content_digest([told[key] for key in _IDENTITY])


def _for_identity(record: Mapping[str, Any]) -> dict[str, Any]:
    scans = {key: record["cohort"].get(key) for key in ("fingerprint", "subjects")}
    return {**record, "cohort": scans, "split": {role: sorted(ids) for role, ids in record["split"].items()}}


def check_run_id(run_id: str) -> None:
    """BadInput unless a run may be called so."""
    if not _ID.fullmatch(run_id):
        raise BadInput(
            f"{run_id!r} cannot name a run. Use up to 100 letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit."
        )


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
    _check_writer(run)
    record = _read_record(run.directory)
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
    held = _read_record(run.directory).get("equal_bits") or {}
    reasons = list(dict.fromkeys([*held.get("reasons", ()), reason]))
    return update_run(run, equal_bits={"claimed": False, "reasons": reasons})


def unequal_bits(run: Run) -> str:
    """Why the same commands may not give this run's bits again, in a sentence; empty when they do."""
    reasons = (run.record.get("equal_bits") or {}).get("reasons", [])
    return f"The same commands may give slightly other numbers: {'; '.join(reasons)}." if reasons else ""


def open_run(runs: Path, which: str, kind: str | None = None) -> Run:
    """The run that a user means: an id, the beginning of one, a path to it, or "latest" (optionally of one kind).

    Names are matched against the folders that exist and never joined to a path. BadInput lists what there is.
    """
    names = run_names(runs)
    if not names:
        raise BadInput(f"No runs in {_shown(runs)} yet. Make one: python cli.py demo{runs_flag(runs)}")
    if which == "latest":
        found, problems = list_heads(runs)
        fitting = [head.run_id for head in found if kind in (None, head.kind)]
        if not fitting:
            raise BadInput(
                f"No run of kind {kind!r} in {_shown(runs)}. "
                f"It has: {', '.join(sorted({head.kind for head in found})) or 'none that can be read'}. "
                + " ".join(problems[:3])
            )
        name = fitting[0]
    else:
        name = _match(runs, names, which)
    run = read_run(runs / name)
    if kind is not None and run.kind != kind:
        raise BadInput(f"Run {name} is of kind {run.kind!r}; here {kind!r} is needed. {_of_kind(runs, kind)}")
    return run


def list_runs(runs: Path) -> tuple[list[Run], list[str]]:
    """All runs, newest first, and in words what is wrong with the folders that could not be read."""
    found: list[Run] = []
    problems: list[str] = []
    for name in run_names(runs):
        try:
            found.append(read_run(runs / name))
        except (BadInput, IntegrityError, OSError) as error:
            if (runs / name).exists():  # a run that was deleted just now is no problem
                problems.append(str(error))
    return sorted(found, key=lambda run: (run.sequence, run.run_id), reverse=True), problems


def list_heads(runs: Path) -> tuple[list[Head], list[str]]:
    """As `list_runs`, and reads only what has changed since it was last asked, in this process or another."""
    problems: dict[str, str] = {}

    def make(name: str) -> tuple[Any, bool]:
        try:
            run = read_run(runs / name)
        except (BadInput, IntegrityError, OSError) as error:
            problems[name] = str(error)
            return None, False
        return [run.run_id, run.kind, run.name, run.sequence], True

    wanted = {name: identity_of(f"{runs}/{name}/run.json") for name in run_names(runs)}
    found = remembered(index_directory(runs) / "heads.json", _MAKER, wanted, make)
    heads = [Head(*values) for values in found.values() if values is not None]
    told = [text for name, text in problems.items() if (runs / name).exists()]
    return sorted(heads, key=lambda head: (head.sequence, head.run_id), reverse=True), told


def read_run(directory: Path) -> Run:
    """The run in a directory. BadInput when there is none, IntegrityError when its record is damaged."""
    return Run(directory, _read_record(directory))


def run_with_id(runs: Path, run_id: str) -> Run | None:
    """The run with exactly this id, when there is one. Only its own record is read."""
    return read_run(runs / run_id) if run_id in run_names(runs) else None


def run_names(runs: Path) -> list[str]:
    """Folders of a runs directory that may be runs, by name. Nothing in them is read."""
    try:
        with os.scandir(runs) as entries:
            names = [e.name for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise EnvironmentProblem(f"Cannot read {_shown(runs)}: {error.strerror}.") from error
    return sorted(names)


def index_directory(runs: Path) -> Path:
    """Where is kept what was read of many runs, to be made anew whenever it is missing."""
    return runs / ".cache" / "index"


def current_status(run: Run) -> str:
    """The status, except that a run whose process is gone is "interrupted" however its record still reads."""
    return status_now(run.directory, run.status)


def status_now(directory: Path, status: str) -> str:
    """`current_status` of a run directory whose record says `status`."""
    if status == "running" and lock_holder(directory) is None and (directory / "lock").is_dir():
        return "interrupted"
    return status


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
        held = Run(run.directory, _read_record(run.directory), generation)
        _announce(held)
        yield held


@contextlib.contextmanager
def stage(run: Run, name: str) -> Iterator[Path]:
    """A scratch directory that is committed as `run/name` when the block ends; seconds and peak memory are recorded.

    `name` may be nested ("scores/sub-01"). A process that has lost the lock in the meantime commits nothing.
    """
    target = stage_directory(run, name)
    _check_writer(run)
    reset_peak_memory()
    began = time.perf_counter()
    with committed_directory(target, within=run.directory, about=about_stage(run, name)) as scratch:
        yield scratch
        _check_writer(run)
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
            f"Cannot write in {_shown(root)}: {error.strerror}. {trouble.remedy(error, root)}"
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
    raise BadInput(f"There is a run {stem!r} in {_shown(runs)} already. Choose another name, or resume that one.")


def _match(runs: Path, names: list[str], which: str) -> str:
    if which in names:
        return which
    if "/" in which or os.sep in which or which in (".", ".."):
        return _match_path(runs, names, which)
    beginning = [name for name in names if which and name.startswith(which)]
    if len(beginning) == 1:
        return beginning[0]
    problem = "fits several runs" if beginning else f"is not in {_shown(runs)}"
    choices = (beginning or names)[-8:]
    more = "" if len(choices) == len(beginning or names) else " and more"
    raise BadInput(f"Run {which!r} {problem}. There are: {', '.join(choices)}{more}. Or say: latest")


def _of_kind(runs: Path, kind: str) -> str:
    """Up to five runs of a kind, newest first, or that there is none."""
    fitting = [head.run_id for head in list_heads(runs)[0] if head.kind == kind]
    if not fitting:
        return f"{_shown(runs)} has no run of kind {kind!r} yet."
    return f"There are: {', '.join(fitting[:5])}{' and more' if len(fitting) > 5 else ''}."


def _match_path(runs: Path, names: list[str], which: str) -> str:
    try:
        path = Path(which).resolve()
    except (OSError, ValueError):
        path = Path("/")
    if path.parent == runs.resolve() and path.name in names:
        return path.name
    raise BadInput(f"{which!r} is no run in {_shown(runs)}. Give the id of a run there, or another --runs directory.")


def _read_record(directory: Path) -> dict[str, Any]:
    path = directory / "run.json"
    try:
        text = read_text(path)
        record = parsed_json(text, path)
    except FileNotFoundError:
        reason = "has no run.json: it is not a run" if directory.is_dir() else "is not there: it was deleted or renamed"
        again = f"python cli.py runs{runs_flag(directory.parent)}"
        raise BadInput(f"{directory} {reason}. List the runs: {again}") from None
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror or error}. {_remedy(path)}") from error
    except IntegrityError as error:
        raise IntegrityError(f"{error} {_remedy(path)}") from error
    _check_record(record, path, text)
    return without_seal(record) | {"run_id": directory.name}


def _check_record(record: Any, path: Path, text: str) -> None:
    """IntegrityError unless run.json has its form, is what was written, and its split is one that could be made."""
    schema = record.get("schema") if isinstance(record, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise BadInput(
            f"{path} was written by a newer version (schema {schema}, this one reads {SCHEMA}). "
            "Use that version, or another --runs directory."
        )
    scans = _scans_of(record)
    judged = _judged.get(scans)
    wrong = wrong_fields(record, but_scans=judged is not None)
    whole = not wrong and _keeps_seal(record, judged)
    if not wrong and (not whole or "\\u" in text):  # what keeps its seal lacks NaN and infinity, not half letters
        wrong = wrong_leaves(record)
    if wrong:
        raise IntegrityError(f"{path} is damaged: {', '.join(wrong[:5])} missing or of the wrong type. {_remedy(path)}")
    if not whole and (SEAL in record or "identity" in record or record["schema"] >= 2):
        raise IntegrityError(f"{path} is not what was written: it was damaged or edited. {_remedy(path)}")
    judged = judged or _judge(record, scans)
    if "identity" in record and record["identity"] != _identity_of(record, judged):
        raise IntegrityError(
            f"{path} was edited: what it says of recipe, scans, split, seed or encoder is not what the run was started "
            f"with. {_remedy(path)}"
        )
    if judged.problem:
        raise IntegrityError(f"{path} cannot be right: {judged.problem} {_remedy(path)}")


@dataclass(frozen=True)
class _Judged:
    """What a cohort and a split, which the runs of a study share, say; both have their form."""

    told: Mapping[str, str]
    """Both as JSON, as the seal counts them."""
    scans: str
    """What of the cohort belongs to the identity of a run, as JSON."""
    split: str
    problem: str | None
    """Why the split is not one of the cohort."""


_judged: dict[bytes, _Judged] = {}
"""By what a record says of both, so that a list of runs judges a cohort once and writes it down once."""
_MOST_JUDGED = 16


def _scans_of(record: Any) -> bytes:
    """Cohort and split of a record: equal bytes for equal values of equal types only."""
    if not isinstance(record, dict):
        return b""
    try:
        return marshal.dumps([record.get("cohort"), record.get("split")], 2)
    except ValueError:  # too deep
        return b""


def _judge(record: Mapping[str, Any], scans: bytes) -> _Judged:
    told = _for_identity(record)
    judged = _Judged(
        {key: compact_json(record[key]) for key in ("cohort", "split")},
        compact_json(told["cohort"]),
        compact_json(told["split"]),
        _split_problem(record["split"], record["cohort"]),
    )
    if len(_judged) >= _MOST_JUDGED:
        _judged.clear()
    if scans:
        _judged[scans] = judged
    return judged


def _keeps_seal(record: Mapping[str, Any], judged: _Judged | None) -> bool:
    """Whether a record carries the digest of the rest of it."""
    try:
        return bool(record.get(SEAL) == digest_with_known(without_seal(record), judged.told if judged else {}))
    except (ValueError, RecursionError):  # NaN, infinity, or deeper than can be written
        return False


def _identity_of(record: Mapping[str, Any], judged: _Judged) -> str:
    """`identity_of_record`, with what is written down already."""
    at = _IDENTITY.index("cohort")
    before, after = (
        compact_json([record[key] for key in keys])[1:-1] for keys in (_IDENTITY[:at], _IDENTITY[at + 2 :])
    )
    return hashlib.sha256(f"[{before},{judged.scans},{judged.split},{after}]".encode()).hexdigest()


def _remedy(path: Path) -> str:
    return f"Put back a copy of it, or delete {path.parent} and make the run again."


def _split_problem(split: Mapping[str, Any], cohort: Mapping[str, Any]) -> str | None:
    """Why the split of a record of the right form is not one of its cohort, in words; None when it is."""
    strange = sorted(split.keys() - set(ROLES))
    if strange:
        return f"its split has {', '.join(map(repr, strange[:3]))}; there are {', '.join(ROLES)}."
    try:
        rebuilt = Split(**{role: tuple(split.get(role, ())) for role in ROLES})
    except BadInput as error:
        return str(error)
    subjects = cohort.get("subjects", [])
    if not subjects:
        return None
    by_id = {s["subject_id"]: s for s in subjects}
    unknown = [i for role in ROLES for i in getattr(rebuilt, role) if i not in by_id]
    if unknown or len(by_id) != len(subjects):
        return (
            f"its split and its cohort name other subjects: {', '.join(map(repr, unknown[:3])) or 'one stands twice'}."
        )
    left_out = sorted(by_id.keys() - {i for role in ROLES for i in getattr(rebuilt, role)})
    if left_out:
        return f"subjects of its cohort are in no split: {', '.join(map(repr, left_out[:3]))}."
    ill = [i for role in ("train", "calibration") for i in getattr(rebuilt, role) if by_id[i].get("healthy") is False]
    if ill:
        return f"subjects with lesions train or calibrate: {', '.join(map(repr, ill[:3]))}."
    moved = [i for role in ROLES for i in getattr(rebuilt, role) if by_id[i].get("role", role) != role]
    if moved:
        return f"subjects stand in another split than the cohort says: {', '.join(map(repr, moved[:3]))}."
    keys = {s["subject_id"]: s.get("key") for s in subjects}
    if "fingerprint" in cohort and None not in keys.values() and cohort["fingerprint"] != content_digest(keys):
        return "the prepared scans that it names are not those of its cohort."
    return None


def _expected(run: Run, name: str) -> dict[str, Any]:
    """What the manifest of a stage must say. Runs of schema 1 have no identity, and no stage of theirs names one."""
    return {"stage": name, "run": run.record.get("identity")}


def _with_versions(record: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Each stage with the versions, of what numbers depend on, that are not those that the run began with."""
    if not stages:
        return {}
    differing = numeric_differences(record.get("versions") or {}, numeric_versions())
    own = {"versions": {name: now for name, _, now in differing}} if differing else {}
    return {name: {**stage, **own} for name, stage in stages.items()}


def _check_writer(run: Run) -> None:
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


def _shown(directory: Path) -> str:
    return str(directory) if directory.is_absolute() else f"./{directory}"
