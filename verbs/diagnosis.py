"""Why Dice is low, from the terminal: ceiling, diagnose, report."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.table import Table

from core.progress import open_progress
from core.runs.listing import open_run
from core.runs.run_record import runs_flag
from data.choices import Choices, choices_of
from data.errors import BadInput, IntegrityError
from verbs.shared import (
    EXIT_OK,
    OneRun,
    Protocol,
    TakeOver,
    Verbs,
    console,
    interval_text,
    number_text,
    print_json,
    tell_versions,
)


@dataclass(frozen=True)
class CeilingVerb(Choices):
    """The best Dice that a feature grid allows, from lesion masks alone: before training, per lesion and by size.

    Example: python cli.py ceiling scans/cohort.csv --cells-mm 2 4 8
    """

    masks: tyro.conf.Positional[tuple[Path, ...]]
    """A cohort (table or folder), or lesion masks as NIfTI files."""
    cells_mm: tuple[float, ...] = (2.0, 4.0, 8.0, 16.0)
    """Edges of the feature cells, mm."""
    layout: str = "auto"
    """table, bids, ixi, brats, nnunet, wmh, ms, joined, or auto."""
    draws: int = 20
    """Random positions of the cells over each mask."""
    seed: int = 0
    """Of the positions."""
    json: bool = False
    """Print JSON: also every subject and every lesion."""


@dataclass(frozen=True)
class DiagnoseVerb(OneRun):
    """Why Dice is low: ladder of ceilings, additive error map, causes with their cost, what would raise it most.

    Example: python cli.py diagnose latest --protocol validation
    """

    layers: str = ""
    """Layer set, joined by +; the headline's when not given."""
    protocol: Protocol = "healthy"
    """Which deployable threshold is explained: from healthy scans, or from validation labels."""
    take_over: TakeOver = False


@dataclass(frozen=True)
class ReportVerb(OneRun):
    """One self-contained HTML file about a run: opens offline, prints to PDF from the browser.

    Example: python cli.py report latest --out report.html
    """

    out: Path | None = None
    """File to write; report-RUN.html in this directory when not given."""
    layers: str = ""
    """Layer set, joined by +; the headline's when not given."""
    protocol: Protocol = "healthy"
    """Which deployable threshold the diagnosis explains."""
    overwrite: bool = False
    """Replace a file that is not a report."""
    share: bool = False
    """For other eyes: subjects by pseudonyms, sites by letters, no path, machine or person."""
    take_over: TakeOver = False


def _ceiling(arguments: CeilingVerb) -> int:
    from core.diagnosis.ceiling_of_masks import ceiling_of_masks, ceiling_rows

    result = ceiling_of_masks(
        _masks(arguments.masks, arguments.layout, choices_of(arguments)),
        arguments.cells_mm,
        draws=arguments.draws,
        seed=arguments.seed,
    )
    if arguments.json:
        print_json(result)
        return EXIT_OK
    heading, *rows = ceiling_rows(result)
    table = Table(*heading, caption=f"Oracle: {result['rule']}")
    for row in rows:
        table.add_row(*row)
    console().print(table)
    if result["empty"]:
        print(f"Without a lesion voxel, left out: {', '.join(result['empty'])}.")
    return EXIT_OK


def _masks(paths: Sequence[Path], layout: str, choices: Choices) -> Mapping[str, Any]:
    if not paths:
        raise BadInput("No path was given. Give a cohort (table or folder), or lesion masks as NIfTI files.")
    from core.diagnosis.ceiling_of_masks import lesion_masks
    from data.layout import read_cohort
    from data.nifti import read_labels
    from data.volume import Mask

    if not all(path.name.endswith((".nii", ".nii.gz")) for path in paths):
        if len(paths) > 1:
            raise BadInput(f"{len(paths)} paths, not all NIfTI. Give one cohort, or lesion masks as .nii or .nii.gz.")
        return lesion_masks(read_cohort(paths[0], layout, choices))
    masks: dict[str, Mask] = {}
    for path in paths:
        labels = read_labels(path)
        name = path.name.split(".nii")[0]
        masks[name if name not in masks else str(path)] = Mask(labels.voxels > 0, labels.grid)
    return masks


