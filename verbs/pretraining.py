"""The verb that compares ways of training an encoder: compare-pretraining."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro
from rich.table import Table

from core.experiment import DataSource
from core.features import FeatureSettings
from core.pretraining_comparison import ComparisonPlan, compare_pretraining
from core.pretraining_table import CHOICE_TITLES, CHOICES, FIGURE_TITLES, FIGURES, correlation_lines
from core.progress import open_progress
from core.simclr import SimclrSettings
from core.two_level import number_text, span_text
from data.preprocessing import Preprocessing
from verbs.shared import EXIT_OK, RUNS, TakeOver, console, print_json, runs_flag


@dataclass(frozen=True)
class ComparePretrainingVerb:
    """Train encoders in several ways with one budget, fit the same Gaussian on each, and table what it finds.

    Beside the untrained encoder of each seed, voxel-wise |z| and intensity. Repeat the command to go on.

    Example: python cli.py compare-pretraining scans/cohort.csv --variants in-batch moco --views geometric strong
    """

    cohort: tyro.conf.Positional[Path]
    """A table (CSV, TSV) or a folder (BIDS, IXI, BraTS)."""
    name: str = "pretraining"
    """What to call the comparison; its runs are cmp-NAME-VARIANT-VIEWS-sSEED."""
    variants: tuple[str, ...] = ("in-batch",)
    """Kinds of negatives: in-batch, queue, slots, moco, hard, ccd, dense, dense-shift, atlas, atlas-shift."""
    views: tuple[str, ...] = ("strong",)
    """Sets of views: none, geometric, toneless, mild, strong, both; every variant is trained with each."""
    also: tuple[str, ...] = ()
    """Further pairs to train, such as in-batch/geometric."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds; with several, intervals include the spread between trainings."""
    simclr: SimclrSettings = field(default_factory=SimclrSettings)
    layers: tuple[str, ...] = FeatureSettings.layers
    """Layers of the Gaussian; 'input' is the intensity itself."""
    grid: str = FeatureSettings.grid
    """Feature grid: millimetres such as 4mm, or a layer's name."""
    memory: float = 6.0
    """Peak memory for fitting and scoring, GB."""
    workers: int = 2
    """Processes that evaluate."""
    visibility: bool = False
    """Also measure how visible lesions are to each encoder; what is measured already is tabled in any case."""
    runs: Path = RUNS
    """Directory that holds the runs."""
    layout: str = "auto"
    """table, bids, ixi, brats, or auto."""
    split: Path | None = None
    """JSON with the lists train, calibration, validation, test; else the table's roles, else a seeded draw."""
    split_seed: int = 0
    """Seed of the drawn split."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    json: bool = False
    """Print JSON."""
    take_over: TakeOver = False


def _compare_pretraining(arguments: ComparePretrainingVerb) -> int:
    source = DataSource(
        arguments.cohort, arguments.layout, arguments.split, arguments.split_seed, arguments.preprocessing
    )
    plan = ComparisonPlan(
        name=arguments.name,
        variants=arguments.variants,
        views=arguments.views,
        also=arguments.also,
        seeds=arguments.seeds,
        simclr=arguments.simclr,
        features=FeatureSettings(layers=arguments.layers, grid=arguments.grid),
        memory_gb=arguments.memory,
    )
    found = compare_pretraining(
        arguments.runs,
        source,
        plan,
        open_progress(),
        workers=arguments.workers,
        visibility=arguments.visibility,
    )
    if arguments.json:
        print_json(found)
        return EXIT_OK
    alone = not found["controls"][0]["layers"]  # of one layer, the chosen set and all layers are the same
    for choice in CHOICES[:1] if alone else CHOICES:
        console().print(_dice_table(found, choice))
        console().print(_difference_table(found, choice))
    if not alone:
        console().print(_layer_table(found))
    for failure in found["failed"]:
        print(f"failed: {failure['variant']}, views {failure['views']}, seed {failure['seed']}: {failure['error']}")
    for line in (*correlation_lines(found["correlation"]), found["verdict"]["text"]):
        print(line)
    print(f"See it on the Training page: python cli.py app{runs_flag(arguments.runs)}")
    return EXIT_OK


def _dice_table(found: Mapping[str, Any], choice: str) -> Table:
    measured = any(row["visibility"] for row in found["rows"])
    several = len(found["plan"]["seeds"]) > 1
    visibility = (
        " Visibility: movement of features under planted lesions divided by that under the run's own views, mean over "
        "the fitted layers; python cli.py visibility RUN."
    )
    table = Table(
        "encoder",
        "seeds",
        "loss / chance",
        "top-1",
        "candidates",
        *(["visibility"] if measured else []),
        *(FIGURE_TITLES[f] for f in FIGURES),
        title=f"Native space, {CHOICE_TITLES[choice]}",
        caption=f"{'Mean over seeds; ' if several else ''}95 % interval of a two-level bootstrap over "
        f"{found['n_subjects']} lesion-bearing test subjects"
        f"{' and over seeds' if several else '; one seed says nothing about another training'}. Overview's intervals "
        "are over subjects alone, by another bootstrap, so they differ a little. Healthy threshold: the "
        f"{found['quantile']:g} quantile of healthy calibration voxels. Oracle columns chose their threshold on test "
        f"labels.{visibility if measured else ''}",
    )
    for row in (*found["rows"], *found["controls"]):
        end = row["contrastive"] or {}
        figures = row["choices"][choice]["figures"]
        table.add_row(
            row["title"],
            str(len(row["seeds"]) or "–"),
            number_text(end.get("loss_share"), 2),
            number_text(end.get("top1"), 2),
            number_text(end.get("candidates"), 0),
            *([number_text((row["visibility"] or {}).get("trained"), 2)] if measured else []),
            *(span_text(figures[f]) for f in FIGURES),
        )
    return table


def _difference_table(found: Mapping[str, Any], choice: str) -> Table:
    told = ("validation", "healthy", "ceil_dice")
    table = Table(
        "encoder",
        *(f"{FIGURE_TITLES[f]}: minus untrained" for f in told),
        *(f"{FIGURE_TITLES[f]}: minus |z|" for f in told),
        "seed SD, validation",
        title=f"Differences, {CHOICE_TITLES[choice]}",
        caption="Paired on the same subjects, against the untrained encoder of the same seed, and against |z|.",
    )
    for row in (*found["rows"], found["controls"][0]):
        own = row["choices"][choice]
        gains = [span_text(own[side].get(f), signed=True) for side in ("minus_untrained", "minus_zscore") for f in told]
        spread = (own["figures"]["validation"] or {}).get("seed_sd")
        table.add_row(row["title"], *gains, number_text(spread))
    return table


def _layer_table(found: Mapping[str, Any]) -> Table:
    untrained = found["controls"][0]
    layers = list(untrained["layers"])
    table = Table(
        "encoder", *layers, title="One layer alone: ⌈Dice⌉ (pooled oracle) and its difference to the untrained encoder"
    )
    for row in (untrained, *found["rows"]):
        cells = []
        for layer in layers:
            own = row["layers"][layer]
            gain = span_text(own["minus_untrained"], signed=True)
            cells.append(number_text(own["ceil_dice"]["mean"]) + (f" ({gain})" if gain else ""))
        table.add_row(row["title"], *cells)
    return table


PRETRAINING_VERBS: Mapping[str, tuple[Any, Callable[[Any], int]]] = {
    "compare-pretraining": (ComparePretrainingVerb, _compare_pretraining),
}
