"""Thresholds beside two-distribution decisions, in one table."""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from core.presentation.decision_words import decision_rows
from pages._shared import dice_text
from pages._text import cells, plain, prose


def show_decisions(found: Mapping[str, Any], protocols: Mapping[str, Any]) -> None:
    """Every rule that turns scores into a segmentation, and which labels it needs."""
    rows = decision_rows(found, protocols)
    st.dataframe(
        cells(
            [
                {
                    "decision": row["decision"],
                    "Dice": row["dice"],
                    "95 % interval": dice_text({"mean": row["dice"], "low": row["low"], "high": row["high"]}).partition(
                        " "
                    )[2],
                    "labels needed": row["labels"],
                    "threshold": row["threshold"],
                    "how it decides": row["explain"],
                }
                for row in rows
            ]
        ),
        key="decisions",
        on_select="rerun",
        selection_mode="single-row",
        hide_index=True,
        height="content",
        column_config={
            "decision": st.column_config.TextColumn(
                width=350,
                help="Two densities: one of normal and one of anomalous scores, fitted on labelled validation scans. "
                "A voxel is anomalous where the second, weighted by how common lesions are, is the higher one.",
            ),
            "Dice": st.column_config.NumberColumn(format="%.3f", width=60),
            "95 % interval": st.column_config.TextColumn(width=115),
            "labels needed": st.column_config.TextColumn(width=105),
            "threshold": st.column_config.NumberColumn(format="%.2f", width=75),
            "how it decides": st.column_config.TextColumn(width="large"),
        },
        placeholder="–",
        alt="Threshold protocols and two-distribution decisions",
    )
    for k in st.session_state["decisions"]["selection"]["rows"]:
        st.info(f"**{plain(rows[k]['decision'])}.** {prose(rows[k]['explain'])}")
    st.caption(
        f"Mean Dice of {found['n']:d} test subjects on the working grid. “test” labels make an oracle, not a result. "
        "Two densities of one score can differ from a threshold only where they cross more than once; over the layers' "
        "distances they draw a boundary that no single threshold has. Tick a row for the whole rule."
    )
