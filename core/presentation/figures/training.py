"""Plotly figures of a training: values over its steps against chance, and cosines of partners and of the others.

Partners are teal and the others violet, in every figure; grey is chance; magenta is the alarm of a collapse. Both are
to be seen on white and on near-black. Shares are in cividis, as on the map of detection limits.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float64

from core.presentation.figures.limits import SCALE
from core.presentation.figures.results import ANOMALOUS, HEALTHY, INK, VALIDATION, finish
from core.presentation.training_view import Similarities

PARTNERS, OTHERS, HARDEST = "#2a9d8f", "#8a5fbf", "#c98a1b"
PALETTE = (HEALTHY, VALIDATION, ANOMALOUS, PARTNERS)
Level = float | Sequence[float | None]
Line = tuple[str, Level, str]
SHARES: Mapping[str, Any] = {
    "range": [-0.02, 1.1], "tickvals": [0, 0.25, 0.5, 0.75, 1], "ticktext": ["0 %", "25 %", "50 %", "75 %", "100 %"],
}  # fmt: skip
"""A vertical axis of shares."""


def monitor_curves(
    steps: Sequence[int],
    values: Mapping[str, Sequence[float | None]],
    means: Mapping[str, Sequence[float | None]],
    lines: Sequence[Line] = (),
    *,
    colours: Sequence[str] = PALETTE,
    axis: Mapping[str, Any] | None = None,
) -> go.Figure:
    """Values of a training over its steps, faint, under their running means.

    `lines` are (text, level, colour), dotted: a level is a number, or one number per step where it changes as a bank
    fills. `axis` holds settings of the vertical axis: title, range.
    """
    figure = go.Figure()
    for (name, column), colour in zip(values.items(), colours, strict=False):
        shared = {"x": list(steps), "mode": "lines", "legendgroup": name}
        figure.add_scatter(
            **shared,
            y=list(column),
            line={"color": colour, "width": 1},
            opacity=0.3,
            showlegend=False,
            hoverinfo="skip",
        )
        figure.add_scatter(
            **shared,
            y=list(means[name]),
            name=name,
            line={"color": colour, "width": 2.5},
            showlegend=len(values) > 1,
            hovertemplate=f"step %{{x}}<br>{name} %{{y:.4g}}<extra></extra>",
        )
    for line in lines:
        _draw_line(figure, steps, *line)
    figure.update_xaxes(title="step", rangemode="tozero")
    figure.update_yaxes(**(axis or {}))
    return finish(figure, height=260)


def similarity_map(similarities: Similarities, positive: bool) -> go.Figure:
    """Cosines (y) over steps (x): each column is one histogram, coloured by the share of its pairs.

    The scale is the map's own, from 0 to `most_share`: others lie far more spread than partners.
    """
    shares = similarities.positive if positive else similarities.negative
    low, high = _range(similarities)
    edges = similarities.edges
    figure = go.Figure(
        go.Heatmap(
            x=_column_edges(similarities.steps),
            customdata=np.tile(similarities.steps, (shares.shape[1], 1)),
            y=(edges[:-1] + edges[1:]) / 2,
            z=100 * shares.T,
            zmin=0,
            zmax=100 * most_share(shares),
            colorscale=[[place, f"rgb{colour}"] for place, colour in SCALE],
            colorbar={"ticksuffix": " %", "thickness": 8, "xpad": 4, "nticks": 4, "tickfont": {"color": INK}},
            hovertemplate="step %{customdata}<br>cosine about %{y:.3f}<br>%{z:.1f} % of the pairs<extra></extra>",
        )
    )
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="cosine", range=[low, high])
    return finish(figure, height=260)


def latest_similarities(similarities: Similarities) -> go.Figure:
    """The last logged histograms, one over the other: where they overlap, partners and others look alike."""
    figure = go.Figure()
    edges = similarities.edges
    for shares, name, colour in (
        (similarities.negative[-1], "others", OTHERS),
        (similarities.positive[-1], "partners", PARTNERS),
    ):
        figure.add_bar(
            x=(edges[:-1] + edges[1:]) / 2,
            y=100 * shares,
            width=np.diff(edges),
            name=name,
            marker={"color": colour, "opacity": 0.65, "line": {"width": 0}},
            hovertemplate=f"{name}<br>cosine about %{{x:.3f}}<br>%{{y:.1f}} % of the pairs<extra></extra>",
        )
    figure.update_layout(barmode="overlay")
    figure.update_xaxes(title="cosine", range=list(_range(similarities)))
    figure.update_yaxes(title="pairs, %", rangemode="tozero")
    return finish(figure, height=260)


def most_share(shares: Float64[np.ndarray, "steps bins"]) -> float:
    """Top of the colour scale of a map: the 98th percentile of what is not empty, so one full bin hides nothing."""
    return float(np.quantile(shares[shares > 0], 0.98)) if (shares > 0).any() else 1.0


def _range(similarities: Similarities) -> tuple[float, float]:
    """Cosines from the lowest bin that was ever filled up to 1."""
    filled = (similarities.positive + similarities.negative).any(axis=0)
    return float(similarities.edges[int(np.argmax(filled))]), 1.0


def _draw_line(figure: go.Figure, steps: Sequence[int], text: str, level: Level, colour: str) -> None:
    """A dotted line, named in the legend: a label beside it would lie on the curves, which come close to chance."""
    constant = isinstance(level, (int, float))
    heights = [level, level] if isinstance(level, (int, float)) else list(level)
    figure.add_scatter(
        x=[0, steps[-1] if steps else 1] if constant else list(steps),
        y=heights,
        mode="lines",
        line={"color": colour, "dash": "dot", "width": 2},
        name=text,
        showlegend=True,
        hovertemplate=f"step %{{x}}<br>{text} %{{y:.4g}}<extra></extra>",
    )


def _column_edges(steps: Sequence[int]) -> list[float]:
    """Where the columns of a map begin and end: half-way between logged steps, from 0 to the last."""
    return [0.0, *((a + b) / 2 for a, b in pairwise(steps)), float(steps[-1])]
