"""Figures of the diagnosis: ladder, error map, gains of what-ifs, small multiples.

One drawing rule for all: solid can be deployed, hatched needs test labels, hollow means that the 95 % interval
contains 0. Whiskers are that interval.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from core.diagnosis_view import SETTING_NAMES, category_title
from core.figures import HEALTHY, INK, ORACLE, as_text, finish

FALSE_POSITIVE, MISSED = "#d9761a", "#bb4fb0"  # the viewer's orange and magenta, dark enough for a white page
EMPTY = "rgba(0,0,0,0)"
LAYER_PALETTE = ("#4f86c6", "#c98a1b", "#2a9d8f", "#bb4fb0", "#8c939c")
KIND_COLOURS = {"fp": FALSE_POSITIVE, "fn": MISSED, "space": ORACLE}
KIND_NAMES = {"fp": "false positives", "fn": "misses"}


def ladder(rungs: Sequence[Mapping[str, Any]], dice: Mapping[str, Any], chosen: str | None = None) -> go.Figure:
    """From a perfect segmentation down to the Dice that is reached, one floating bar per cost.

    `rungs` as in the diagnosis, the reference first; `customdata` of a bar is its key. Costs end in whiskers.
    """
    figure = go.Figure()
    steps = list(rungs[1:])
    above = [r["mean"] or 0.0 for r in rungs[:-1]]
    costs = [r["cost"] or 0.0 for r in steps]
    _whole(figure, "A perfect segmentation", 1.0, "reference", "Dice 1: the reference itself")
    figure.add_bar(
        orientation="h",
        y=[_wrapped(r["title"], 22) for r in steps],
        base=above,
        x=[-cost for cost in costs],
        marker=_marker(steps, [ORACLE if r["needs_labels"] else HEALTHY for r in steps], chosen, "ladder"),
        error_x=_whiskers(costs, [(r["cost_low"], r["cost_high"]) for r in steps], sign=-1),
        customdata=[[f"ladder.{r['id']}", *_hover(r, cost)] for r, cost in zip(steps, costs, strict=True)],
        hovertemplate="<b>%{customdata[1]}</b><br>costs %{customdata[2]}<br>%{customdata[3]}<extra></extra>",
        showlegend=False,
    )
    _whole(figure, "Dice that is reached", dice["mean"] or 0.0, "dice", f"Dice {_number(dice['mean'])} {_span(dice)}")
    names = ["A perfect segmentation", *(_wrapped(r["title"], 22) for r in steps), "Dice that is reached"]
    texts = ["1.000", *(_signed(-cost) for cost in costs), f"<b>{_number(dice['mean'])}</b>"]
    _column(figure, names, texts)
    _key(figure, [("■", HEALTHY, "deployable"), ("▨", ORACLE, "needs test labels")])
    figure.update_xaxes(title="Dice", range=[0, 1.005], zeroline=False)
    figure.update_yaxes(autorange="reversed", categoryorder="array", categoryarray=names, ticklabelstandoff=6)
    figure.update_layout(bargap=0.28)
    return finish(figure, height=100 + 42 * len(names)).update_layout(margin_r=64)


def error_bars(categories: Sequence[Mapping[str, Any]], chosen: str | None = None) -> go.Figure:
    """What each kind of wrong voxel costs, largest first; the costs and the Dice add up to 1."""
    figure = go.Figure()
    rows = sorted(categories, key=lambda c: -(c["cost"] or 0.0))
    names = [_wrapped(category_title(c), 27) for c in rows]
    costs = [c["cost"] or 0.0 for c in rows]
    figure.add_bar(
        orientation="h",
        y=names,
        x=costs,
        marker=_marker(rows, [KIND_COLOURS[c["kind"]] for c in rows], chosen, "errors"),
        error_x=_whiskers(costs, [(c["low"], c["high"]) for c in rows]),
        customdata=[
            [
                f"errors.{c['id']}",
                f"{_number(c['cost'])} {_span(c)}",
                _number(c["only"]),
                _number(c["all_but"]),
                f"{c['ml']:,.1f} mL, {c['voxels']:,} voxels in {c['n_subjects']} subjects" if c["voxels"] else "",
                _wrapped(c["definition"], 60),
            ]
            for c in rows
        ],
        hovertemplate="<b>%{y}</b><br>costs %{customdata[1]}<br>put right alone: +%{customdata[2]}"
        "<br>all else put right, still missing: %{customdata[3]}<br>%{customdata[4]}<br>%{customdata[5]}"
        "<extra></extra>",
        showlegend=False,
    )
    _column(figure, names, [f"{cost:.3f}".replace("-", "−") for cost in costs])
    kinds = [kind for kind in ("fp", "fn") if any(c["kind"] == kind for c in rows)]
    _key(figure, [("■", KIND_COLOURS[kind], KIND_NAMES[kind]) for kind in kinds])
    figure.update_xaxes(
        title="Dice lost", zeroline=True, rangemode="tozero" if min(costs, default=0) >= 0 else "normal"
    )
    figure.update_yaxes(autorange="reversed", ticklabelstandoff=6)
    figure.update_layout(bargap=0.28)
    return finish(figure, height=100 + 27 * len(rows)).update_layout(margin_r=56)


def gain_dots(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Gain in test Dice of each {group, label, gain, low, high, deployable, n}; an open dot's interval contains 0.

    Each group's name stands once above its rows.
    """
    figure = go.Figure()
    places, ticks, lines = _places(rows)
    for name, colour, able in (("can be deployed", HEALTHY, True), ("measures only", ORACLE, False)):
        members = [(r, place) for r, place in zip(rows, places, strict=True) if r["deployable"] is able]
        if not members:
            continue
        hollow = [r["low"] is None or r["low"] <= 0 <= r["high"] for r, _ in members]
        figure.add_scatter(
            x=[r["gain"] for r, _ in members],
            y=[place for _, place in members],
            name=name,
            mode="markers",
            marker={
                "size": 11,
                "color": colour,
                "symbol": ["circle-open" if h else "circle" for h in hollow],
                "line": {"width": 2, "color": colour},
            },
            error_x=_whiskers([r["gain"] for r, _ in members], [(r["low"], r["high"]) for r, _ in members])
            | {"color": colour},
            customdata=[[_signed(r["gain"]), _span(r), _wrapped(r["label"], 60)] for r, _ in members],
            hovertemplate="%{customdata[2]}<br>%{customdata[0]} Dice %{customdata[1]}<extra></extra>",
        )
    figure.add_vline(x=0, line={"color": ORACLE, "width": 1, "dash": "dot"})
    figure.update_xaxes(title="change of mean test Dice, paired", zeroline=False)
    figure.update_yaxes(
        range=[lines, -0.5], tickmode="array", tickvals=[place for place, _ in ticks],
        ticktext=[text for _, text in ticks], ticklabelstandoff=6, showgrid=False, zeroline=False,
    )  # fmt: skip
    return finish(figure, height=110 + 19 * round(lines))


