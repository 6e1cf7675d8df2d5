"""Plotly figures of what a detector can find: sensitivity over size x contrast of lesions that were planted."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

SIZES = ("#8a5fbf", "#2f7ed8", "#2a9d8f", "#c98a1b", "#d8572a", "#d81b7a", "#7d8590")
"""One colour per diameter, smallest first; to be seen on white and on near-black."""
_ALL = "all"


def sensitivity_map(result: Mapping[str, Any], level: str = "own", site: str = _ALL) -> go.Figure:
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
            text=[["" if cell is None else f"{100 * cell['sensitivity']:.0f}" for cell in row] for row in rows],
            customdata=[[_hover(cell) for cell in row] for row in rows],
            texttemplate="%{text}",  # without a colour of its own plotly takes the one that stands out of the cell
            textfont={"size": 14},
            hovertemplate="%{y} mm, %{x} SD<br>%{customdata}<extra></extra>",
            zmin=0,
            zmax=100,
            colorscale="Cividis",
            colorbar={"title": {"text": "found, %"}, "thickness": 12},
            xgap=2,
            ygap=2,
        )
    )
    figure.update_xaxes(title="contrast of the lesion, healthy SDs (darker | brighter)", type="category")
    figure.update_yaxes(title="diameter, mm", type="category")
    return _finish(figure, height=140 + 44 * len(diameters))


def sensitivity_curves(result: Mapping[str, Any], level: str = "own", site: str = _ALL) -> go.Figure:
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
    share = 100 * found / n
    return 0.0, share, share, share, f"nothing planted: {found} of {n} places called a lesion"


def _hover(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "nothing planted"
    return (
        f"found {cell['found']} of {cell['n']} [{100 * cell['low']:.0f} to {100 * cell['high']:.0f} %]"
        f"<br>before planting {cell['found_without']} of them"
        f"<br>Dice around the lesion {cell['dice']:.2f}"
    )


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
