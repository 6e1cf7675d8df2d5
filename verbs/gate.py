"""The verb that makes one run out of two: a second map inside the segmentation of a first."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from core.progress import open_progress
from core.runs.listing import open_run
from core.runs.run_record import runs_flag
from verbs.shared import EXIT_OK, RUNS, TakeOver, Verbs, console, number_text, print_json, tell_versions

Cut = Literal["validation", "healthy"]


@dataclass(frozen=True)
class GateVerb:
    """A pipeline of two evaluated runs: the second's scores inside the first's segmentation, 0 outside; evaluated.

    Example: python cli.py gate bank intensity --run-id bank-intensity
    """

    gate: tyro.conf.Positional[str]
    """Run that decides where: id, the beginning of one, a path, or latest."""
    second: tyro.conf.Positional[str]
    """Run that decides how much, on the same cohort, split and preprocessing. Its scores must be 0 or more."""
    layers: str = ""
    """Layer set of the gate, joined by +; its headline's when not given."""
    second_layers: str = ""
    """Layer set of the second run, joined by +; its headline's when not given."""
    cut: Cut = "validation"
    """The gate's threshold: best on labelled validation scans, or from healthy scans alone (needs no label)."""
    name: str = ""
    """What the run is called."""
    run_id: str | None = None
    """Id of the run; the same id resumes it."""
    quantile: float = 0.99
    """Share of healthy calibration voxels below the pipeline's healthy threshold."""
    fp_ml: float | None = None
    """Instead: false-positive millilitres per healthy scan that this threshold may cost."""
    workers: int = 2
    """Processes of the evaluation."""
    runs: Path = RUNS
    """Directory that holds the runs."""
    json: bool = False
    """Print JSON."""
    take_over: TakeOver = False


def _gate(arguments: GateVerb) -> int:
    from core.runs.evaluated import read_metrics
    from core.study.gating import make_gated

    run = make_gated(
        arguments.runs,
        open_run(arguments.runs, arguments.gate, "detector"),
        open_run(arguments.runs, arguments.second, "detector"),
        open_progress(),
        layers=arguments.layers,
        second_layers=arguments.second_layers,
        cut=arguments.cut,
        name=arguments.name,
        run_id=arguments.run_id,
        quantile=arguments.quantile,
        fp_ml_per_scan=arguments.fp_ml,
        workers=arguments.workers,
    )
    tell_versions(run)
    recipe, metrics = run.record["recipe"], read_metrics(run)
    figures = metrics["sets"][metrics["headline"]]["native"]
    if arguments.json:
        gate = {key: recipe[key] for key in ("gate_threshold", "gate_rule", "threshold_from")}
        print_json({"run_id": run.run_id, "directory": str(run.directory), **gate, "figures": figures})
        return EXIT_OK
    console().print(f"{run.run_id} is in {run.directory}.", markup=False)
    rule = f"Gate at {recipe['gate_threshold']:.4g}: {recipe['gate_rule']}."
    console().print(rule, markup=False)
    for name in ("healthy", "validation"):
        if name in figures["protocols"]:
            dice = number_text(figures["protocols"][name]["mean_dice"]) or "not defined: no lesion"
            told = figures["protocols"][name]["rule"]
            console().print(f"Mean Dice, {name} threshold, native space: {dice} ({told})", markup=False)
    print("Whether a scan is ill is decided by the gate: subject-level figures are those of its run.")
    print(f"See what it buys: python cli.py runs{runs_flag(arguments.runs)}")
    return EXIT_OK


VERBS: Verbs = {"gate": (GateVerb, _gate)}
