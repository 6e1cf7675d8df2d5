"""Marks that figures share: whiskers, hatches, hover texts, numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from core.presentation.figures.results import HEALTHY, INK, ORACLE, as_text

EMPTY = "rgba(0,0,0,0)"


def whole_text(figure: go.Figure, name: str, value: float, key: str, text: str) -> None:
    """A bar from zero: the start and the end of the ladder."""
    solid = key == "dice"
    figure.add_bar(
        orientation="h",
        y=[name],
        x=[value],
        marker={"color": HEALTHY if solid else "rgba(140,147,156,0.3)"},
        customdata=[[None]],
        hovertemplate=f"{text}<extra></extra>",
        showlegend=False,
    )


def marker_of(
    rows: Sequence[Mapping[str, Any]], colours: Sequence[str], chosen: str | None, view: str
) -> dict[str, Any]:
    """Bars in the colours of their kinds: hollow, hatched where labels are needed, outlined when chosen."""
    hollow = [bool(r["hollow"]) for r in rows]
    hatched = [bool(r.get("needs_labels")) and not h for r, h in zip(rows, hollow, strict=True)]
    picked = [f"{view}.{r['id']}" == chosen for r in rows]
    return {
        "color": [EMPTY if h else c for h, c in zip(hollow, colours, strict=True)],
        "line": {
            "color": [INK if p else c for p, c in zip(picked, colours, strict=True)],
            "width": [2.5 if p else 1.8 if h else 1.0 for p, h in zip(picked, hollow, strict=True)],
        },
        "pattern": {
            "shape": ["/" if h else "" for h in hatched],
            "fillmode": "overlay",
            "fgcolor": ["rgba(255,255,255,0.75)"] * len(rows),
            "size": 7,
            "solidity": 0.35,
        },
    }


def whiskers_of(
    values: Sequence[float], spans: Sequence[tuple[float | None, float | None]], sign: int = 1
) -> dict[str, Any]:
    """Intervals as error bars."""
    up = [0.0 if high is None else max(high - v, 0.0) for v, (_, high) in zip(values, spans, strict=True)]
    down = [0.0 if low is None else max(v - low, 0.0) for v, (low, _) in zip(values, spans, strict=True)]
    array, minus = (up, down) if sign > 0 else (down, up)
    return {
        "type": "data", "symmetric": False, "array": array, "arrayminus": minus, "thickness": 1.5, "width": 4,
        "color": INK,
    }  # fmt: skip


def column_of(figure: go.Figure, names: Sequence[str], texts: Sequence[str]) -> None:
    """Values in a column right of the plot, one per bar."""
    for name, text in zip(names, texts, strict=True):
        figure.add_annotation(
            x=1.01, xref="paper", xanchor="left", y=name, yref="y", text=text, showarrow=False, align="left",
            font={"color": INK, "size": 13},
        )  # fmt: skip


def legend_key(figure: go.Figure, entries: Sequence[tuple[str, str, str]]) -> None:
    """What the drawing rule means, on one line above the bars; a legend would take three beside long names."""
    marks = [*entries, ("□", ORACLE, "interval contains 0")]
    figure.add_annotation(
        x=1, xref="paper", xanchor="right", y=1, yref="paper", yanchor="bottom", yshift=4, showarrow=False,
        text="   ".join(f"<span style='color:{colour}'>{mark}</span> {text}" for mark, colour, text in marks),
        font={"color": INK, "size": 12},
    )  # fmt: skip
    figure.update_layout(barmode="overlay")


def hover_text(rung: Mapping[str, Any], cost: float) -> tuple[str, str, str]:
    """What stands beside the pointer on a rung: its title, its cost, and what it leaves."""
    span = span_text({"low": rung["cost_low"], "high": rung["cost_high"]})
    level = f"leaves a mean Dice of {number_text(rung['mean'])} {span_text(rung)}"
    lifted = f"<br>{rung['lifted']} subjects lifted to the rung below" if rung.get("lifted") else ""
    own = rung.get("measured")
    if own is not None and rung["mean"] is not None and abs(own - rung["mean"]) >= 0.0005:
        lifted = f"<br>measured: {number_text(own)}{lifted}"
    return (
        wrapped_text(rung["title"], 60),
        f"{cost:.3f} {span}",
        f"{level}{lifted}<br>{wrapped_text(rung['definition'], 60)}",
    )


def wrapped_text(text: str, width: int) -> str:
    """The text with line breaks; markup in names stays text."""
    lines, line = [], ""
    for word in as_text(text).split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "<br>".join([*lines, line])


def number_text(value: float | None) -> str:
    """Three decimals, or a dash for nothing."""
    return "–" if value is None else f"{value:.3f}"


def signed_text(value: float) -> str:
    """A number with its sign."""
    text = f"{value:+.3f}".replace("-", "−")
    return "0.000" if text in ("+0.000", "−0.000") else text


def span_text(found: Mapping[str, Any]) -> str:
    """An interval in brackets, with the number of subjects where it is known."""
    if found.get("low") is None or found.get("high") is None:
        return ""
    return f"[{found['low']:.3f}, {found['high']:.3f}]" + (f", n = {found['n']}" if "n" in found else "")
