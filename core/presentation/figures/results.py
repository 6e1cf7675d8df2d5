"""Plotly figures from results: no torch, no streamlit, so a report can use them too.

Colours mean the same everywhere: blue is deployable, orange needs labels, grey is an oracle; lesions are magenta,
normal tissue is grey-blue.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

HEALTHY, VALIDATION, ORACLE = "#2f7ed8", "#e08a1e", "#8c939c"
NORMAL, ANOMALOUS = "#6f8fb3", "#d81b7a"
INK = "#000037"
"""Near black. In the browser Streamlit puts the theme's own ink in its place, so it is light on a dark page."""
LAYER_COUNTS = ("#4f86c6", "#2a9d8f", "#c98a1b")  # few, some, all layers: to be seen on white and on near-black
LABEL_FREE, BEHIND_GATE = "healthy scans (label-free)", "healthy scans, behind a gate cut on validation labels"
"""What a healthy threshold is from: alone, or where labels had cut a gate before it."""
PROTOCOLS: tuple[tuple[str, str, str, str], ...] = (
    ("healthy", LABEL_FREE, HEALTHY, "circle"),
    ("validation", "validation labels", VALIDATION, "diamond"),
    ("oracle_set", "oracle (threshold from test labels)", ORACLE, "line-ns-open"),
)


def as_text(text: object) -> str:
    """A name as plotly shows it letter for letter: its labels read tags, links, entities and %{places}."""
    return html.escape(str(text), quote=False).replace("{", "&#123;")


def protocol_dots(rows: Sequence[Mapping[str, Any]], title: str) -> go.Figure:
    """One line per row {label, dice: {protocol: {mean, low, high}}}: mean Dice with 95 % intervals."""
    figure = go.Figure()
    labels = [as_text(row["label"]) for row in rows]
    told = {key: [row["dice"].get(key) or {} for row in rows] for key, _, _, _ in PROTOCOLS}
    traces = [(*protocol, told[protocol[0]]) for protocol in PROTOCOLS]
    if any(f.get("needs_labels") for f in told["healthy"]):
        key, name, colour, symbol = PROTOCOLS[0]
        behind = [f if f.get("needs_labels") else {} for f in told[key]]
        free = [{} if f.get("needs_labels") else f for f in told[key]]
        gated = (key, BEHIND_GATE, PROTOCOLS[1][2], symbol, behind)
        traces[:1] = [(key, name, colour, symbol, free), gated]
    for key, name, colour, symbol, found in traces:
        means = [f.get("mean") for f in found]
        figure.add_scatter(
            x=means,
            y=labels,
            name=name,
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 11, "line": {"width": 2, "color": colour}},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [_gap(f, "high") for f in found],
                "arrayminus": [_gap(f, "low") for f in found],
                "thickness": 1.5,
                "width": 0,
                "color": colour,
            }
            if key != "oracle_set"
            else None,
            customdata=[[_span(f)] for f in found],
            hovertemplate="%{y}<br>" + name + "<br>Dice %{x:.3f} %{customdata[0]}<extra></extra>",
        )
    figure.update_xaxes(title=title, rangemode="tozero", zeroline=False)
    figure.update_yaxes(autorange="reversed", ticklabelstandoff=6)
    return finish(figure, height=110 + 44 * len(rows))


def layer_scatter(rows: Sequence[Mapping[str, Any]], chosen: Sequence[str]) -> go.Figure:
    """Layer sets by pooled AUPRC and deployable Dice; the chosen ones are ringed. Click to choose."""
    figure = go.Figure()
    most = max((row["n_layers"] for row in rows), default=1)
    picked = [row["layers"] in chosen for row in rows]
    figure.add_scatter(
        x=[row["auprc"] for row in rows],
        y=[(row["healthy"] or {}).get("mean") for row in rows],
        mode="markers",
        hovertext=[as_text(row["layers"]) for row in rows],
        customdata=[[row["layers"], row["ceil_dice"], _span(row["healthy"] or {})] for row in rows],
        marker={
            "size": [16 if p else 10 for p in picked],
            "color": [row["n_layers"] for row in rows],
            "cmin": 1,
            "cmax": most,
            "colorscale": [[k / 2, colour] for k, colour in enumerate(LAYER_COUNTS)],
            "colorbar": {"title": "layers", "tickvals": list(range(1, most + 1)), "thickness": 12},
            "line": {"width": [3 if p else 0 for p in picked], "color": ANOMALOUS},
        },
        hovertemplate="<b>%{hovertext}</b><br>AUPRC %{x:.3f}<br>Dice, label-free threshold %{y:.3f} "
        "%{customdata[2]}<br>⌈Dice⌉ (oracle) %{customdata[1]:.3f}<extra></extra>",
        showlegend=False,
    )
    figure.update_xaxes(title="pooled AUPRC (working grid)")
    figure.update_yaxes(title="mean Dice at the label-free threshold", rangemode="tozero")
    return finish(figure, height=420)


