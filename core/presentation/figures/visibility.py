"""Plotly figures of what an encoder was taught to ignore: movement under views and under lesions, per layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from core.presentation.figures.results import ANOMALOUS, NORMAL, ORACLE, as_text, finish

FAMILY_TITLES: Mapping[str, str] = {
    "flip": "flip",
    "affine": "rotate, scale, shift",
    "elastic": "elastic",
    "ghost": "ghosting",
    "gamma": "gamma",
    "noise": "noise",
    "bias": "bias field",
    "blur": "blur",
    "swap": "patch swaps",
}
_TRACK = "rgba(128,136,148,.45)"


def visibility_dumbbells(network: Mapping[str, Any], untrained: Mapping[str, Any] | None = None) -> go.Figure:
    """Per layer: how far views and lesions move features (left), and their ratio, the visibility (right).

    `network` and `untrained` are as `visibility.measure.Visibility` is written in JSON; hollow: untrained.
    """
    layers = [one["layer"] for one in network["layers"]]
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, column_widths=[0.58, 0.42], horizontal_spacing=0.04)
    for one in network["layers"]:
        ends = [one["view"]["mean"]["mean"], one["lesion"]["mean"]["mean"]]
        figure.add_scatter(
            x=ends, y=[as_text(one["layer"])] * 2, mode="lines", line={"color": _TRACK, "width": 5}, hoverinfo="skip",
            showlegend=False, row=1, col=1,
        )  # fmt: skip
    for name, key, colour in (("under views", "view", NORMAL), ("under lesions", "lesion", ANOMALOUS)):
        found = [one[key]["mean"] for one in network["layers"]]
        figure.add_trace(_dots(found, layers, name, colour, "healthy SDs"), row=1, col=1)
        if untrained is not None:
            before = [one[key]["mean"] for one in untrained["layers"]]
            figure.add_trace(_dots(before, layers, f"{name}, untrained", colour, "healthy SDs", hollow=True), 1, 1)
    ratios = [one["visibility"] for one in network["layers"]]
    figure.add_trace(_dots(ratios, layers, "visibility", ORACLE, "times the views", shown=False), row=1, col=2)
    if untrained is not None:
        before = [one["visibility"] for one in untrained["layers"]]
        figure.add_trace(
            _dots(before, layers, "visibility, untrained", ORACLE, "times the views", hollow=True, shown=False), 1, 2
        )
    figure.add_vline(x=1, line={"color": ORACLE, "dash": "dot", "width": 2}, row=1, col=2)
    figure.update_xaxes(rangemode="tozero", zeroline=False)
    figure.update_xaxes(title="movement, healthy SDs", row=1, col=1)
    figure.update_xaxes(title="visibility: lesions / views (dotted: 1)", row=1, col=2)
    figure.update_yaxes(autorange="reversed", ticklabelstandoff=6, type="category")
    return _roomy(figure, height=150 + 46 * len(layers))


def taught_away_lines(compared: Sequence[Mapping[str, Any]], layer: str) -> go.Figure:
    """What training changed at one layer: movement after / before, per kind of view and for lesions."""
    rows = [
        row
        for row in compared
        if row["layer"] == layer and row["ratio"]["mean"] is not None and row["change"] in {*FAMILY_TITLES, "lesion"}
    ]
    rows.sort(key=lambda row: (row["change"] == "lesion", row["ratio"]["mean"]))
    figure = go.Figure()
    for name, colour, chosen in (
        ("kinds of view", NORMAL, [row for row in rows if row["change"] != "lesion"]),
        ("lesions", ANOMALOUS, [row for row in rows if row["change"] == "lesion"]),
    ):
        labels = [FAMILY_TITLES.get(row["change"], "lesions") for row in chosen]
        figure.add_trace(_dots([row["ratio"] for row in chosen], labels, name, colour, "times untrained"))
    figure.add_vline(x=1, line={"color": ORACLE, "dash": "dot", "width": 2})
    figure.update_xaxes(title=f"movement of {as_text(layer)}, trained / untrained (dotted: unchanged)", zeroline=False)
    figure.update_yaxes(
        autorange="reversed",
        ticklabelstandoff=6,
        categoryorder="array",
        categoryarray=[FAMILY_TITLES.get(row["change"], "lesions") for row in rows],
    )
    return _roomy(figure, height=150 + 30 * len(rows))


def brightness_bars(intensity: Mapping[str, Any]) -> go.Figure:
    """How far views and lesions move tissue brightness, as % of the scan's range, before any training."""
    figure = go.Figure()
    views = [(FAMILY_TITLES[one["change"]], one) for one in intensity["views"]]
    lesions = [(f"{one['change'].replace(', contrast', ',')}", one) for one in intensity["lesions"]]
    groups = (("kinds of view, as drawn", NORMAL, views), ("lesions: size, contrast", ANOMALOUS, lesions))
    for name, colour, rows in groups:
        figure.add_bar(
            x=[100 * one["of_range"]["mean"] for _, one in rows],
            y=[as_text(label) for label, _ in rows],
            orientation="h",
            name=name,
            marker_color=colour,
            error_x=_errors([one["of_range"] for _, one in rows], 100),
            hovertemplate="%{y}<br>%{x:.1f} % of the range<extra></extra>",
        )
    figure.update_xaxes(title="median change of brightness, % of the scan's range", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", ticklabelstandoff=6)
    return _roomy(figure, height=130 + 26 * (len(views) + len(lesions)))


def _dots(
    found: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    name: str,
    colour: str,
    unit: str,
    *,
    hollow: bool = False,
    shown: bool = True,
) -> go.Scatter:
    return go.Scatter(
        x=[one["mean"] for one in found],
        y=[as_text(text) for text in labels],
        name=name,
        mode="markers",
        showlegend=shown,
        marker={
            "color": colour,
            "symbol": "circle-open" if hollow else "circle",
            "size": 10,
            "line": {"width": 2, "color": colour},
        },
        error_x=None if hollow else _errors(found, 1, colour),
        customdata=[[_span(one)] for one in found],
        hovertemplate=f"%{{y}}<br>{name}: %{{x:.3f}} {unit} %{{customdata[0]}}<extra></extra>",
    )


def _errors(found: Sequence[Mapping[str, Any]], scale: float, colour: str = ORACLE) -> dict[str, Any]:
    def gap(one: Mapping[str, Any], end: str) -> float:
        return 0.0 if one.get(end) is None or one["mean"] is None else scale * abs(one[end] - one["mean"])

    return {
        "type": "data",
        "symmetric": False,
        "array": [gap(one, "high") for one in found],
        "arrayminus": [gap(one, "low") for one in found],
        "thickness": 1.5,
        "width": 0,
        "color": colour,
    }


def _span(one: Mapping[str, Any]) -> str:
    return "" if one.get("low") is None else f"[{one['low']:.3f}, {one['high']:.3f}], n = {one['n']}"


def _roomy(figure: go.Figure, height: int) -> go.Figure:
    """With room above for a legend of two lines."""
    return finish(figure, height).update_layout(margin={"t": 60})
