"""Reading another cohort strictly, as a job: who can be used, who cannot and why, who is there twice."""

from typing import Any

import streamlit as st

from core.presentation.cohort_view import check_result, facts_rows, set_aside_rows
from core.presentation.commands import check_argv, start_once
from core.presentation.training_view import read_log
from core.runs.jobs import Job, list_jobs, log_tail, read_job, stop_job
from data.errors import BadInput, EnvironmentProblem
from data.layout import LAYOUTS
from pages._choices import ask_choices, choices_from
from pages._shared import runs_directory
from pages._text import cells, code, plain


def check_form() -> None:
    """Ask for a path; show what the newest check found."""
    with st.form("check", border=True):
        left, middle, right = st.columns([4, 1, 2])
        left.text_input(
            "Table or folder, on the machine that serves this page",
            key="check-path",
            placeholder="/data/cohort.csv or /data/ixi",
        )
        middle.selectbox("Layout", ["auto", *LAYOUTS], key="check-layout")
        right.text_input("Contrasts", key="check-contrasts", placeholder="all of the first subject")
        ask_choices(_key)
        st.form_submit_button("Check", icon=":material/fact_check:", type="primary", on_click=_begin)
    if "check-problem" in st.session_state:
        st.error(plain(st.session_state.pop("check-problem")))
    checks = [job for job in list_jobs(runs_directory()) if job.argv[:1] == ("check",)]
    if not checks:
        st.caption("Nothing is changed or copied: every file is read once and what is wrong is named with its remedy.")
        return
    _watch(checks[0].job_id, checks[0].active)


def _key(name: str) -> str:
    return f"check-{name}"


def _begin() -> None:
    values = st.session_state
    try:
        start_once(
            runs_directory(),
            check_argv(
                values["check-path"],
                values["check-layout"],
                values["check-contrasts"].replace(",", " ").split(),
                choices_from(lambda name: values[_key(name)]),
            ),
        )
    except (BadInput, EnvironmentProblem) as problem:
        values["check-problem"] = str(problem)


def _watch(job_id: str, active: bool) -> None:
    def body() -> None:
        job = read_job(runs_directory(), job_id)
        _show(job)
        if active and not job.active:
            st.rerun()

    st.fragment(body, run_every=2 if active else None)()


def _show(job: Job) -> None:
    path = job.argv[1] if len(job.argv) > 1 else ""
    if job.active:
        st.info(f"Checking {code(path)}", icon=":material/hourglass_top:")
        st.code(log_tail(job, 5) or "Starting.", language="log", wrap_lines=True)
        st.button("Stop", key="check-stop", on_click=lambda: stop_job(read_job(runs_directory(), job.job_id)))
        return
    found = check_result(read_log(job.log))
    if found is None:
        st.error(plain(job.diagnosis), icon=":material/error:")
        with st.expander("What the check printed", icon=":material/terminal:"):
            st.code(log_tail(job, 40), language="log", wrap_lines=True)
        return
    _show_found(path, found)


def _show_found(path: str, found: dict[str, Any]) -> None:
    facts, aside, twice = found["facts"], found["set_aside"], found["duplicates"]
    text = f"{code(path)}: {len(facts)} of {len(facts) + len(aside)} subjects can be used."
    if aside or twice:
        st.warning(text, icon=":material/warning:")
    else:
        st.success(f"{text} No scan is there twice.", icon=":material/verified:")
    for first, second in twice:
        st.error(
            f"{code(first)} and {code(second)} hold the same voxels. Remove one of them.",
            icon=":material/content_copy:",
        )
    if found.get("health"):
        st.caption(plain(found["health"]))
    for note in found.get("notes", []):
        st.info(plain(note), icon=":material/info:")
    if aside:
        st.dataframe(cells(set_aside_rows(aside)), hide_index=True, row_height=52, alt="Subjects set aside")
    if facts:
        st.dataframe(
            cells(facts_rows(facts)),
            hide_index=True,
            height=min(38 * (len(facts) + 1), 360),
            column_config={
                "brain mL": st.column_config.NumberColumn(format="%.0f"),
                "lesion mL": st.column_config.NumberColumn(format="%.2f"),
                "notes": st.column_config.TextColumn(width="large"),
            },
            placeholder="–",
            alt="Subjects that can be used",
        )
