"""Start a job of the diagnosis and follow it where its result will stand."""

from collections.abc import Sequence

import streamlit as st

from core.presentation.commands import in_shell, start_once
from core.runs.jobs import Job, list_jobs, log_tail, read_job, stop_job
from data.errors import BadInput, EnvironmentProblem
from pages._shared import runs_directory
from pages._text import code, plain

PROBLEM = "diagnosis-problem"


def job_panel(argv: Sequence[str], *, label: str, key: str, primary: bool = False, beside: str = "") -> None:
    """A button that starts the command once; while it works, its last words and a way to stop it."""
    job = newest_job(argv)
    active = job is not None and job.active

    def body() -> None:
        now = newest_job(argv)
        at_work = now is not None and now.active
        if at_work != active:  # it began or ended since the page was drawn: look again, or no longer
            st.rerun()
        if now is not None and at_work:
            _follow(now, key)
        else:
            _offer(argv, now, label, key, primary, beside)

    st.fragment(body, run_every=2 if active else None)()


def newest_job(argv: Sequence[str]) -> Job | None:
    """The latest job of exactly these words."""
    return next((job for job in list_jobs(runs_directory()) if list(job.argv) == list(argv)), None)


def show_problem() -> None:
    """What stood in the way of the last start, told once."""
    if PROBLEM in st.session_state:
        st.error(plain(st.session_state.pop(PROBLEM)), icon=":material/error:")


def _offer(argv: Sequence[str], job: Job | None, label: str, key: str, primary: bool, beside: str) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            plain(label),
            key=f"start-{key}",
            icon=":material/play_arrow:",
            type="primary" if primary else "secondary",
            on_click=_begin,
            args=(list(argv),),
            help=f"A process of its own. In a terminal: {code(in_shell(argv))}",
        )
        if beside:
            st.caption(plain(beside), width="content")
    if job is not None and job.status != "finished":
        st.warning(plain(job.diagnosis), icon=":material/error:")
        with st.expander("What the job printed", icon=":material/terminal:"):
            st.code(log_tail(job, 20) or "Nothing.", language="log", wrap_lines=True)


def _follow(job: Job, key: str) -> None:
    lines = [line for line in log_tail(job, 4).splitlines() if line.strip()]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.badge(plain(job.status), icon=":material/hourglass_top:", color="blue")
        st.caption(plain(lines[-1][-160:]) if lines else "Starting.")
        st.button("Stop", key=f"stop-{key}", icon=":material/stop:", on_click=_stop, args=(job.job_id,))


def _begin(argv: list[str]) -> None:
    try:
        start_once(runs_directory(), argv)
    except (BadInput, EnvironmentProblem) as problem:
        st.session_state[PROBLEM] = str(problem)


def _stop(job_id: str) -> None:
    stop_job(read_job(runs_directory(), job_id))
