"""What the Training page shows of a run: head, numbers, curves, settings, the next step, the jobs."""

from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from core.commands import in_shell, next_step, resume_argv, start_once
from core.figures import ANOMALOUS, ORACLE, monitor_curves
from core.jobs import Job, list_jobs, log_tail, read_job, stop_job
from core.store import Run, open_run
from core.training_view import (
    Journal,
    TrainingView,
    asked_run_id,
    can_resume,
    duration,
    headline,
    job_of_run,
    next_advice,
    read_on,
    read_training,
    settings_groups,
    state_of,
)
from data.errors import BadInput, EnvironmentProblem
from pages._shared import runs_directory

COLOURS: dict[str, Any] = {
    "preparing": "blue", "running": "blue", "waiting": "blue", "finished": "green", "interrupted": "orange",
    "stopped": "orange", "failed": "red", "killed": "red",
}  # fmt: skip
ICONS = {
    "preparing": ":material/hourglass_top:", "running": ":material/play_circle:", "waiting": ":material/schedule:",
    "finished": ":material/check_circle:", "interrupted": ":material/pause_circle:",
    "stopped": ":material/stop_circle:", "failed": ":material/error:", "killed": ":material/dangerous:",
}  # fmt: skip
VERDICTS = {
    "learning": (st.success, ":material/trending_down:"),
    "too early": (st.info, ":material/hourglass_empty:"),
    "too easy": (st.warning, ":material/sentiment_very_satisfied:"),
    "collapsed": (st.error, ":material/compress:"),
}


def start(argv: list[str], show: str | None = None) -> None:
    """Start a command once; say what stands in the way. `show` is the encoder run to look at afterwards."""
    try:
        start_once(runs_directory(), argv)
    except (BadInput, EnvironmentProblem) as problem:
        st.session_state["training_problem"] = str(problem)
        return
    if show is not None:
        st.session_state["encoder_run"] = show


def stop(job_id: str) -> None:
    """Ask a job to stop."""
    stop_job(read_job(runs_directory(), job_id))


def show_head(run: Run | None, job: Job | None, run_id: str) -> None:
    """Name, state, and the buttons that fit the state."""
    state = state_of(run, job)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(run.name if run is not None else run_id, width="content", anchor=False)
        st.badge(state, icon=ICONS.get(state), color=COLOURS.get(state, "gray"))
        st.space("stretch")
        if job is not None and job.active:
            asked = (job.log.parent / "stop.json").exists()
            st.button(
                "Kill now" if asked else "Stop",
                icon=":material/stop:",
                on_click=stop,
                args=(job.job_id,),
                key="stop",
                help="It has been asked to stop and is finishing its step. Press again to kill it."
                if asked
                else "It finishes the step at hand, writes a checkpoint and ends. It can be resumed.",
            )
        if can_resume(run, job):
            st.button(
                "Resume",
                icon=":material/resume:",
                type="primary",
                key="resume",
                on_click=start,
                args=(resume_argv(runs_directory(), run, job),),
                help="The same command again: it goes on from the last checkpoint, to the same bits.",
            )
    if job is not None and not job.active and job.status != "finished" and state != "finished":
        st.warning(job.diagnosis, icon=ICONS.get(state))
    elif run is not None and state == "failed" and run.record.get("error"):
        st.warning(str(run.record["error"]), icon=ICONS["failed"])


def show_numbers(view: TrainingView, state: str) -> None:
    """Progress and the latest values, each beside what chance or the best possible would be."""
    left = f" · about {duration(view.seconds_left)} left" if state == "running" and view.seconds_left else ""
    st.progress(view.share, text=f"Step {view.step:,} of {view.total:,}{left}")
    latest, columns = view.latest, st.columns(6)
    texts = [
        ("Loss", "loss", "{:.3f}", f"chance {view.chance:.3f}"),
        ("Top-1", "top1", "{:.0%}", f"chance {view.chance_top1:.0%}"),
        ("Alignment", "alignment", "{:.3f}", "0 is best"),
        ("Uniformity", "uniformity", "{:.2f}", "−4 best, 0 worst"),
        ("Embedding std", "embedding_std", "{:.2f}", "1 best, 0 collapsed"),
        ("Effective rank", "effective_rank", "{:.1f}", f"at most {view.candidates}"),
    ]
    for column, (label, name, form, beside) in zip(columns, texts, strict=True):
        column.metric(label, form.format(latest[name]) if name in latest else "–")
        column.caption(beside)


def show_curves(view: TrainingView) -> None:
    """Four charts: is the loss below chance, are partners found, do views lie together, is space used."""
    charts = [
        ("Loss (NT-Xent)", ("loss",), [("chance ln(2N−1)", view.chance, ORACLE)], {"rangemode": "tozero"}),
        ("Top-1: nearest view is the partner", ("top1",), [("chance", view.chance_top1, ORACLE)],
         {"range": [-0.02, 1.05], "tickformat": ".0%"}),
        ("Alignment and uniformity", ("alignment", "uniformity"), [], {}),
        ("Embedding std × √dim", ("embedding_std",), [("collapse below 0.1", 0.1, ANOMALOUS)], {"rangemode": "tozero"}),
        ("Effective rank", ("effective_rank",), [("collapse below 2", 2.0, ANOMALOUS)], {"rangemode": "tozero"}),
        ("Examples per second", ("examples_per_s",), [], {"rangemode": "tozero"}),
    ]  # fmt: skip
    for row in (charts[:3], charts[3:]):
        for column, (title, names, lines, axis) in zip(st.columns(3), row, strict=True):
            column.markdown(f"**{title}**")
            column.plotly_chart(
                monitor_curves(
                    view.curves.steps,
                    {name: view.curves.values[name] for name in names},
                    {name: view.curves.means[name] for name in names},
                    lines,
                    axis=axis,
                ),
                key=f"curve-{names[0]}",
                alt=f"{title} over training steps",
            )


