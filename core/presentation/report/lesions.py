"""Sections of the report on lesions: by size and brightness, and one by one."""

from collections.abc import Mapping
from typing import Any

from core.diagnosis.strata import strata
from core.presentation.report.explained import Rows
from core.presentation.report.markup import EMPTY, Column, Html, join, table, tag
from core.presentation.report.words import (
    NOTHING,
    heat,
    interval,
    millilitres,
    number,
    plural,
    signed,
)

MOST_LESIONS = 24
_STRATA = {"size": "lesion volume", "contrast": "contrast of the lesion"}


def strata_section(diagnosis: Mapping[str, Any]) -> Html:
    """Dice or recall by size, contrast, region, site, age and sex, n in each group."""
    groups = diagnosis.get("strata") or strata(diagnosis.get("lesions") or [], diagnosis["subjects"])
    parts: list[Html] = []
    for name, rows in groups.items():
        value = "recall" if any(row.get("recall") is not None for row in rows) else "dice"
        known = [row for row in rows if row.get(value) is not None]
        if len(known) < 2:
            continue
        title = f"By {_STRATA.get(name, name)}"
        columns = [
            Column("Group"),
            Column("n", True),
            Column("Lesions found" if value == "recall" else "Mean Dice", True),
            Column("95 % interval", True),
        ]
        cells: Rows = [
            [str(r["bin"]), str(r["n"]), heat(r[value], number(r[value], 2)), interval(r.get("low"), r.get("high"), 2)]
            for r in known
        ]
        parts.append(tag("div", tag("h3", title), table(columns, cells)))
    return tag("div", *parts, kind="groups") if parts else EMPTY


def lesion_section(diagnosis: Mapping[str, Any]) -> Html:
    """The lesions, missed ones first, the largest of them first."""
    every = diagnosis.get("lesions") or []
    if not every:
        return EMPTY
    ranked = sorted(every, key=lambda r: (r["found"], -r["volume_ml"]))[:MOST_LESIONS]
    columns = [
        Column("Subject"),
        Column("Volume", True),
        Column("Contrast (SD)", True),
        Column("Region"),
        Column("Ceiling (layer)", True),
        Column("Best layer"),
        Column("Found"),
        Column("Overlap", True),
    ]
    rows: Rows = [
        [
            f"{r['subject_id']} · {r['lesion']}",
            millilitres(r["volume_ml"]),
            signed(r.get("contrast_sd"), 1),
            r.get("region"),
            f"{number(r.get('ceiling'), 2)} ({r.get('ceiling_layer') or NOTHING})",
            r.get("best_layer"),
            "found" if r["found"] else f"missed: {r.get('why') or 'not known'}",
            number(r.get("overlap"), 2),
        ]
        for r in ranked
    ]
    missed = sum(not r["found"] for r in every)
    told = f"{missed} of {plural(len(every), 'lesion')} missed. Missed lesions first, largest first."
    told += f" {len(ranked)} of {len(every)} are shown." if len(ranked) < len(every) else ""
    return join([tag("h3", "Lesion by lesion"), table(columns, rows), tag("p", told, kind="caption")])
