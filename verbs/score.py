"""A fitted detector, scored, evaluated and compared by layer from the terminal."""

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from core.progress import open_progress
from core.runs.evaluated import read_metrics
from core.runs.listing import open_run
from core.runs.run_record import runs_flag
from core.runs.stages import stage_done
from core.study.evaluation_words import evaluation_words
from core.study.run_summary import layer_table
from data.errors import IntegrityError
from verbs.runs import print_runs
from verbs.shared import (
    EXIT_OK,
    OneRun,
    TakeOver,
    Verbs,
    console,
    interval_text,
    number_text,
    print_json,
    report,
    tell_versions,
)


@dataclass(frozen=True)
class ScoreVerb(OneRun):
    """Score the calibration, validation and test scans of a fitted run, under every layer set.

    Example: python cli.py score latest --export maps
    """

    export: Path | None = None
    """Also write score maps (and segmentations at the label-free threshold once evaluated) as NIfTI in the scans' own
    space into this directory."""
    layers: str = ""
    """Layer set to export, joined by +; the headline's, or all layers when not evaluated."""
    memory: float | None = None
    """Memory that scoring may use, GB; the limit that the run was fitted with when not given."""
    share: bool = False
    """Export under the pseudonyms that a shared report uses."""
    display: bool = False
    """Export scores on a 0 to 1 display scale: sigmoid of log1p(score) between healthy calibration quantiles."""
    take_over: TakeOver = False


@dataclass(frozen=True)
class EvaluateVerb(OneRun):
    """Metrics of a scored run under every threshold protocol, with intervals.

    Example: python cli.py evaluate latest --quantile 0.99
    """

    quantile: float = 0.99
    """Share of healthy calibration voxels below the label-free threshold."""
    fp_ml: float | None = None
    """Instead: false-positive millilitres per healthy scan that the label-free threshold may cost."""
    leave_one_out: bool = False
    """Where no scan calibrates: take the label-free threshold from the training scans, each scored by the Gaussian of
    the others."""
    workers: int = 2
    """Processes."""
    take_over: TakeOver = False


@dataclass(frozen=True)
class CompareLayersVerb(OneRun):
    """Every combination of the fitted layers, best first, on the working grid.

    Example: python cli.py compare-layers latest
    """


def _score(arguments: ScoreVerb) -> int:
    from core.study import scoring

    run = open_run(arguments.runs, arguments.run, "detector")
    damaged: IntegrityError | None = None
    try:
        run = scoring.score(run, open_progress(), memory_gb=arguments.memory)
    except IntegrityError as error:
        if arguments.export is None:
            raise
        damaged = error  # the maps of the others are exported all the same
    tell_versions(run)
    if arguments.export is not None:
        from core.study.nifti_export import export_maps

        paths = export_maps(
            run, arguments.export, arguments.layers, open_progress(), display=arguments.display, share=arguments.share
        )
        print(f"{len(paths)} NIfTI files in {arguments.export}", file=sys.stderr)
    if damaged is not None:
        raise damaged
    where = runs_flag(arguments.runs)
    next_step = f"Evaluate it: python cli.py evaluate {run.run_id}{where}"
    if stage_done(run, "evaluation"):
        next_step = f"It is evaluated already. Look at it: python cli.py app{where}"
    return report(run, arguments.json, next_step)


def _evaluate(arguments: EvaluateVerb) -> int:
    from core.study import evaluation

    run = open_run(arguments.runs, arguments.run, "detector")
    metrics = evaluation.evaluate_run(
        run,
        open_progress(),
        quantile=arguments.quantile,
        fp_ml_per_scan=arguments.fp_ml,
        workers=arguments.workers,
        leave_one_out=arguments.leave_one_out,
    )
    tell_versions(run)
    if arguments.json:
        print_json(metrics)
    else:
        print_runs(arguments.runs, [run.run_id])
        for sentence in evaluation_words(run, metrics):
            print(sentence)
    return EXIT_OK


def _compare_layers(arguments: CompareLayersVerb) -> int:
    run = open_run(arguments.runs, arguments.run, "detector")
    rows = layer_table(read_metrics(run))
    tell_versions(run)
    if arguments.json:
        print_json(rows)
        return EXIT_OK
    table = Table(
        "layers",
        "AUPRC",
        "⌈Dice⌉ (oracle)",
        "Dice, healthy threshold",
        "Dice, validation threshold",
        title="working grid, best ⌈Dice⌉ first",
    )
    for row in sorted(rows, key=lambda r: -(r["ceil_dice"] or 0)):
        table.add_row(
            row["layers"],
            number_text(row["auprc"]),
            number_text(row["ceil_dice"]),
            interval_text(row["healthy"]),
            interval_text(row["validation"]),
        )
    console().print(table)
    return EXIT_OK


VERBS: Verbs = {
    "score": (ScoreVerb, _score),
    "evaluate": (EvaluateVerb, _evaluate),
    "compare-layers": (CompareLayersVerb, _compare_layers),
}