def _places(rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[tuple[float, str]], float]:
    """Where each row stands, counted in lines of text; the labels at their places; and the number of lines."""
    places: list[float] = []
    ticks: list[tuple[float, str]] = []
    line, before = 0.0, None
    for row in rows:
        group = row.get("group")
        if group is not None and group != before:
            text = _wrapped(group, 44)
            count = 1 + text.count("<br>")
            line += 0.4 if before is not None else 0.0
            ticks.append((line + (count - 1) / 2, f"<b>{text}</b>"))
            line, before = line + count, group
        text = _wrapped(row["label"], 44)
        count = 1 + text.count("<br>")
        places.append(line + (count - 1) / 2)
        ticks.append((places[-1], text))
        line += count + 0.15
    return places, ticks, line


def strata_bars(rows: Sequence[Mapping[str, Any]], value: str, *, colour: str = HEALTHY) -> go.Figure:
    """One small chart: recall of lesions or Dice of subjects per group, with n beside each group and intervals."""
    names = [f"{_wrapped(r['bin'], 20)} ({r['n']})" for r in rows]
    values = [r[value] or 0.0 for r in rows]
    figure = go.Figure()
    figure.add_bar(
        orientation="h",
        y=names,
        x=values,
        marker={"color": colour},
        error_x=_whiskers(values, [(r["low"], r["high"]) for r in rows]),
        customdata=[[f"{v:.3f}", _span(r)] for v, r in zip(values, rows, strict=True)],
        hovertemplate="%{y}<br>" + value + " %{customdata[0]} %{customdata[1]}<extra></extra>",
        showlegend=False,
    )
    figure.update_xaxes(title={"recall": "share found", "dice": "mean Dice"}[value], range=[0, 1.02], nticks=5)
    figure.update_yaxes(autorange="reversed", ticklabelstandoff=6)
    figure.update_layout(bargap=0.35)
    return finish(figure, height=64 + 32 * len(rows)).update_layout(margin_t=4)


