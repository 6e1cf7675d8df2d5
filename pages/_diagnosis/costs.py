"""Where Dice is lost: the ladder, the error map, and the subjects behind a bar."""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from core.presentation.diagnosis_view import Bar, bars, concentration, drivers, largest, slices_address, slices_query
from core.presentation.figures.diagnosis import error_bars, ladder
from pages._shared import dice_text
from pages._text import cells, plain, prose


@st.fragment
def show_costs(found: Mapping[str, Any]) -> None:
    """Two charts of the same loss, and who drives the chosen bar."""
    choices = {bar.key: bar for bar in bars(found)}
    chosen = _chosen(choices)
    left, right = st.columns(2, gap="medium")
    with left:
        st.markdown("**The way down: what is lost at each step**")
        st.plotly_chart(
            ladder(found["rungs"], found["dice"], chosen),
            key="ladder",
            on_select=_pick_ladder,
            selection_mode="points",
            config={"displayModeBar": False},
            alt="Ladder of ceilings from a perfect segmentation to the Dice that is reached",
        )
        st.caption(
            "Read from top to bottom: each step takes one freedom away, and its bar is the Dice that goes with it. "
            "Whiskers are 95 % intervals. Click a bar to see its subjects below."
        )
    with right:
        st.markdown("**The wrong voxels: what each kind costs**")
        st.plotly_chart(
            error_bars(found["error_map"], chosen),
            key="errors",
            on_select=_pick_errors,
            selection_mode="points",
            config={"displayModeBar": False},
            alt="Dice that each kind of false positive and miss costs",
        )
        total = sum(c["cost"] or 0.0 for c in found["error_map"])
        st.caption(
            f"Every wrong voxel belongs to one bar: Dice {found['dice']['mean']:.3f} + all bars {total:.3f} = "
            f"{found['dice']['mean'] + total:.3f}. A second view of the loss on the left, not an addition to it."
        )
    _show_drivers(found, choices)


def _chosen(choices: Mapping[str, Bar]) -> str:
    """The bar that was clicked, else that of the address, else the costliest kind of wrong voxel."""
    state = st.session_state
    if state.get("bar") not in choices:
        linked = st.query_params.get("bar")
        start = largest([bar for bar in choices.values() if bar.key.startswith("errors.")])
        state["bar"] = linked if linked in choices else start.key if start is not None else next(iter(choices))
    return str(state["bar"])


def _show_drivers(found: Mapping[str, Any], choices: Mapping[str, Bar]) -> None:
    key = st.selectbox(
        "Subjects behind",
        list(choices),
        format_func=lambda name: f"{choices[name].title} ({'ladder' if name.startswith('ladder') else 'wrong voxels'})",
        key="bar",
        persist_state="session",
        help="Or click a bar above.",
    )
    st.query_params["bar"] = key
    bar, rows = choices[key], drivers(found, key)
    few = concentration(rows)
    about = {"mean": bar.cost, "low": bar.low, "high": bar.high}
    half = f" Half of it comes from **{few:d} of {len(rows)}** subjects." if few is not None else ""
    pair = ""
    if bar.only is not None and bar.all_but is not None:
        pair = f" Put right alone it gives {bar.only:+.3f}; with all else put right it still costs {bar.all_but:.3f}."
    meaning = prose(f"{bar.definition} {bar.advice}")
    st.markdown(f"**{plain(bar.title)}** costs **{dice_text(about)}**.{half}{pair} {meaning}")
    in_map = key.startswith("errors.")
    table = cells(
        [row | {"look": slices_address(slices_query(found, row["subject"], bar=key))} for row in rows]
    ).dropna(axis="columns", how="all")
    st.dataframe(
        table,
        hide_index=True,
        height="content" if len(rows) <= 8 else 318,
        column_config={
            "subject": st.column_config.TextColumn("subject", pinned=True),
            "cost": st.column_config.ProgressColumn(
                "costs", format="%.3f", min_value=0.0, max_value=max(max(r["cost"] for r in rows), 1e-9)
            ),
            "dice": st.column_config.NumberColumn("Dice", format="%.3f"),
            "lesion_ml": st.column_config.NumberColumn("lesion, mL", format="%.2f"),
            "voxels": st.column_config.NumberColumn("voxels", format="%d"),
            "age": st.column_config.NumberColumn("age", format="%.0f"),
            "look": st.column_config.LinkColumn("look", display_text="open in Slices"),
        },
        placeholder="–",
        alt=f"Subjects behind {bar.title}",
    )
    if rows:
        worst = rows[0]["subject"]
        st.page_link(
            "pages/slices.py",
            label=f"Show {'these voxels' if in_map else 'the map'} on Slices, beginning with {plain(worst)}",
            icon=":material/view_in_ar:",
            query_params=slices_query(found, worst, bar=key),
        )


def _pick_ladder() -> None:
    _pick("ladder")


def _pick_errors() -> None:
    _pick("errors")


def _pick(chart: str) -> None:
    for point in st.session_state[chart]["selection"]["points"]:
        key = (point.get("customdata") or [None])[0]
        if key:
            st.session_state["bar"] = key
