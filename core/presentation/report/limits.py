"""Sections of the report on stored explorations: the post-processing grid, and what the detector can find at all."""

from collections.abc import Mapping, Sequence
from typing import Any

from core.diagnosis.verdict import settings_text
from core.presentation.report.markup import EMPTY, Column, Html, join, table, tag
from core.presentation.report.words import (
    capital,
    heat,
    interval,
    millilitres,
    number,
    plural,
    protocol_name,
    signed,
    with_interval,
)

ALL_SITES = "all"
_QUOTED = (
    ("shipped", "The run's own"),
    ("best_on_validation", "Best on validation"),
    ("best_on_test", "Oracle: best on test"),
)


def post_processing(found: Mapping[str, Any] | None) -> Html:
    """The run's own setting, the best on validation and what it gives on test, the best on test (an oracle)."""
    if not found:
        return EMPTY
    columns = [
        Column("Setting"),
        Column("Threshold from"),
        Column("Dice on validation", True),
        Column("Dice on test, 95 % interval", True),
        Column("Gain on test, paired", True),
        Column("False positives", True),
    ]
    rows: list[list[Html | str | None]] = []
    kinds = []
    for key, title in _QUOTED:
        for protocol, one in (found[key] or {}).items():
            if one is None or one["dice"] is None:
                continue
            rows.append(
                [
                    join([tag("b", title), tag("br"), settings_text(one["settings"])]),
                    protocol_name(protocol),
                    number(one["validation_dice"]),
                    with_interval(one, "dice"),
                    None if key == "shipped" else _gain(one),
                    millilitres(one.get("false_ml")),
                ]
            )
            kinds.append("oracle" if one.get("oracle") else "")
    if not rows:
        return EMPTY
    told = (
        f"{len(found['rows'])} combinations of smoothing, median, brain erosion and smallest component, on the working "
        f"grid; {plural(len(found['test_subjects']), 'test subject')} with lesions."
    )
    return join(
        [
            tag("h3", "Post-processing"),
            tag("p", told),
            table(columns, rows, kinds),
            tag("p", " ".join(found.get("notes") or []), kind="caption"),
        ]
    )


def detection_limits(found: Mapping[str, Any] | None) -> Html:
    """Sensitivity over size and contrast at the run's own threshold, and what that threshold costs elsewhere."""
    if not found or not found.get("levels"):
        return EMPTY
    own = found["levels"][0]
    told = (
        f"{found['n_lesions']} lesions of known size and contrast, planted into {plural(found['n_scans'], 'scan')} "
        f"of healthy subjects and looked for at {own['title']}: "
        f"{millilitres(own['false_positive_ml_per_scan'])} of false positives per healthy scan. Shares of lesions "
        "found, with the number planted; all sites."
    )
    return join(
        [
            tag("h3", "What it can find at all"),
            tag("p", told),
            _sensitivity(own["cells"]),
            tag("p", f"Contrast in SD of healthy scans at the same place. {capital(found['rule'])}.", kind="caption"),
            _half_found(own),
            _levels(found["levels"]),
            tag("p", " ".join(found.get("notes") or []), kind="caption"),
        ]
    )


def _sensitivity(cells: Sequence[Mapping[str, Any]]) -> Html:
    here = {(c["diameter_mm"], c["contrast_sd"]): c for c in cells if c["site"] == ALL_SITES}
    contrasts = sorted({contrast for _, contrast in here})
    columns = [Column("Diameter"), *(Column(f"{c:+g} SD".replace("-", "−"), True) for c in contrasts)]
    rows: list[list[Html | str | None]] = []
    for diameter in sorted({d for d, _ in here}):
        row: list[Html | str | None] = [f"{diameter:g} mm"]
        for contrast in contrasts:
            cell = here.get((diameter, contrast))
            row.append(None if cell is None else heat(cell["sensitivity"], _share(cell)))
        rows.append(row)
    return table(columns, rows)


def _share(cell: Mapping[str, Any]) -> str:
    return f"{100 * cell['sensitivity']:.0f} % of {cell['n']}"


def _half_found(level: Mapping[str, Any]) -> Html:
    """The contrast from which half and four fifths of the lesions are found, darker and brighter than healthy."""
    limits = [row for row in level["limits"] if row["site"] == ALL_SITES]
    if not limits:
        return EMPTY
    cells = {(r["diameter_mm"], r["sign"], s): _contrast(r, s) for r in limits for s in ("50", "80")}
    kinds = [(sign, share) for sign in ("darker", "brighter") for share in ("50", "80")]
    columns = [Column("Diameter"), *(Column(f"{sign.capitalize()}: {share} % found from") for sign, share in kinds)]
    rows: list[list[Html | str | None]] = [
        [f"{diameter:g} mm", *(cells.get((diameter, *kind)) for kind in kinds)]
        for diameter in sorted({row["diameter_mm"] for row in limits})
    ]
    return table(columns, rows)


def _contrast(limit: Mapping[str, Any], share: str) -> str:
    reached = limit[f"contrast_sd_{share}"]
    return str(limit[f"why_{share}"]) if reached is None else f"{signed(reached, 1)} SD"


def _gain(one: Mapping[str, Any]) -> str | None:
    if one.get("gain") is None:
        return None
    return f"{signed(one['gain'])} {interval(one.get('gain_low'), one.get('gain_high'))}".strip()


def _levels(levels: Sequence[Mapping[str, Any]]) -> Html:
    """What other false-positive levels find: all lesions together."""
    rows: list[list[Html | str | None]] = []
    for level in levels:
        cells = [c for c in level["cells"] if c["site"] == ALL_SITES]
        planted, found = sum(c["n"] for c in cells), sum(c["found"] for c in cells)
        share = f"{found} of {planted}" if planted else None
        rows.append(
            [
                level["title"],
                number(level["threshold"]["mean"]),
                millilitres(level["false_positive_ml_per_scan"]),
                f"{level['false_positive_components_per_scan']:.1f}",
                share,
            ]
        )
    columns = [
        Column("Threshold allows"),
        Column("Threshold", True),
        Column("False positives per scan", True),
        Column("Components per scan", True),
        Column("Planted lesions found", True),
    ]
    return table(columns, rows)
