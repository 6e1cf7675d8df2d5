"""Causes R0 to R17 with their costs, and the what-ifs that measure the rest as jobs."""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from core.presentation.commands import in_shell
from core.presentation.decision_words import cause_rows
from core.presentation.diagnosis_view import NO_COSTS, gain_words, job_argv, variant_rows
from core.presentation.figures.diagnosis import gain_dots
from core.runs.run_record import Run
from core.study.again import what_if_argv
from pages._diagnosis.jobs import job_panel, show_problem
from pages._diagnosis.load import what_ifs_for
from pages._shared import dice_text, runs_directory
from pages._text import cells, code, plain, prose


def show_causes(run: Run, found: Mapping[str, Any]) -> None:
    """What is known of each cause; then what-ifs, done and to be done."""
    stored = {w["name"]: w for w in found["what_ifs"]}
    causes = [c for c in found["causes"] if c["id"] not in NO_COSTS]
    rows = cause_rows(causes, list(stored))
    table = cells(
        [
            {
                "cause": row["cause"],
                "costs": row["costs"],
                "95 % interval": dice_text({"mean": row["costs"], "low": row["low"], "high": row["high"]})
                .partition(" ")[2]
                .replace("-", "−"),
                "labels": row["labels"],
                "what was found": row["found"],
            }
            for row in rows
        ]
    )
    st.dataframe(
        table.style.format({"costs": lambda v: f"{v:.3f}".replace("-", "−")}, na_rep="–"),
        key="causes",
        on_select="rerun",
        selection_mode="single-row",
        hide_index=True,
        row_height=78,
        height="content",
        column_config={
            "cause": st.column_config.TextColumn(width=165),
            "costs": st.column_config.NumberColumn(width=58),
            "95 % interval": st.column_config.TextColumn(width=108),
            "labels": st.column_config.TextColumn(width=58, help="Whether the figure uses test labels."),
            "what was found": st.column_config.TextColumn(width=420),
        },
        placeholder="–",
        alt="Known causes of a low Dice and what each costs in this run",
    )
    st.caption(
        "Each cost is one change at a time against the Dice that is reached; causes overlap, so they are not added up. "
        "A negative cost says that the change would lower Dice. Tick a row for its formula."
    )
    for k in st.session_state["causes"]["selection"]["rows"]:
        _show_cause(causes[k])
    others = [c for c in found["causes"] if c["id"] in NO_COSTS]
    if others:
        st.markdown("**Not a cost, but how to read the Dice**")
    for cause in others:
        value = "" if cause["cost"] is None else f" ({cause['cost']:.3f})".replace("-", "−")
        told = f"{cause['id']} {cause['title']}{value}: {cause['text'] or cause['missing']}"
        st.markdown(f"{prose(told)} {code(cause['formula'])}")
    _show_what_ifs(run, found, stored)


def _show_cause(cause: Mapping[str, Any]) -> None:
    count = f", n = {cause['n']}" if cause["cost"] is not None and cause["n"] else ""
    with st.container(border=True):
        st.markdown(f"**{plain(cause['id'])} {plain(cause['title'])}**{plain(count)}. {prose(cause['text'])}")
        st.code(cause["formula"], language=None, wrap_lines=True)
        if cause["missing"]:
            st.info(f"Missing: {prose(cause['missing'])}", icon=":material/search_off:")


def _show_what_ifs(run: Run, found: Mapping[str, Any], stored: Mapping[str, Mapping[str, Any]]) -> None:
    st.subheader("What if: change one thing, score again, compare in pairs", anchor=False)
    show_problem()
    dots = _dots(stored, found["protocol"])
    if dots:
        st.plotly_chart(gain_dots(dots), key="gains", alt="Change of test Dice of every what-if")
        st.caption(
            "Right of the line is better. Blue can be deployed; grey needs test labels or only measures; an open dot "
            "may be 0; ★ is the best of its what-if on validation. Thresholds are derived anew by the same protocol."
        )
    known = what_ifs_for(run)
    with st.container(border=True, gap="xxsmall"):
        for what_if in (w for w in known if w["applies"]):
            _show_what_if(run, found, what_if, stored.get(what_if["name"]))
    for result in stored.values():
        with st.expander(f"{plain(result['title'])}: every variant, formula and command"):
            _show_variants(result, found["protocol"])
            st.code(
                in_shell([*_again(run, found, result), "--runs", str(runs_directory().absolute())]),
                language="bash",
                wrap_lines=True,
            )
    lacking = [f"**{plain(w['title'])}** needs {prose(w['missing'])}" for w in known if not w["applies"]]
    if lacking:
        st.caption("Not for this run: " + "; ".join(lacking) + ".")


def _again(run: Run, found: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    return what_if_argv(run.run_id, result["name"], found["layer_set"], result.get("protocol"))


def _dots(stored: Mapping[str, Mapping[str, Any]], protocol: str) -> list[dict[str, Any]]:
    rows = []
    for what_if in stored.values():
        for row in variant_rows(what_if, protocol):
            if row["test gain"] is not None:
                label = row["variant"] + (" ★" if row["best on validation"] else "")
                rows.append(
                    {
                        "group": what_if["title"], "label": label, "gain": row["test gain"], "low": row["low"],
                        "high": row["high"], "n": row["n"], "deployable": bool(row["can be deployed"]),
                    }
                )  # fmt: skip
    return rows


def _show_what_if(
    run: Run, found: Mapping[str, Any], what_if: Mapping[str, Any], result: Mapping[str, Any] | None
) -> None:
    name = what_if["name"]
    left, right = st.columns([4, 5], vertical_alignment="center")
    about = ", ".join(what_if["causes"])
    left.markdown(f"**{plain(what_if['title'])}** · {plain(about)}", help=prose(what_if["formula"]))
    with right:
        if result is not None:
            st.markdown(gain_words(result, found["protocol"], plain))
            return
        argv = job_argv("what-if", runs_directory(), run.run_id, found["layer_set"], name)
        job_panel(argv, label="Run it", key=name, beside=what_if["cost_text"].partition(":")[0])


def _show_variants(result: Mapping[str, Any], protocol: str) -> None:
    number = st.column_config.NumberColumn(format="%.3f")
    st.dataframe(
        cells(variant_rows(result, protocol)).dropna(axis="columns", how="all"),
        hide_index=True,
        column_config=dict.fromkeys(
            ("validation gain", "test gain", "low", "high", "Dice before", "Dice after"), number
        )
        | dict.fromkeys(("FP mL before", "FP mL after"), st.column_config.NumberColumn(format="%.1f")),
        placeholder="–",
        alt=f"Variants of {result['title']}",
    )
    st.code(result["formula"], language=None, wrap_lines=True)
    for note in result["notes"]:
        st.caption(prose(note))
