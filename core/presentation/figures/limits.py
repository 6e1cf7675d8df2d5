"""Plotly figures of what a detector can find: sensitivity over size x contrast of lesions that were planted."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from core.diagnosis.limits.tables import ALL_SITES, wilson

SIZES = ("#8a5fbf", "#2f7ed8", "#2a9d8f", "#c98a1b", "#d8572a", "#d81b7a", "#7d8590")
"""One colour per diameter, smallest first; to be seen on white and on near-black."""
SCALE = ((0.0, (0, 32, 77)), (0.5, (124, 123, 120)), (1.0, (255, 234, 70)))
"""Ends and middle of cividis (Nuñez et al. 2018), as even to the colour-blind as to others."""


def sensitivity_map(result: Mapping[str, Any], level: str = "own", site: str = ALL_SITES) -> go.Figure:
    """Sensitivity in % over contrast (x) and diameter (y) at one false-positive level, the number in every cell."""
    cells = _cells(result, level, site)
    contrasts, diameters = _axis(cells, "contrast_sd"), _axis(cells, "diameter_mm")
    at = {(c["diameter_mm"], c["contrast_sd"]): c for c in cells}
    rows = [[at.get((d, c)) for c in contrasts] for d in diameters]
    figure = go.Figure(
        go.Heatmap(
            x=[_signed(c) for c in contrasts],
            y=[f"{d:g}" for d in diameters],
            z=[[None if cell is None else 100 * cell["sensitivity"] for cell in row] for row in rows],
            customdata=[[_hover(cell) for cell in row] for row in rows],
            hovertemplate="%{y} mm, %{x} SD<br>%{customdata}<extra></extra>",
            zmin=0,
            zmax=100,
            colorscale=[[place, f"rgb{colour}"] for place, colour in SCALE],
            colorbar={"title": {"text": "found, %"}, "thickness": 12},
            xgap=2,
            ygap=2,
        )
    )
    there = [cell for row in rows for cell in row if cell is not None]
    figure.add_scatter(
        x=[_signed(cell["contrast_sd"]) for cell in there],
        y=[f"{cell['diameter_mm']:g}" for cell in there],
        text=[f"{100 * cell['sensitivity']:.0f}" for cell in there],
        textfont={"color": [_readable_on(cell["sensitivity"]) for cell in there], "size": 14},
        mode="text",
        hoverinfo="skip",
        showlegend=False,
    )
    figure.update_xaxes(title="contrast of the lesion, healthy SDs (darker | brighter)", type="category")
    figure.update_yaxes(title="diameter, mm", type="category")
    return _finish(figure, height=140 + 44 * len(diameters))


def sensitivity_curves(result: Mapping[str, Any], level: str = "own", site: str = ALL_SITES) -> go.Figure:
    """Sensitivity against contrast, one line per diameter with its 95 % Wilson band.

    At contrast 0 stands what is found where nothing was planted: false positives.
    """
    cells = _cells(result, level, site)
    figure = go.Figure()
    for number, diameter in enumerate(_axis(cells, "diameter_mm")):
        colour = SIZES[number % len(SIZES)]
        here = sorted((c for c in cells if c["diameter_mm"] == diameter), key=lambda c: c["contrast_sd"])
        points = sorted([*(_point(c) for c in here), _nothing_planted(here)])
        x = [p[0] for p in points]
        name = f"{diameter:g} mm"
        figure.add_scatter(
            x=[*x, *reversed(x)],
            y=[*(p[3] for p in points), *(p[2] for p in reversed(points))],
            mode="lines",
            fill="toself",
            fillcolor=colour,
            opacity=0.13,
            line={"width": 0},
            legendgroup=name,
            showlegend=False,
            hoverinfo="skip",
        )
        figure.add_scatter(
            x=x,
            y=[p[1] for p in points],
            customdata=[p[4] for p in points],
            mode="lines+markers",
            name=name,
            legendgroup=name,
            line={"color": colour, "width": 2},
            marker={"size": 7},
            hovertemplate=f"{name}, %{{x:+g}} SD<br>%{{customdata}}<extra></extra>",
        )
    figure.update_xaxes(title="contrast of the lesion, healthy SDs (0: nothing planted)", zeroline=True)
    figure.update_yaxes(title="found, %", range=[-2, 102])
    return _finish(figure, height=430)


_Point = tuple[float, float, float, float, str]
"""Contrast; sensitivity, low and high in %; hover text."""


def _cells(result: Mapping[str, Any], level: str, site: str) -> list[Mapping[str, Any]]:
    (chosen,) = (one for one in result["levels"] if one["id"] == level)
    return [cell for cell in chosen["cells"] if cell["site"] == site]


def _axis(cells: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return sorted({cell[name] for cell in cells})


def _point(cell: Mapping[str, Any]) -> _Point:
    low, share, high = (100 * cell[name] for name in ("low", "sensitivity", "high"))
    return cell["contrast_sd"], share, low, high, _hover(cell)


def _nothing_planted(cells: Sequence[Mapping[str, Any]]) -> _Point:
    found, n = sum(c["found_without"] for c in cells), sum(c["n"] for c in cells)
    low, high = wilson(found, n)
    return 0.0, 100 * found / n, 100 * low, 100 * high, f"nothing planted: {found} of {n} places called a lesion"


def _hover(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "nothing planted"
    return (
        f"found {cell['found']} of {cell['n']} [{100 * cell['low']:.0f} to {100 * cell['high']:.0f} %]"
        f"<br>before planting {cell['found_without']} of them"
        f"<br>Dice around the lesion {cell['dice']:.2f}"
    )


def _readable_on(share: float) -> str:
    """Black or white, whichever stands out more from the colour of a share. WCAG 2.1, relative luminance."""
    colour = [np.interp(share, [p for p, _ in SCALE], [c[k] for _, c in SCALE]) / 255 for k in range(3)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in colour]
    return "#000000" if float(np.dot(linear, (0.2126, 0.7152, 0.0722))) > 0.179 else "#ffffff"


def _signed(contrast: float) -> str:
    return f"{contrast:+g}".replace("-", "−")


def _finish(figure: go.Figure, height: int) -> go.Figure:
    figure.update_layout(
        height=height,
        margin={"l": 10, "r": 10, "t": 30, "b": 10},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hoverlabel={"align": "left"},
    )
    return figure
