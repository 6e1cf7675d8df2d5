"""The figure of a comparison of trainings: what an encoder reached in training against what is found with it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import plotly.graph_objects as go

from core.presentation.figures.results import ORACLE, as_text, finish

Training = Literal["top1", "loss_share"]
VARIANT_COLOURS: Mapping[str, str] = {
    "in-batch": "#0f4c5c",
    "queue": "#1b9aaa",
    "slots": "#7a5ccf",
    "moco": "#2a9d8f",
    "hard": "#7f5539",
    "ccd": "#c98a1b",
    "dense": "#556b2f",
    "dense-shift": "#6a8d2f",
    "atlas": "#8a5a2b",
    "atlas-shift": "#44546a",
}
VIEW_SYMBOLS: Mapping[str, str] = {
    "none": "circle",
    "geometric": "square",
    "toneless": "diamond",
    "mild": "triangle-up",
    "strong": "star",
    "both": "x",
}
TRAINING_TITLES: Mapping[str, str] = {
    "top1": "top-1 at the end of training (share of anchors whose positive is the nearest candidate)",
    "loss_share": "loss at the end of training, as a share of chance",
}


def training_against_dice(
    rows: Sequence[Mapping[str, Any]],
    controls: Sequence[Mapping[str, Any]],
    *,
    training: Training,
    figure: str,
    title: str,
    choice: str = "headline",
) -> go.Figure:
    """One point per training (mean over seeds, 95 % interval), small points per seed, lines for the controls.

    Colour says the variant, shape the set of views.
    """
    chart = go.Figure()
    shown: set[str] = set()
    for row in rows:
        found = row["choices"][choice]["figures"][figure]
        if found is None:
            continue
        colour, symbol = VARIANT_COLOURS.get(row["variant"], ORACLE), VIEW_SYMBOLS.get(row["views"], "circle")
        group = {"legendgroup": row["key"], "name": as_text(row["title"])}
        ends = list(row["contrastive"]["by_seed"].values())
        if len(ends) > 1:
            chart.add_scatter(
                x=[end[training] for end in ends],
                y=found["by_seed"],
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 6, "opacity": 0.5},
                customdata=row["seeds"],
                hovertemplate=as_text(row["title"]) + ", seed %{customdata}<br>%{x:.2f} → %{y:.3f}<extra></extra>",
                showlegend=False,
                **group,
            )
        chart.add_scatter(
            x=[row["contrastive"][training]],
            y=[found["mean"]],
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 13},
            error_y=_error(found, colour),
            hovertemplate=as_text(row["title"]) + "<br>%{x:.2f} → %{y:.3f} " + _span(found) + "<extra></extra>",
            showlegend=row["key"] not in shown,
            **group,
        )
        shown.add(row["key"])
    _add_controls(chart, controls, choice, figure)
    chart.update_xaxes(title=TRAINING_TITLES[training], rangemode="tozero")
    chart.update_yaxes(title=title, rangemode="tozero")
    return finish(chart, height=460)


def _add_controls(chart: go.Figure, controls: Sequence[Mapping[str, Any]], choice: str, figure: str) -> None:
    """A line across for the untrained encoder and for |z|."""
    for row, dash in zip(controls, ("solid", "dash", "dot", "dashdot"), strict=False):
        found = row["choices"][choice]["figures"][figure]
        if found is None or row["key"] not in ("untrained", "zscore"):
            continue
        chart.add_hline(
            y=found["mean"],
            line={"color": ORACLE, "dash": dash, "width": 1.5},
            annotation={"text": f"{as_text(row['title'])} {found['mean']:.3f}", "font": {"color": ORACLE}},
            annotation_position="top right" if row["key"] == "untrained" else "bottom right",
        )


def _error(found: Mapping[str, Any], colour: str) -> dict[str, Any] | None:
    if found["low"] is None:
        return None
    return {
        "type": "data",
        "symmetric": False,
        "array": [found["high"] - found["mean"]],
        "arrayminus": [found["mean"] - found["low"]],
        "thickness": 1.5,
        "width": 0,
        "color": colour,
    }


def _span(found: Mapping[str, Any]) -> str:
    seeds = f"{found['seeds']} seed" + ("s" if found["seeds"] > 1 else "")
    interval = "" if found["low"] is None else f"[{found['low']:.3f}, {found['high']:.3f}], "
    return f"{interval}{found['n']} subjects, {seeds}"
