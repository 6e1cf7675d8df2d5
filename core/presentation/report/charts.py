"""Charts as inline SVG: no script, no font, no request; colours come from the page's style, so paper and dark work.

Full bars are what can be deployed, hatched bars need labels, hollow bars have an interval that contains 0.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.presentation.report.markup import EMPTY, Html, join, tag
from core.presentation.report.words import interval, millilitres, number, plural, signed

WIDTH = 1000
_TEXT, _LEFT, _RIGHT, _NUMBERS = 296, 316, 776, 796
_ROW = 46


@dataclass(frozen=True)
class Dot:
    """A value with its interval, on a row of its own."""

    label: str
    value: float
    low: float | None
    high: float | None
    kind: str = ""
    """deployable, labels or oracle: the colour."""
    note: str = ""


def hatches() -> Html:
    """The hatching that every chart of the page uses; once per page."""
    lines = [
        tag("pattern", tag("path", kind=f"hatch {kind}", attributes={"d": "M0 0V7"}), attributes=_pattern(kind))
        for kind in ("cost", "fp", "fn", "space")
    ]
    return tag("svg", tag("defs", *lines), attributes={"width": 0, "height": 0, "aria-hidden": "true"}, kind="defs")


def ladder(rungs: Sequence[Mapping[str, Any]]) -> Html:
    """The ceilings from 1 down to the Dice: what is left at each rung, and what the rung costs."""
    if not rungs:
        return EMPTY
    rows: list[Html] = [_axis(_scale(0.0, 1.0), 0.0, 1.0, len(rungs), "mean Dice")]
    above = 1.0
    for row, rung in enumerate(rungs):
        last = row == len(rungs) - 1
        rows.append(_rung(rung, above, row, last))
        above = float(rung["mean"])
    return _svg(rows, len(rungs) * _ROW + 40, "Ceiling ladder: mean Dice at every rung")


def error_bars(categories: Sequence[Mapping[str, Any]]) -> Html:
    """The cost of each category of error, largest first, with its interval."""
    if not categories:
        return EMPTY
    ends = [float(c[key]) for c in categories for key in ("cost", "low", "high") if c.get(key) is not None]
    low, high = min(0.0, *ends), max(0.05, *ends)
    at = _scale(low, high)
    rows = [_axis(at, low, high, len(categories), "Dice lost")]
    for row, category in enumerate(categories):
        cost = float(category["cost"])
        kind = _fill(str(category["kind"]), bool(category.get("needs_labels")), bool(category.get("hollow")))
        only = "" if category.get("only") is None else f"only this put right: {signed(category['only'])}"
        rows += [
            _title(str(category["title"]), str(category.get("definition") or ""), _under(category), row),
            _bar(at(min(cost, 0.0)), at(max(cost, 0.0)), row, kind),
            _whisker(at, category.get("low"), category.get("high"), row),
            _figures(f"{number(cost)} {interval(category.get('low'), category.get('high'))}", only, row),
        ]
    return _svg(rows, len(categories) * _ROW + 40, "Error map: Dice lost to each category of error")


def whole(dice: float, categories: Sequence[Mapping[str, Any]]) -> Html:
    """Dice and every cost as parts of one bar: together they are 1 (negative costs are not drawn)."""
    parts = [("dice", "Dice", dice)]
    parts += [(str(c["kind"]), str(c["title"]), float(c["cost"])) for c in categories if float(c["cost"]) > 0]
    total = sum(value for _, _, value in parts) or 1.0
    drawn, x = [], 0.0
    for kind, title, value in parts:
        width = WIDTH * value / total
        told = f"{title} {number(value)}"
        box = {"x": x, "y": 2, "width": max(width - 2, 0.5), "height": 34, "rx": 3}
        drawn.append(tag("g", tag("title", told), tag("rect", kind=f"fill {kind}", attributes=box)))
        shown = told if len(told) * 7.6 < width - 14 else number(value) if width > 56 else ""
        if shown:
            drawn.append(_text(shown, x + 9, 24, "on-fill"))
        x += width
    return _svg(drawn, 38, "Dice and the costs of all errors, together 1")


def dots(rows: Sequence[Dot], title: str, *, lowest: float | None = None, highest: float | None = None) -> Html:
    """Values with 95 % intervals, one row each; a line at 0."""
    if not rows:
        return EMPTY
    ends = [v for r in rows for v in (r.value, r.low, r.high) if v is not None]
    low = min(0.0, *ends) if lowest is None else lowest
    high = max(0.02, *ends) if highest is None else highest
    at = _scale(low, high)
    drawn = [_axis(at, low, high, len(rows), title)]
    for row, dot in enumerate(rows):
        y = _middle(row)
        drawn += [
            _title(dot.label, dot.note, dot.note, row),
            _whisker(at, dot.low, dot.high, row, dot.kind),
            tag("circle", kind=f"dot {dot.kind}", attributes={"cx": at(dot.value), "cy": y, "r": 6}),
            _figures(f"{number(dot.value)} {interval(dot.low, dot.high)}", "", row),
        ]
    return _svg(drawn, len(rows) * _ROW + 40, title)


def subject_dots(rows: Sequence[Mapping[str, Any]], mean: float | None, height: int = 300) -> Html:
    """Dice of each test subject over its lesion volume, and how far its own best threshold would reach.

    Rows are {subject_id, dice, lesion_ml, best (oracle, or None)}.
    """
    rows = [row for row in rows if row["lesion_ml"] > 0]
    if not rows:
        return EMPTY
    logs = [math.log10(row["lesion_ml"]) for row in rows]
    low, high = math.floor(min(logs)), max(math.ceil(max(logs)), math.floor(min(logs)) + 1)
    left, right, top, bottom = 56, WIDTH - 120, 14, height - 46

    def x_of(volume: float) -> float:
        return left + (right - left) * (math.log10(volume) - low) / (high - low)

    def y_of(dice: float) -> float:
        return bottom - (bottom - top) * dice

    drawn = [_line(left, y_of(d), right, y_of(d), "grid") for d in (0, 0.25, 0.5, 0.75, 1)]
    drawn += [_text(f"{d:g}", left - 10, y_of(d) + 4, "tick", "end") for d in (0, 0.5, 1)]
    drawn += [_text(f"{10.0**k:g} mL", x_of(10.0**k), bottom + 20, "tick", "middle") for k in range(low, high + 1)]
    drawn.append(_text("lesion volume of the subject", (left + right) / 2, height - 6, "axis", "middle"))
    drawn.append(_text("Dice", 0, top + 4, "axis"))
    if mean is not None:
        drawn += [_line(left, y_of(mean), right, y_of(mean), "mean")]
        drawn += [_text(f"mean {number(mean)}", right + 8, y_of(mean) + 4, "tick")]
    for row in rows:
        x, y = x_of(row["lesion_ml"]), y_of(row["dice"])
        best = row.get("best")
        told = f"{row['subject_id']}: Dice {number(row['dice'])}, {millilitres(row['lesion_ml'])}"
        told += "" if best is None else f"; with its own best threshold (oracle) {number(best)}"
        reach = [] if best is None else [_line(x, y, x, y_of(best), "reach")]
        dot = tag("circle", kind="dot deployable", attributes={"cx": x, "cy": y, "r": 5.5})
        drawn.append(tag("g", tag("title", told), *reach, dot))
    return _svg(drawn, height, "Dice of each test subject over its lesion volume")


def _rung(rung: Mapping[str, Any], above: float, row: int, last: bool) -> Html:
    at, mean = _scale(0.0, 1.0), float(rung["mean"])
    cost = float(rung.get("cost") or 0.0)
    kind = _fill("cost", bool(rung.get("needs_labels")), bool(rung.get("hollow")))
    lifted = int(rung.get("lifted") or 0)
    under = ["needs labels"] if rung.get("needs_labels") else []
    under += [f"{plural(lifted, 'subject')} lifted, measured {number(rung.get('measured'))}"] if lifted else []
    lost = f"{signed(-cost)} {_cost_interval(rung)}" if row else ""
    drawn = [
        _title(str(rung["title"]), str(rung.get("definition") or ""), " · ".join(under), row, strong=last),
        _bar(at(0.0), at(mean), row, "fill dice" if last else "fill rest"),
    ]
    if cost > 0:
        drawn += [_bar(at(mean), at(above), row, kind)]
        ends = [None if rung.get(k) is None else above - rung[k] for k in ("cost_high", "cost_low")]
        drawn += [_whisker(at, ends[0], ends[1], row)]
    told = f"{number(mean)} {interval(rung.get('low'), rung.get('high')) if row else ''}".strip()
    return join([*drawn, _figures(told, lost, row, strong=last)])


def _cost_interval(rung: Mapping[str, Any]) -> str:
    low, high = rung.get("cost_low"), rung.get("cost_high")
    return "" if low is None or high is None else f"[{signed(-high)}, {signed(-low)}]"


def _under(category: Mapping[str, Any]) -> str:
    side = {"fp": "false positives", "fn": "missed", "space": "resampling"}.get(str(category["kind"]), "")
    amount = "" if not category.get("voxels") or category.get("ml") is None else millilitres(category["ml"])
    count = "" if category.get("n_subjects") is None else plural(int(category["n_subjects"]), "subject")
    return " · ".join(word for word in (side, amount, count) if word)


def _fill(kind: str, needs_labels: bool, hollow: bool) -> str:
    return f"{'hollow' if hollow else 'fill'} {kind}{' hatched' if needs_labels else ''}"


def _scale(low: float, high: float) -> "_Scale":
    return _Scale(low, (high - low) or 1.0)


@dataclass(frozen=True)
class _Scale:
    low: float
    span: float

    def __call__(self, value: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * min(max((value - self.low) / self.span, 0.0), 1.0)


def _axis(at: _Scale, low: float, high: float, rows: int, title: str) -> Html:
    step = _step(high - low)
    ticks = [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    bottom = rows * _ROW + 4
    lines = [_line(at(t), 2, at(t), bottom, "zero" if t == 0 else "grid") for t in ticks]
    texts = [_text(f"{t:g}".replace("-", "−"), at(t), bottom + 16, "tick", "middle") for t in ticks]
    return join([*lines, *texts, _text(title, _NUMBERS, bottom + 16, "axis")])


def _step(span: float) -> float:
    raw = span / 5
    power = 10.0 ** math.floor(math.log10(raw))
    return next(float(f"{m * power:.12g}") for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)


def _title(text: str, definition: str, under: str, row: int, *, strong: bool = False) -> Html:
    y = _middle(row)
    label = _text(_short(text, 38), 0, y + (-1 if under else 5), "label strong" if strong else "label")
    second = _text(_short(under, 48), 0, y + 16, "under") if under else None
    return tag("g", tag("title", f"{text}. {definition}".strip()), label, second)


def _figures(first: str, second: str, row: int, *, strong: bool = False) -> Html:
    y = _middle(row)
    kind = "value strong" if strong else "value"
    below = _text(second, _NUMBERS, y + 16, "under") if second else None
    return join([_text(first, _NUMBERS, y + (-1 if second else 5), kind), below])


def _bar(x0: float, x1: float, row: int, kind: str) -> Html:
    box = {"x": x0, "y": _middle(row) - 11, "width": max(x1 - x0, 1.0), "height": 22, "rx": 2}
    base = tag("rect", kind=kind.replace(" hatched", ""), attributes=box)
    if "hatched" not in kind:
        return base
    name = kind.split()[1]
    return join([base, tag("rect", kind="over", attributes={**box, "fill": f"url(#hatch-{name})"})])


def _whisker(at: _Scale, low: float | None, high: float | None, row: int, kind: str = "") -> Html:
    if low is None or high is None:
        return EMPTY
    return _line(at(low), _middle(row), at(high), _middle(row), f"whisker {kind}".strip())


def _middle(row: int) -> float:
    return row * _ROW + _ROW / 2 + 2


def _text(text: str, x: float, y: float, kind: str, anchor: str | None = None) -> Html:
    return tag("text", text, kind=kind, attributes={"x": round(x, 2), "y": round(y, 2), "text-anchor": anchor})


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Html:
    return tag("path", kind=f"line {kind}", attributes={"d": f"M{x1:.2f} {y1:.2f}L{x2:.2f} {y2:.2f}"})


def _svg(content: Sequence[Html], height: float, description: str) -> Html:
    attributes = {"viewBox": f"0 0 {WIDTH} {height:g}", "role": "img", "aria-label": description}
    return tag("div", tag("svg", *content, kind="chart", attributes=attributes), kind="scroll")


def _pattern(kind: str) -> dict[str, str | float | None]:
    return {
        "id": f"hatch-{kind}",
        "width": 7,
        "height": 7,
        "patternUnits": "userSpaceOnUse",
        "patternTransform": "rotate(45)",
    }


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
