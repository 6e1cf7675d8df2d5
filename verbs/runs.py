"""What there is, listed on a terminal: runs with their numbers."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.runs.run_record import runs_flag
from core.runs.versions import noted, notes_of
from core.study.run_summary import run_rows
from verbs.shared import (
    EXIT_INTEGRITY,
    EXIT_OK,
    RUNS,
    Verbs,
    columns_text,
    console,
    interval_text,
    number_text,
    print_json,
)

NEWEST = 50
"""Runs that are listed on a terminal unless all are asked for."""
DRAWN = 100
"""Rows up to which a table is drawn with lines; more come as plain columns, which are a hundred times as fast."""


@dataclass(frozen=True)
class RunsVerb:
    """The runs with their numbers under every threshold protocol: healthy, validation, oracle.

    A damaged run is named with its remedy, hides no other, and makes the exit code 4.

    Example: python cli.py runs --json
    """

    runs: Path = RUNS
    """Directory that holds the runs."""
    all: bool = False
    """Every run; on a terminal, only the newest 50 are listed without it."""
    json: bool = False
    """Print JSON."""


def _runs(arguments: RunsVerb) -> int:
    rows, apart = run_rows(arguments.runs)
    damaged = [row["problem"] for row in rows if "problem" in row]
    if arguments.json:
        print_json(rows)
    elif not rows:
        print(f"No runs in {arguments.runs} yet. Make one: python cli.py demo{runs_flag(arguments.runs)}")
    else:
        shown = rows[:NEWEST] if sys.stdout.isatty() and not arguments.all else rows
        _print_rows(shown)
        if len(shown) < len(rows):
            print(f"and {len(rows) - len(shown):,} more: python cli.py runs --all{runs_flag(arguments.runs)}")
        for note, ids in notes_of((row["run_id"], row["version_notes"]) for row in shown).items():
            print(f"note: {noted(note, ids)}")
    for problem in (*damaged, *apart):
        print(f"problem: {problem}", file=sys.stderr)
    return EXIT_INTEGRITY if damaged else EXIT_OK


def print_runs(runs: Path, ids: Sequence[str]) -> None:
    """Print a table of some runs."""
    _print_rows([row for row in run_rows(runs)[0] if row["run_id"] in ids])


def _print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    heading = (
        *("run", "kind", "status", "layers", "Dice healthy", "Dice validation", "Dice oracle (set)"),
        *("⌈Dice⌉ oracle (pooled)", "AUPRC", "test n", "subjects"),
    )
    note = (
        "Mean Dice over lesion-bearing test subjects in native space, 95 % bootstrap interval. Oracle columns chose "
        "their threshold on test labels."
    )
    cells = [_row_cells(row) for row in rows]
    if len(cells) > DRAWN:
        print("\n".join((*columns_text(heading, cells), note)))
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(*heading, caption=note)
    for row in cells:
        table.add_row(*map(escape, row))
    console().print(table)


def _row_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    found = row.get("dice", {})
    return (
        str(row["run_id"]),
        str(row["kind"]),
        "damaged" if "problem" in row else str(row["status"]),
        row.get("headline") or "",
        interval_text(found.get("healthy")),
        interval_text(found.get("validation")),
        interval_text(found.get("oracle_set")),
        number_text(row.get("ceil_dice")),
        number_text(row.get("auprc")),
        str(row.get("n_lesion_subjects") or ""),
        f"{row['n_used']} of {row['n_total']}" if row.get("n_total") else "",
    )


VERBS: Verbs = {
    "runs": (RunsVerb, _runs),
}