def journal_of(run: Run) -> Journal:
    """The run's journal; what another look has read already is not read again."""
    seen = _journals()
    found = seen[run.directory] = read_on(run, seen.get(run.directory))
    return found


@st.cache_resource
def _journals() -> dict[Path, Journal]:
    return {}


def show_run(run_id: str) -> None:
    """Everything that changes while a run trains."""
    runs = runs_directory()
    job = job_of_run(list_jobs(runs), run_id)
    try:
        run: Run | None = open_run(runs, run_id)
    except BadInput:
        run = None
    show_head(run, job, run_id)
    state = state_of(run, job)
    if run is not None:
        view = read_training(run, journal_of(run))
        if view.step:
            show_numbers(view, state)
        draw, icon = VERDICTS[view.verdict.state]
        fitted = state == "finished" and next_step(runs, run) is None
        draw(f"**{headline(view, state)}.** {view.verdict.reason} {next_advice(view, state, fitted)}", icon=icon)
        if view.step:
            show_curves(view)
            st.caption(
                "Faint: every logged step; bold: running mean. A low loss says that brains are told apart, not that "
                "lesions are found. Chance is what an embedding that tells nothing apart would reach."
            )
    elif job is not None and job.active:
        st.info("Scans are being read and prepared; the first steps follow.", icon=ICONS["preparing"])
    if job is not None:
        with st.expander("What the job printed", icon=":material/terminal:"):
            st.code(log_tail(job, 30) or "Nothing yet.", language="log", wrap_lines=True)
            st.caption("The same in a terminal; it resumes what is there:")
            st.code(in_shell(job.argv), language="bash", wrap_lines=True)


def watch_run(run_id: str, active: bool, begun: bool) -> None:
    """The run as a fragment that looks again every two seconds while a job works on it.

    The whole page is drawn anew when the run has begun, and when a job has started or ended, since it was drawn.
    """

    def body() -> None:
        show_run(run_id)
        job = job_of_run(list_jobs(runs_directory()), run_id)
        now = (job is not None and job.active, (runs_directory() / run_id / "run.json").is_file())
        if now != (active, begun):
            st.rerun()

    st.fragment(body, run_every=2 if active else None)()


def show_settings(run: Run) -> None:
    """What determined the run, in four columns."""
    st.subheader("Settings", anchor=False)
    groups = settings_groups(run)
    for column, (title, rows) in zip(st.columns(len(groups)), groups.items(), strict=True):
        column.markdown(f"**{title}**")
        column.dataframe(
            pd.DataFrame(rows, columns=["setting", "value"]),
            hide_index=True,
            row_height=28,
            alt=f"{title} settings of the run",
        )


def show_next(run: Run) -> None:
    """From a trained encoder to its Dice: one button at a time."""
    st.subheader("From here to a Dice", anchor=False)
    step = next_step(runs_directory(), run)
    if step is None:
        st.success("A detector on this encoder is fitted, scored and evaluated.", icon=":material/check_circle:")
        st.page_link("pages/overview.py", label="See its Dice", icon=":material/dashboard:")
        return
    job = next((j for j in list_jobs(runs_directory()) if list(j.argv) == list(step.argv)), None)
    left, right = st.columns([1, 2], vertical_alignment="center")
    left.button(
        step.label,
        icon=":material/play_arrow:",
        type="primary",
        key="next-step",
        disabled=job is not None and job.active,
        on_click=start,
        args=(list(step.argv),),
        width="stretch",
    )
    right.caption("Three jobs, one after the other: fit, score, evaluate. Each shows below under Jobs.")
    with st.expander("The same in a terminal", icon=":material/terminal:"):
        st.code(in_shell(step.argv), language="bash", wrap_lines=True)


def show_jobs() -> None:
    """Every command started from a browser, newest first; the same list in every browser."""
    for job in list_jobs(runs_directory())[:12]:
        title = f"{job.argv[0] if job.argv else 'damaged'} · {asked_run_id(job) or job.run_id or job.job_id}"
        with st.expander(
            f"{title} · **{job.status}** · {job.created[:16].replace('T', ' ')} UTC", icon=ICONS[job.status]
        ):
            st.markdown(job.diagnosis)
            st.code(log_tail(job, 15) or "Nothing printed yet.", language="log", wrap_lines=True)
            if job.active:
                st.button("Stop this job", key=f"stop-{job.job_id}", on_click=stop, args=(job.job_id,))


def watch_jobs(active: bool) -> None:
    """The list of jobs as a fragment of its own, so that an open log stays open."""

    def body() -> None:
        show_jobs()
        if active != any(job.active for job in list_jobs(runs_directory())):
            st.rerun()

    st.fragment(body, run_every=2 if active else None)()
