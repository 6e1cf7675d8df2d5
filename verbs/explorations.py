"""What would raise Dice, and how small a lesion may be: what-if, post-processing, detection-limits."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.table import Table

from core.progress import open_progress
from core.runs.listing import open_run
from core.runs.run_record import Run, runs_flag
from data.errors import FORESEEN, BadInput, EnvironmentProblem, IntegrityError, together
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


VERBS: Verbs = {
    "what-if": (WhatIfVerb, _what_if),
    "post-processing": (PostProcessingVerb, _post_processing),
    "detection-limits": (DetectionLimitsVerb, _detection_limits),
}
