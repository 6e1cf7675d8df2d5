"""Which runs there are, and the one that a user means."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.runs.lock import lock_holder
from core.runs.remembered import identity_of, remembered
from core.runs.run_record import Run, read_run, runs_flag
from data.errors import BadInput, EnvironmentProblem, IntegrityError

_MAKER = "heads 1"
"""Changes with what `list_heads` keeps."""


@dataclass(frozen=True)
class Head:
    """What is asked of every run when one is looked for."""

    run_id: str
    kind: str
    name: str
    sequence: int


def open_run(runs: Path, which: str, kind: str | None = None) -> Run:
    """The run that a user means: an id, the beginning of one, a path to it, or "latest" (optionally of one kind).

    Names are matched against the folders that exist and never joined to a path. BadInput lists what there is.
    """
    names = run_names(runs)
    if not names:
        raise BadInput(f"No runs in {shown_path(runs)} yet. Make one: python cli.py demo{runs_flag(runs)}")
    if which == "latest":
        found, problems = list_heads(runs)
        fitting = [head.run_id for head in found if kind in (None, head.kind)]
        if not fitting:
            raise BadInput(
                f"No run of kind {kind!r} in {shown_path(runs)}. "
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
        raise EnvironmentProblem(f"Cannot read {shown_path(runs)}: {error.strerror}.") from error
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


def _match(runs: Path, names: list[str], which: str) -> str:
    if which in names:
        return which
    if "/" in which or os.sep in which or which in (".", ".."):
        return _match_path(runs, names, which)
    beginning = [name for name in names if which and name.startswith(which)]
    if len(beginning) == 1:
        return beginning[0]
    problem = "fits several runs" if beginning else f"is not in {shown_path(runs)}"
    choices = (beginning or names)[-8:]
    more = "" if len(choices) == len(beginning or names) else " and more"
    raise BadInput(f"Run {which!r} {problem}. There are: {', '.join(choices)}{more}. Or say: latest")


def _of_kind(runs: Path, kind: str) -> str:
    """Up to five runs of a kind, newest first, or that there is none."""
    fitting = [head.run_id for head in list_heads(runs)[0] if head.kind == kind]
    if not fitting:
        return f"{shown_path(runs)} has no run of kind {kind!r} yet."
    return f"There are: {', '.join(fitting[:5])}{' and more' if len(fitting) > 5 else ''}."


def _match_path(runs: Path, names: list[str], which: str) -> str:
    try:
        path = Path(which).resolve()
    except (OSError, ValueError):
        path = Path("/")
    if path.parent == runs.resolve() and path.name in names:
        return path.name
    raise BadInput(
        f"{which!r} is no run in {shown_path(runs)}. Give the id of a run there, or another --runs directory."
    )


def shown_path(directory: Path) -> str:
    """A path as messages show it: relative ones with their dot."""
    return str(directory) if directory.is_absolute() else f"./{directory}"
