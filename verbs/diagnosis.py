"""Verbs that explain a run: ceiling, diagnose, what-if, post-processing, detection-limits, report."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.table import Table

from core.progress import open_progress
from core.runs.listing import open_run
from core.runs.run_record import Run, runs_flag
from data.choices import Choices, choices_of
from data.errors import FORESEEN, BadInput, EnvironmentProblem, IntegrityError, together
from verbs.shared import (
    EXIT_OK,
    OneRun,
    TakeOver,
    Verbs,
    console,
    interval_text,
    number_text,
    print_json,
    tell_versions,
)

Protocol = Literal["healthy", "validation"]


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
class WhatIfVerb:
    """One change at a time, evaluated in pairs on the same subjects. Without a name: what there is for this run.

    Several names, or all that apply, are carried out one after the other; one that fails stops no other.

    Example: python cli.py what-if latest renormalise erode-mask
    """

    run: tyro.conf.Positional[str] = "latest"
    """Run id, the beginning of one, a path, or latest."""
    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """The changes, or all; a list of them when not given."""
    layers: str = ""
    """Layer set, joined by +; the headline's when not given."""
    protocol: Protocol = "healthy"
    """Threshold protocol whose gain is printed; both are stored."""
    runs: Path = OneRun.runs
    """Directory that holds the runs."""
    json: bool = False
    """Print JSON."""
    take_over: TakeOver = False


@dataclass(frozen=True)
class PostProcessingVerb(OneRun):
    """Smoothing, median, mask erosion and least component, all combinations: best on validation, and its test Dice.

    Example: python cli.py post-processing latest --export segmentations
    """

    layers: str = ""
    """Layer set, joined by +; the headline's when not given."""
    export: Path | None = None
    """Also write segmentations with the setting that is best on validation, as NIfTI in the scans' own space."""
    protocol: Protocol = "healthy"
    """Threshold protocol of what is exported."""
    share: bool = False
    """Export under the pseudonyms that a shared report uses."""
    workers: int = 2
    """Processes."""
    take_over: TakeOver = False


@dataclass(frozen=True)
class DetectionLimitsVerb(OneRun):
    """Plant lesions of known size and contrast into this run's healthy scans: what can the detector find at all?

    Example: python cli.py detection-limits latest --per-cell 12
    """

    layers: str = ""
    """Layer set, joined by +; the headline's when not given."""
    diameters_mm: tuple[float, ...] = (4.0, 6.0, 8.0, 12.0, 16.0, 24.0)
    """Diameters of the planted lesions, mm."""
    contrasts_sd: tuple[float, ...] = (-4.0, -3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0)
    """Contrasts, in standard deviations of healthy scans; negative is darker."""
    sites: tuple[str, ...] = ("grey", "white", "deep")
    """Where lesions are planted: grey, white, deep (both, far inside), or brain."""
    per_cell: int = 12
    """Lesions of each diameter, contrast and site."""
    fp_ml_per_scan: tuple[float, ...] = (0.1, 1.0, 5.0, 20.0)
    """False-positive volumes at which thresholds are set, mL per healthy scan."""
    scans: tuple[str, ...] = ()
    """Healthy calibration or test subjects to plant into; chosen by themselves when not given."""
    seed: int = 0
    """Of places and shapes."""
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


def _what_if(arguments: WhatIfVerb) -> int:
    from core.diagnosis.what_if.catalogue import applicable, run_what_if

    run = open_run(arguments.runs, arguments.run, "detector")
    tell_versions(run)
    if not arguments.names:
        rows = applicable(run)
        if arguments.json:
            print_json(rows)
            return EXIT_OK
        table = Table("name", "what it changes", "takes", "for this run")
        for row in rows:
            table.add_row(row["name"], row["title"], row["cost_text"], "yes" if row["applies"] else row["missing"])
        console().print(table)
        return EXIT_OK
    names = list(dict.fromkeys(arguments.names))
    if names == ["all"]:
        names = [row["name"] for row in applicable(run) if row["applies"]]
    found: list[dict[str, Any]] = []
    problems: dict[str, BadInput | EnvironmentProblem | IntegrityError] = {}
    for name in names:
        try:
            found.append(
                run_what_if(run, name, open_progress(), layer_set=arguments.layers or None, protocol=arguments.protocol)
            )
        except FORESEEN as problem:
            if len(names) == 1:
                raise
            problems[name] = problem
            continue
        if not arguments.json:
            _print_what_if(run, found[-1], arguments.protocol)
    if arguments.json and (found or len(names) > 1):
        print_json(found[0] if len(names) == 1 else found)
    if problems:
        raise together(problems, f"{len(found)} of {len(names)} what-ifs are done.")
    return EXIT_OK