def _diagnose(arguments: DiagnoseVerb) -> int:
    from core.diagnosis.diagnose import diagnose

    run = open_run(arguments.runs, arguments.run, "detector")
    tell_versions(run)
    found = diagnose(run, open_progress(), layer_set=arguments.layers or None, protocol=arguments.protocol)
    if arguments.json:
        print_json(found)
        _refuse_damaged(found)
        return EXIT_OK
    _print_ladder(found)
    _print_error_map(found)
    _print_causes(found, arguments.runs)
    print(found["verdict"]["sentence"])
    for note in found["notes"]:
        print(f"note: {note}")
    _refuse_damaged(found)
    return EXIT_OK


def _refuse_damaged(found: Mapping[str, Any] | None) -> None:
    """After everything that could be told: IntegrityError when something that belongs to it could not be read."""
    if found is not None and found.get("damaged"):
        raise IntegrityError("Left out, because it is damaged: " + " ".join(found["damaged"]))


def _print_ladder(found: Mapping[str, Any]) -> None:
    table = Table(
        "rung",
        "Dice",
        "cost",
        "what it is",
        title=f"{found['run_id']}, {found['layer_set']}, threshold from {found['protocol']}, n = {found['n']}",
    )
    for rung in found["rungs"]:
        cost = {"mean": rung["cost"], "low": rung["cost_low"], "high": rung["cost_high"]}
        kind = "oracle, needs labels" if rung["needs_labels"] else "deployable"
        table.add_row(rung["title"], interval_text(rung), interval_text(cost, signed=True), kind)
    console().print(table)


def _print_error_map(found: Mapping[str, Any]) -> None:
    table = Table(
        "error",
        "cost",
        "fix only this",
        "all but this",
        "mL, all subjects",
        title="Error map: Dice + all costs = 1, exactly",
    )
    for row in sorted(found["error_map"], key=lambda r: -r["cost"]):
        if row["cost"] == 0 and not row["voxels"]:
            continue
        table.add_row(
            row["title"],
            interval_text(row, key="cost"),
            number_text(row["only"]),
            number_text(row["all_but"]),
            number_text(row["ml"], 1),
        )
    console().print(table)


def _print_causes(found: Mapping[str, Any], runs: Path) -> None:
    table = Table("", "cause", "cost in Dice", "needs labels", "what was found, or what is missing")
    for cause in found["causes"]:
        missing = cause["missing"]
        said = f"{cause['text']} Missing: {missing}{runs_flag(runs) if 'cli.py' in missing else ''}" if missing else ""
        table.add_row(
            cause["id"],
            cause["title"],
            interval_text(cause, key="cost", signed=True),
            "yes" if cause["needs_labels"] else "",
            said.strip() or cause["text"],
        )
    console().print(table)


def _report(arguments: ReportVerb) -> int:
    from core.diagnosis.diagnose import diagnose
    from core.presentation.report.document import check_place, write_report

    run = open_run(arguments.runs, arguments.run, "detector")
    tell_versions(run)
    out = arguments.out or Path(f"report-{run.run_id}.html")
    check_place(out, run, arguments.overwrite)
    progress = open_progress()
    try:
        found = diagnose(run, progress, layer_set=arguments.layers or None, protocol=arguments.protocol)
    except BadInput as reason:  # a run without lesions on test still has a report
        print(f"note: without a diagnosis. {reason}", file=sys.stderr)
        found = None
    path = write_report(run, found, out, overwrite=arguments.overwrite, share=arguments.share)
    if arguments.json:
        print_json({"run_id": run.run_id, "report": str(path)})
    else:
        print(f"{path}: open it in any browser; it prints to PDF from there.")
    _refuse_damaged(found)
    return EXIT_OK


VERBS: Verbs = {
    "ceiling": (CeilingVerb, _ceiling),
    "diagnose": (DiagnoseVerb, _diagnose),
    "report": (ReportVerb, _report),
}
