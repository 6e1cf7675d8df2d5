"""What compare-pretraining prints: the encoders' figures, their differences, and what each layer does alone."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from core.metrics.two_level import number_text, span_text
from core.study.pretraining_table import CHOICE_TITLES, CHOICES, FIGURE_TITLES, FIGURES


def comparison_tables(found: Mapping[str, Any]) -> list[Table]:
    """The tables of a finished comparison; of one layer, the chosen set and all layers are the same."""
    alone = not found["controls"][0]["layers"]
    tables = [
        table(found, choice)
        for choice in (CHOICES[:1] if alone else CHOICES)
        for table in (_dice_table, _difference_table)
    ]
    return tables if alone else [*tables, _layer_table(found)]


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
