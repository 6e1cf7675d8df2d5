"""Sections of the report on stored explorations: the post-processing grid, and what the detector can find at all."""

from collections.abc import Mapping, Sequence
from typing import Any

from core.diagnosis_view import limit_rows, post_processing_rows
from core.report_parts.markup import EMPTY, Column, Html, join, table, tag
from core.report_parts.words import heat, millilitres, number, plural, protocol_name

ALL_SITES = "all"


def post_processing(found: Mapping[str, Any] | None) -> Html:
    """The run's own setting, the best on validation and what it gives on test, the best on test (an oracle)."""
    if not found:
        return EMPTY
    columns = [
        Column("Setting", wide=True),
        Column("Threshold from"),
        Column("Dice on validation", True),
        Column("Dice on test", True),
        Column("95 % interval", True),
        Column("Gain on test, paired", True),
    ]
    rows: list[list[Html | str | None]] = []
    kinds = []
    for protocol in found["shipped"]:
        for row in post_processing_rows(found, protocol):
            rows.append(
                [
                    join([tag("b", row["which"]), tag("br"), row["setting"]]),
                    protocol_name(protocol),
                    number(row["Dice on validation"]),
                    number(row["Dice on test"]),
                    row["95 % interval"],
                    row["paired gain on test"] or None,
                ]
            )
            kinds.append("oracle" if row["needs test labels"] else "")
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
            tag(
                "p", f"Contrast in SD of healthy scans at the same place. {found['rule'].capitalize()}.", kind="caption"
            ),
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
    rows = limit_rows(level, ALL_SITES)
    if not rows:
        return EMPTY
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [Column(name[:1].upper() + name[1:], number > 0) for number, name in enumerate(names)]
    return table(columns, [[row.get(name) for name in names] for row in rows])


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
        Column("Threshold allows", wide=True),
        Column("Threshold", True),
        Column("False positives per scan", True),
        Column("Components per scan", True),
        Column("Planted lesions found", True),
    ]
    return table(columns, rows)
