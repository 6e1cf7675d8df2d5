"""What the verbs of the command line share: where runs are, and how numbers are printed."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from core.runs.run_record import RUNS_DEFAULT, Run
from core.runs.versions import version_notes

EXIT_OK, EXIT_BAD_INPUT, EXIT_ENVIRONMENT, EXIT_INTEGRITY, EXIT_INTERRUPTED, EXIT_BUG = 0, 2, 3, 4, 5, 6
RUNS = RUNS_DEFAULT
Verbs = dict[str, tuple[Any, Callable[[Any], int]]]
"""Of a module: name of the verb, its arguments as a dataclass (or what makes one of the words), and what it does."""
Protocol = Literal["healthy", "validation"]
TakeOver = Annotated[
    bool,
    tyro.conf.arg(
        help="Also write where the lock is held by a process that cannot be asked (on another machine, or stopped) and "
        "gives no sign of life for three heartbeats."
    ),
]


@dataclass(frozen=True)
class OneRun:
    """The arguments of a verb that works on one run."""

    run: tyro.conf.Positional[str] = "latest"
    """Run id, the beginning of one, a path, or latest."""
    runs: Path = RUNS
    """Directory that holds the runs."""
    json: bool = False
    """Print JSON."""


def tell_versions(run: Run) -> None:
    """On standard error, what a reader of this run's numbers has to know of versions."""
    for note in version_notes(run):
        print(f"note: {note}", file=sys.stderr)


def console() -> Console:
    """As wide as the terminal; wide enough for every column where there is none."""
    return Console() if sys.stdout.isatty() else Console(width=180)


def number_text(value: float | None, decimals: int = 3, *, signed: bool = False) -> str:
    """A number, or nothing."""
    return "" if value is None else f"{value:{'+' if signed else ''}.{decimals}f}"


def interval_text(found: dict[str, Any] | None, *, key: str = "mean", signed: bool = False) -> str:
    """A number with its interval, or nothing."""
    if not found or found[key] is None:
        return ""
    span = ""
    if found.get("low") is not None:
        span = f" [{number_text(found['low'], signed=signed)}, {number_text(found['high'], signed=signed)}]"
    return number_text(found[key], signed=signed) + span


def columns_text(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of plain columns, each as wide as its widest cell, with nothing cut; line breaks in a cell are shown."""
    table = [[cell.replace("\n", "\\n") for cell in row] for row in (heading, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table]


def print_json(value: Any) -> None:
    """JSON for another program; no NaN. A list has one item a line: thousands of them are written at once."""
    if isinstance(value, list) and value:
        print("[\n" + ",\n".join(json.dumps(item, allow_nan=False) for item in value) + "\n]")
        return
    json.dump(value, sys.stdout, indent=1, allow_nan=False)
    print()


def report(run: Run, as_json_text: bool, next_step: str) -> int:
    """Where a run lies and what comes next; returns the exit code."""
    if as_json_text:
        print_json({"run_id": run.run_id, "directory": str(run.directory)})
    else:
        print(f"{run.run_id} is in {run.directory}. {next_step}")
    return EXIT_OK
