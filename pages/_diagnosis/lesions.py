"""Every lesion, found or missed and why; recall and Dice in groups; what each layer's grid can see."""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from core.diagnosis.strata import strata
from core.presentation.decision_words import unlisted
from core.presentation.diagnosis_view import slices_query
from core.presentation.figures.diagnosis import ceiling_lines, strata_bars
from pages._text import cells, plain

TITLES = {
    "size": "Lesions by size",
    "contrast": "Lesions by contrast, healthy SD",
    "region": "Lesions by region",
    "site": "Subjects by site",
    "age": "Subjects by age",
    "sex": "Subjects by sex",
}


@st.fragment
def show_lesions(found: Mapping[str, Any]) -> None:
    """The table of lesions; a ticked row can be stood on in Slices."""
    rows = found["lesions"]
    if missing := unlisted(found):
        st.caption(
            f"In no list below: {plain(', '.join(missing))}. A component under 27 mm³ is too small to be told from "
            "noise and does not count as a lesion; its voxels count in the Dice all the same."
        )
    if not rows:
        st.info("No lesion mask has a component large enough to count as a lesion.")
        return
    missed = [row for row in rows if not row["found"]]
    only = st.segmented_control(
        "Show", ["all", "missed", "found"], default="all", required=True, key="lesions-shown", bind="query-params"
    )
    shown = [row for row in rows if only == "all" or row["found"] is (only == "found")]
    shown.sort(key=lambda row: (row["found"], -row["volume_ml"]))
    st.markdown(f"**{len(rows) - len(missed)} of {len(rows)}** lesions are found at the deployed threshold.")
    st.dataframe(
        cells(map(_row, shown)).dropna(axis="columns", how="all"),
        key=f"lesions-{only}",
        on_select="rerun",
        selection_mode="single-row",
        hide_index=True,
        height="content" if len(shown) <= 6 else 388,
        column_config=_columns(),
        row_height=64,
        placeholder="–",
        alt="Lesions of the test subjects",
    )
    picked = [shown[k] for k in st.session_state[f"lesions-{only}"]["selection"]["rows"] if k < len(shown)]
    if picked:
        lesion = picked[0]
        st.markdown(plain(f"Lesion {lesion['lesion']} of {lesion['subject_id']}: {lesion['why']}."))
        st.page_link(
            "pages/slices.py",
            label=plain(f"Stand on lesion {lesion['lesion']} of {lesion['subject_id']} in Slices"),
            icon=":material/my_location:",
            query_params=slices_query(found, lesion["subject_id"], voxel=lesion["voxel"]),
        )
    st.caption(
        "Missed lesions first, the largest on top. Tick a row to stand on that lesion in Slices. Ceiling: the best "
        "Dice that this lesion can reach on a layer's grid, whatever the threshold."
    )


def _row(lesion: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "lesion": f"{lesion['subject_id']} · {lesion['lesion']}",
        "found, or why not": lesion["why"],
        "mL": lesion["volume_ml"],
        "contrast, SD": lesion["contrast_sd"],
        "region": lesion["region"],
        "covered, %": 100 * lesion["overlap"],
        "ceiling": lesion["ceiling"],
        "best layer": lesion["best_layer"],
    }


def _columns() -> dict[str, Any]:
    return {
        "lesion": st.column_config.TextColumn(width=110, pinned=True),
        "found, or why not": st.column_config.TextColumn(width=235),
        "mL": st.column_config.NumberColumn(format="%.3f", width=60),
        "contrast, SD": st.column_config.NumberColumn(format="%.1f", width=86),
        "region": st.column_config.TextColumn(width=115),
        "covered, %": st.column_config.NumberColumn(format="%.0f", width=78),
        "ceiling": st.column_config.NumberColumn(format="%.2f", width=56),
        "best layer": st.column_config.TextColumn(width=72),
    }


def show_groups(found: Mapping[str, Any]) -> None:
    """Small multiples: who is found, in whom Dice is low."""
    st.subheader("Who is found, and in whom", anchor=False)
    groups = found["strata"] or strata(found["lesions"], found["subjects"])
    shown = [(name, title) for name, title in TITLES.items() if len(groups.get(name, ())) > 1]
    for start in range(0, len(shown), 3):
        for column, (name, title) in zip(st.columns(3), shown[start : start + 3], strict=False):
            value = "recall" if "recall" in groups[name][0] else "dice"
            column.markdown(f"**{plain(title)}**")
            column.plotly_chart(
                strata_bars(groups[name][:8], value), key=f"group-{name}", alt=f"{title}: {value} in each group"
            )
    if shown:
        st.caption(
            "How many lesions (or subjects) each group has stands in brackets: a group of five says little. Whiskers "
            "are 95 % intervals from whole subjects drawn anew. Groups that nobody recorded are not shown."
        )


def show_ceilings(found: Mapping[str, Any]) -> None:
    """Per layer: the best Dice its grid allows, and the same as a table."""
    layers = found["layers"]
    if not layers:
        return
    st.subheader("What each layer's grid can see", anchor=False)
    left, right = st.columns([1, 1])
    left.plotly_chart(ceiling_lines(layers), key="ceilings", alt="Best possible Dice of each layer by lesion size")
    right.dataframe(
        cells(layers)[["layer", "spacing_mm", "union", "band_limited", "ceiling"]].rename(
            columns={"spacing_mm": "spacing, mm", "union": "whole cells", "band_limited": "upsampled"}
        ),
        hide_index=True,
        column_config=dict.fromkeys(
            ("whole cells", "upsampled", "ceiling"), st.column_config.NumberColumn(format="%.3f")
        ),
        alt="Ceiling of each layer",
    )
    st.caption(
        "A line says which lesions a layer can outline at all, before any training: the best choice of whole feature "
        "cells, or of a threshold on the upsampled map, whichever is better in each subject."
    )