def contribution_bars(rows: Sequence[tuple[str, float, float | None]]) -> go.Figure:
    """What each layer adds: (layer, AUPRC alone, AUPRC of all minus AUPRC without it)."""
    figure = go.Figure()
    figure.add_bar(x=[as_text(r[0]) for r in rows], y=[r[1] for r in rows], name="alone", marker_color=NORMAL)
    figure.add_bar(
        x=[as_text(r[0]) for r in rows],
        y=[r[2] for r in rows],
        name="added to all the others",
        marker_color=HEALTHY,
    )
    figure.update_yaxes(title="pooled AUPRC")
    figure.update_layout(barmode="group")
    return finish(figure, height=320)


def score_densities(
    edges: np.ndarray,
    normal: np.ndarray,
    anomalous: np.ndarray,
    *,
    unit: str,
    thresholds: Sequence[tuple[str, float, str]],
    cumulative: bool,
    log_x: bool,
    log_y: bool,
    counts: bool,
) -> go.Figure:
    """Binned scores of normal and anomalous voxels: shares or counts per bin, or the share at or below (ECDF).

    `thresholds` are (label, score, colour) lines; their labels stand in the legend, where none is cut or covered.
    """
    figure = go.Figure()
    for values, name, colour in ((normal, "normal voxels", NORMAL), (anomalous, "anomalous voxels", ANOMALOUS)):
        total = max(int(values.sum()), 1)
        shown = values if counts else values / total
        if cumulative:
            shown = np.cumsum(values) / total
        y = np.where(shown > 0, shown, np.nan) if log_y else shown
        figure.add_scatter(
            x=(edges[:-1] + edges[1:]) / 2,
            y=y,
            name=name,
            mode="lines",
            line={"color": colour, "width": 2, "shape": "hvh"},
            fill=None if cumulative or log_y else "tozeroy",
            hovertemplate=f"{name}<br>score %{{x:.3g}}<br>%{{y:.3g}}<extra></extra>",
        )
    drawable = [t for t in thresholds if np.isfinite(t[1]) and (t[1] > 0 or not log_x)]
    for label, score, colour in drawable:
        line = {"color": colour, "width": 2, "dash": "dash"}
        figure.add_vline(x=score, line=line, name=label, showlegend=True)
    figure.update_xaxes(title=f"score ({as_text(unit)})", type="log" if log_x else "linear")
    title = "share at or below" if cumulative else "voxels per bin" if counts else "share of its class per bin"
    figure.update_yaxes(title=title, type="log" if log_y else "linear")
    return finish(figure, height=430)


def training_curves(
    steps: Sequence[int], series: Mapping[str, Sequence[float | None]], title: str, lines: Sequence[tuple[str, float]]
) -> go.Figure:
    """Values over training steps, with labelled horizontal lines (chance)."""
    figure = go.Figure()
    palette = (HEALTHY, VALIDATION, ANOMALOUS, "#2a9d8f")
    for (name, values), colour in zip(series.items(), palette, strict=False):
        figure.add_scatter(x=list(steps), y=list(values), name=name, mode="lines", line={"color": colour, "width": 2})
    for label, level in lines:
        figure.add_hline(y=level, line={"color": ORACLE, "dash": "dot", "width": 2}, annotation_text=label)
    figure.update_xaxes(title="step")
    figure.update_yaxes(title=title)
    return finish(figure, height=280)


def dice_over_prevalence(
    prevalence: np.ndarray, dice: np.ndarray, here: tuple[float, float], at_slider: tuple[float, float]
) -> go.Figure:
    """Dice at fixed rates as the share of lesion voxels changes, with the data's own point and the slider's."""
    figure = go.Figure()
    figure.add_scatter(x=100 * prevalence, y=dice, mode="lines", name="same detector", line={"color": HEALTHY})
    figure.add_scatter(
        x=[100 * here[0]], y=[here[1]], mode="markers", name="these subjects", marker={"color": ANOMALOUS, "size": 12}
    )
    figure.add_scatter(
        x=[100 * at_slider[0]],
        y=[at_slider[1]],
        mode="markers",
        name="at the slider",
        marker={"color": VALIDATION, "size": 12, "symbol": "diamond"},
    )
    figure.update_xaxes(title="lesion voxels, % of brain", type="log")
    figure.update_yaxes(title="Dice", range=[0, 1])
    return finish(figure, height=330)


def finish(figure: go.Figure, height: int) -> go.Figure:
    """Margins, legend and ink that all figures share."""
    figure.update_layout(
        height=height,
        margin={"l": 10, "r": 10, "t": 30, "b": 10},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"color": INK}},
        hoverlabel={"align": "left"},
    )
    for axes in (figure.update_xaxes, figure.update_yaxes):
        axes(tickfont={"color": INK}, title={"font": {"color": INK}})
    return figure


def _gap(found: Mapping[str, Any], end: str) -> float:
    mean, bound = found.get("mean"), found.get(end)
    return 0.0 if mean is None or bound is None else abs(bound - mean)


def _span(found: Mapping[str, Any]) -> str:
    if not found or found.get("low") is None:
        return ""
    return f"[{found['low']:.3f}, {found['high']:.3f}], n = {found['n']}"
