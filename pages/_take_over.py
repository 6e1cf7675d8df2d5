"""A run whose writer does not answer: who that is, and the button that goes on in its place."""

from collections.abc import Callable

import streamlit as st

from core.presentation.commands import in_shell, start_once, take_over_argv
from core.runs.jobs import Job
from core.runs.lock import silent_holder, unasked_holder
from core.runs.run_record import Run
from data.errors import BadInput, EnvironmentProblem
from pages._shared import runs_directory

LOOK_SECONDS = 2


def show_take_over(run: Run, job: Job | None = None) -> None:
    """Nothing, unless the run's writer cannot be asked. Then it is watched, and replaced on request once silent."""
    if unasked_holder(run.directory) is None:
        return
    st.fragment(_body(run, job), run_every=LOOK_SECONDS)()


def _body(run: Run, job: Job | None) -> Callable[[], None]:
    def body() -> None:
        holder = unasked_holder(run.directory)
        if holder is None:
            st.rerun()
            return
        silent = silent_holder(run.directory) is not None
        st.warning(
            "A process that cannot be asked from here, on another machine or stopped, writes this run."
            + (" It gives no sign of life." if silent else " Whether it gives signs of life is being watched."),
            icon=":material/lock:",
        )
        st.text(f"{run.run_id}: process {holder['pid']} on {holder.get('host')}, since {holder.get('since')}")
        if problem := st.session_state.pop("take_over_problem", None):
            st.text(problem)
        if not silent:
            return
        argv = take_over_argv(runs_directory(), run, job)
        if argv is None:
            st.text("Repeat its command in a terminal with --take-over.")
            return
        st.button(
            "Take over",
            icon=":material/swap_horiz:",
            key=f"take-over-{run.run_id}",
            on_click=_start,
            args=(argv,),
            help="The same command goes on here. If the other process comes back, it can commit nothing any more.",
        )
        st.code(in_shell(argv), language="bash", wrap_lines=True)

    return body


def _start(argv: list[str]) -> None:
    try:
        start_once(runs_directory(), argv)
    except (BadInput, EnvironmentProblem) as problem:
        st.session_state["take_over_problem"] = str(problem)