def _print_what_if(run: Run, result: Mapping[str, Any], protocol: str) -> None:
    title = f"{result['title']}: {run.run_id}, {result['layer_set']}, threshold from {protocol}"
    table = Table("change", "gain on validation", "Dice on test", "gain on test", "n", "needs labels", title=title)
    for variant in result["variants"]:
        test = (variant["test"] or {}).get(protocol)
        table.add_row(
            variant["title"],
            interval_text(variant["validation_by_protocol"][protocol], key="gain", signed=True),
            "" if test is None else f"{number_text(test['baseline'])} → {number_text(test['variant'])}",
            interval_text(test, key="gain", signed=True),
            "" if test is None else str(test["n"]),
            "yes" if variant["needs_labels"] else "",
        )
    console().print(table)
    for note in result["notes"]:
        print(f"note: {note}")


def _post_processing(arguments: PostProcessingVerb) -> int:
    from core.diagnosis.postprocessing import run_post_processing
    from core.diagnosis.verdict import settings_text

    run = open_run(arguments.runs, arguments.run, "detector")
    tell_versions(run)
    result = run_post_processing(run, open_progress(), layer_set=arguments.layers or None, workers=arguments.workers)
    if arguments.export is not None:
        from core.diagnosis.applied import export_post_processed

        paths = export_post_processed(
            run,
            arguments.export,
            open_progress(),
            layer_set=arguments.layers or None,
            protocol=arguments.protocol,
            share=arguments.share,
        )
        print(f"{len(paths)} NIfTI files in {arguments.export}", file=sys.stderr)
    if arguments.json:
        print_json(result)
        return EXIT_OK
    if not result["best_on_validation"]:
        print("No labelled validation subjects: no setting can be chosen. The grid is stored for the Diagnosis page.")
        return EXIT_OK
    table = Table("threshold", "best on validation", "validation Dice", "Dice on test", "gain on test")
    for protocol, best in result["best_on_validation"].items():
        shipped = result["shipped"][protocol]
        gain = {"gain": best["gain"], "low": best["gain_low"], "high": best["gain_high"]}
        table.add_row(
            protocol,
            settings_text(best["settings"]),
            f"{number_text(shipped['validation_dice'])} → {number_text(best['validation_dice'])}",
            f"{number_text(shipped['dice'])} → {number_text(best['dice'])}",
            interval_text(gain, key="gain", signed=True),
        )
    console().print(table)
    for note in result["notes"]:
        print(f"note: {note}")
    return EXIT_OK


def _detection_limits(arguments: DetectionLimitsVerb) -> int:
    from core.diagnosis.limits.detection_limits import run_detection_limits
    from core.diagnosis.limits.tables import limit_lines

    run = open_run(arguments.runs, arguments.run, "detector")
    tell_versions(run)
    result = run_detection_limits(
        run,
        open_progress(),
        layer_set=arguments.layers or None,
        diameters_mm=arguments.diameters_mm,
        contrasts_sd=arguments.contrasts_sd,
        sites=arguments.sites,
        scans=arguments.scans or None,
        fp_ml_per_scan=arguments.fp_ml_per_scan,
        per_cell=arguments.per_cell,
        seed=arguments.seed,
    )
    if arguments.json:
        print_json(result)
        return EXIT_OK
    heading, *rows = limit_lines(result)
    table = Table(*heading, title=f"{run.run_id}, {result['layer_set']}: contrast in SD of healthy scans, all sites")
    for row in rows:
        table.add_row(*row)
    console().print(table)
    print(f"By place, and as a map: the Diagnosis page of python cli.py app{runs_flag(arguments.runs)}")
    for note in result["notes"]:
        print(f"note: {note}")
    return EXIT_OK


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
    "what-if": (WhatIfVerb, _what_if),
    "post-processing": (PostProcessingVerb, _post_processing),
    "detection-limits": (DetectionLimitsVerb, _detection_limits),
    "report": (ReportVerb, _report),
}