def ceiling_lines(layers: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Best Dice that each layer's grid allows, by lesion size: which layer can see which lesion."""
    figure = go.Figure()
    dashes = ("solid", "dash", "dot", "dashdot")
    for k, layer in enumerate(layers):
        rows = layer["by_size"]
        figure.add_scatter(
            x=[as_text(r["bin"]) for r in rows],
            y=[r["ceiling"] for r in rows],
            name=f"{as_text(layer['layer'])}, {layer['spacing_mm']:g} mm",
            mode="lines+markers",
            line={"color": LAYER_PALETTE[k % len(LAYER_PALETTE)], "dash": dashes[k % len(dashes)], "width": 2},
            customdata=[[r["n"]] for r in rows],
            hovertemplate="%{x}: at most %{y:.3f}, n = %{customdata[0]}<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(title="lesion volume")
    figure.update_yaxes(title="best possible Dice", range=[0, 1.02])
    return finish(figure, height=340)


def setting_lines(result: Mapping[str, Any], chosen: Mapping[str, float], protocol: str) -> go.Figure:
    """Dice along each post-processing setting with the others held: one panel per setting, a ring where one stands."""
    names = list(SETTING_NAMES)
    figure = make_subplots(1, len(names), shared_yaxes=True, horizontal_spacing=0.03)
    series = (
        ("validation: choose by this", "validation_dice", HEALTHY),
        ("test (oracle to choose by)", "dice", ORACLE),
    )
    for panel, name in enumerate(names, start=1):
        others = {key: value for key, value in chosen.items() if key != name}
        rows = [row for row in result["rows"] if all(row[key] == value for key, value in others.items())]
        for title, figure_name, colour in series:
            figure.add_scatter(
                row=1,
                col=panel,
                x=["none" if row[name] == 0 else f"{row[name]:g}" for row in rows],
                y=[row[protocol][figure_name] for row in rows],
                name=title,
                legendgroup=title,
                showlegend=panel == 1,
                mode="lines+markers",
                line={"color": colour, "width": 2},
                marker={
                    "size": [14 if row[name] == chosen[name] else 7 for row in rows],
                    "symbol": ["circle-open" if row[name] == chosen[name] else "circle" for row in rows],
                    "line": {"width": 2},
                },
                hovertemplate=f"{SETTING_NAMES[name][0]} %{{x}}<br>{title.split(':')[0]} %{{y:.3f}}<extra></extra>",
            )
        figure.update_xaxes(title=", ".join(SETTING_NAMES[name]), type="category", row=1, col=panel)
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title="mean Dice", row=1, col=1)
    return finish(figure, height=290)


def _whole(figure: go.Figure, name: str, value: float, key: str, text: str) -> None:
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


def _marker(rows: Sequence[Mapping[str, Any]], colours: Sequence[str], chosen: str | None, view: str) -> dict[str, Any]:
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


def _whiskers(
    values: Sequence[float], spans: Sequence[tuple[float | None, float | None]], sign: int = 1
) -> dict[str, Any]:
    up = [0.0 if high is None else max(high - v, 0.0) for v, (_, high) in zip(values, spans, strict=True)]
    down = [0.0 if low is None else max(v - low, 0.0) for v, (low, _) in zip(values, spans, strict=True)]
    array, minus = (up, down) if sign > 0 else (down, up)
    return {
        "type": "data", "symmetric": False, "array": array, "arrayminus": minus, "thickness": 1.5, "width": 4,
        "color": INK,
    }  # fmt: skip


def _column(figure: go.Figure, names: Sequence[str], texts: Sequence[str]) -> None:
    """Values in a column right of the plot, one per bar."""
    for name, text in zip(names, texts, strict=True):
        figure.add_annotation(
            x=1.01, xref="paper", xanchor="left", y=name, yref="y", text=text, showarrow=False, align="left",
            font={"color": INK, "size": 13},
        )  # fmt: skip


def _key(figure: go.Figure, entries: Sequence[tuple[str, str, str]]) -> None:
    """What the drawing rule means, on one line above the bars; a legend would take three beside long names."""
    marks = [*entries, ("□", ORACLE, "interval contains 0")]
    figure.add_annotation(
        x=1, xref="paper", xanchor="right", y=1, yref="paper", yanchor="bottom", yshift=4, showarrow=False,
        text="   ".join(f"<span style='color:{colour}'>{mark}</span> {text}" for mark, colour, text in marks),
        font={"color": INK, "size": 12},
    )  # fmt: skip
    figure.update_layout(barmode="overlay")


def _hover(rung: Mapping[str, Any], cost: float) -> tuple[str, str, str]:
    span = _span({"low": rung["cost_low"], "high": rung["cost_high"]})
    level = f"leaves a mean Dice of {_number(rung['mean'])} {_span(rung)}"
    lifted = f"<br>{rung['lifted']} subjects lifted to the rung below" if rung.get("lifted") else ""
    own = rung.get("measured")
    if own is not None and rung["mean"] is not None and abs(own - rung["mean"]) >= 0.0005:
        lifted = f"<br>measured: {_number(own)}{lifted}"
    return _wrapped(rung["title"], 60), f"{cost:.3f} {span}", f"{level}{lifted}<br>{_wrapped(rung['definition'], 60)}"


def _wrapped(text: str, width: int) -> str:
    """The text with line breaks; markup in names stays text."""
    lines, line = [], ""
    for word in as_text(text).split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "<br>".join([*lines, line])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _signed(value: float) -> str:
    text = f"{value:+.3f}".replace("-", "−")
    return "0.000" if text in ("+0.000", "−0.000") else text


def _span(found: Mapping[str, Any]) -> str:
    if found.get("low") is None or found.get("high") is None:
        return ""
    return f"[{found['low']:.3f}, {found['high']:.3f}]" + (f", n = {found['n']}" if "n" in found else "")
