"""Figures of the diagnosis: ladder, error map, gains of what-ifs, small multiples.

One drawing rule for all: solid can be deployed, hatched needs test labels, hollow means that the 95 % interval
contains 0. Whiskers are that interval.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from core.presentation.diagnosis_view import SETTING_NAMES, category_title
from core.presentation.figures.marks import (
    column_of,
    hover_text,
    legend_key,
    marker_of,
    number_text,
    signed_text,
    span_text,
    whiskers_of,
    whole_text,
    wrapped_text,
)
from core.presentation.figures.results import HEALTHY, ORACLE, as_text, finish

FALSE_POSITIVE, MISSED = "#d9761a", "#bb4fb0"  # the viewer's orange and magenta, dark enough for a white page
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
    whole_text(figure, "A perfect segmentation", 1.0, "reference", "Dice 1: the reference itself")
    figure.add_bar(
        orientation="h",
        y=[wrapped_text(r["title"], 22) for r in steps],
        base=above,
        x=[-cost for cost in costs],
        marker=marker_of(steps, [ORACLE if r["needs_labels"] else HEALTHY for r in steps], chosen, "ladder"),
        error_x=whiskers_of(costs, [(r["cost_low"], r["cost_high"]) for r in steps], sign=-1),
        customdata=[[f"ladder.{r['id']}", *hover_text(r, cost)] for r, cost in zip(steps, costs, strict=True)],
        hovertemplate="<b>%{customdata[1]}</b><br>costs %{customdata[2]}<br>%{customdata[3]}<extra></extra>",
        showlegend=False,
    )
    whole_text(
        figure,
        "Dice that is reached",
        dice["mean"] or 0.0,
        "dice",
        f"Dice {number_text(dice['mean'])} {span_text(dice)}",
    )
    names = ["A perfect segmentation", *(wrapped_text(r["title"], 22) for r in steps), "Dice that is reached"]
    texts = ["1.000", *(signed_text(-cost) for cost in costs), f"<b>{number_text(dice['mean'])}</b>"]
    column_of(figure, names, texts)
    legend_key(figure, [("■", HEALTHY, "deployable"), ("▨", ORACLE, "needs test labels")])
    figure.update_xaxes(title="Dice", range=[0, 1.005], zeroline=False)
    figure.update_yaxes(autorange="reversed", categoryorder="array", categoryarray=names, ticklabelstandoff=6)
    figure.update_layout(bargap=0.28)
    return finish(figure, height=100 + 42 * len(names)).update_layout(margin_r=64)


def error_bars(categories: Sequence[Mapping[str, Any]], chosen: str | None = None) -> go.Figure:
    """What each kind of wrong voxel costs, largest first; the costs and the Dice add up to 1."""
    figure = go.Figure()
    rows = sorted(categories, key=lambda c: -(c["cost"] or 0.0))
    names = [wrapped_text(category_title(c), 27) for c in rows]
    costs = [c["cost"] or 0.0 for c in rows]
    figure.add_bar(
        orientation="h",
        y=names,
        x=costs,
        marker=marker_of(rows, [KIND_COLOURS[c["kind"]] for c in rows], chosen, "errors"),
        error_x=whiskers_of(costs, [(c["low"], c["high"]) for c in rows]),
        customdata=[
            [
                f"errors.{c['id']}",
                f"{number_text(c['cost'])} {span_text(c)}",
                number_text(c["only"]),
                number_text(c["all_but"]),
                f"{c['ml']:,.1f} mL, {c['voxels']:,} voxels in {c['n_subjects']} subjects" if c["voxels"] else "",
                wrapped_text(c["definition"], 60),
            ]
            for c in rows
        ],
        hovertemplate="<b>%{y}</b><br>costs %{customdata[1]}<br>put right alone: +%{customdata[2]}"
        "<br>all else put right, still missing: %{customdata[3]}<br>%{customdata[4]}<br>%{customdata[5]}"
        "<extra></extra>",
        showlegend=False,
    )
    column_of(figure, names, [f"{cost:.3f}".replace("-", "−") for cost in costs])
    kinds = [kind for kind in ("fp", "fn") if any(c["kind"] == kind for c in rows)]
    legend_key(figure, [("■", KIND_COLOURS[kind], KIND_NAMES[kind]) for kind in kinds])
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
            error_x=whiskers_of([r["gain"] for r, _ in members], [(r["low"], r["high"]) for r, _ in members])
            | {"color": colour},
            customdata=[[signed_text(r["gain"]), span_text(r), wrapped_text(r["label"], 60)] for r, _ in members],
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
            text = wrapped_text(group, 44)
            count = 1 + text.count("<br>")
            line += 0.4 if before is not None else 0.0
            ticks.append((line + (count - 1) / 2, f"<b>{text}</b>"))
            line, before = line + count, group
        text = wrapped_text(row["label"], 44)
        count = 1 + text.count("<br>")
        places.append(line + (count - 1) / 2)
        ticks.append((places[-1], text))
        line += count + 0.15
    return places, ticks, line


def strata_bars(rows: Sequence[Mapping[str, Any]], value: str, *, colour: str = HEALTHY) -> go.Figure:
    """One small chart: recall of lesions or Dice of subjects per group, with n beside each group and intervals."""
    names = [f"{wrapped_text(r['bin'], 20)} ({r['n']})" for r in rows]
    values = [r[value] or 0.0 for r in rows]
    figure = go.Figure()
    figure.add_bar(
        orientation="h",
        y=names,
        x=values,
        marker={"color": colour},
        error_x=whiskers_of(values, [(r["low"], r["high"]) for r in rows]),
        customdata=[[f"{v:.3f}", span_text(r)] for v, r in zip(values, rows, strict=True)],
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
