"""What the Training page shows of a run: head, numbers, curves, settings, the next step, the jobs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st

from core.presentation.commands import in_shell, next_step, resume_argv, start_once
from core.presentation.training_view import (
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
from core.pretraining.training_verdict import share_text
from core.runs.jobs import Job, list_jobs, log_tail, read_job, stop_job
from core.runs.listing import open_run
from core.runs.run_record import Run
from core.runs.store import unequal_bits
from data.errors import BadInput, EnvironmentProblem
from pages._curves import show_curves
from pages._shared import runs_directory
from pages._take_over import show_take_over
from pages._text import cells, plain, prose

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
    "too hard": (st.warning, ":material/sentiment_very_dissatisfied:"),
    "collapsed": (st.error, ":material/compress:"),
}


def start(argv: list[str]) -> None:
    """Start a command once; what stands in the way is left in the session for the page to say."""
    try:
        start_once(runs_directory(), argv)
    except (BadInput, EnvironmentProblem) as problem:
        st.session_state["training_problem"] = str(problem)


def stop(job_id: str) -> None:
    """Ask a job to stop."""
    stop_job(read_job(runs_directory(), job_id))


def show_head(run: Run | None, job: Job | None, run_id: str) -> None:
    """Name, state, and the buttons that fit the state."""
    state = state_of(run, job)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(plain(run.name if run is not None else run_id), width="content", anchor=False)
        st.badge(plain(state), icon=ICONS.get(state), color=COLOURS.get(state, "gray"))
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
                help="The same command again: it goes on from the last checkpoint, to the same bits "
                "when it computes with the same number of threads.",
            )
    if run is not None and unequal_bits(run):
        st.caption(plain(unequal_bits(run)))
    if job is not None and not job.active and job.status != "finished" and state != "finished":
        st.warning(plain(job.diagnosis), icon=ICONS.get(state))
    elif run is not None and state == "failed" and run.record.get("error"):
        st.warning(plain(run.record["error"]), icon=ICONS["failed"])


def show_numbers(view: TrainingView, state: str) -> None:
    """Progress and the latest values, each beside what chance or the best possible would be."""
    left = f" · about {duration(view.seconds_left)} left" if state == "running" and view.seconds_left else ""
    st.progress(view.share, text=f"Step {view.step:,} of {view.total:,}{left}")
    latest, columns = view.latest, st.columns(6)
    most = 2 * view.batch - 1 if view.kind in ("in-batch", "queue", "slots", "moco", "hard") else None
    texts = [
        ("Loss", "loss", _with("z.3f"), f"chance {view.chance:.3f}"),
        ("Top-1", "top1", share_text, f"of {view.candidates:,}, chance {share_text(view.chance_top1)}"),
        ("Alignment", "alignment", _with("z.3f"), "0 is best"),
        ("Uniformity", "uniformity", _with("z.2f"), "−4 best, 0 worst"),
        ("Embedding std", "embedding_std", _with("z.2f"), "1 best, 0 collapsed"),
        ("Effective rank", "effective_rank", _with("z.1f"), f"at most {most}" if most else "below 2 collapsed"),
    ]
    for column, (label, name, form, beside) in zip(columns, texts, strict=True):
        column.metric(label, plain(form(latest[name])) if name in latest else "–")
        column.caption(plain(beside))


def _with(form: str) -> Callable[[float], str]:
    """Numbers in a format, with a real minus sign."""
    return lambda value: format(value, form).replace("-", "−")


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
        draw(
            f"**{plain(headline(view, state))}.** {prose(view.verdict.reason)}\n\n"
            f"**Next:** {prose(next_advice(view, state, fitted))}",
            icon=icon,
        )
        if view.step:
            show_curves(view)
            st.caption(
                "Faint: every logged step; bold: running mean. A low loss says that brains are told apart, not that "
                "lesions are found. Histograms stand at step 1 and every tenth."
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
    for column, titles in zip(
        st.columns(4), (("Scans",), ("Encoder",), ("Negatives", "Views"), ("Training",)), strict=True
    ):
        for title in titles:
            column.markdown(f"**{plain(title)}**")
            column.dataframe(
                cells({"setting": name, "value": value} for name, value in groups[title]),
                hide_index=True,
                row_height=28,
                alt=f"{title} settings of the run",
            )


def show_next(run: Run) -> None:
    """From a trained encoder to its Dice: one button at a time."""
    st.subheader("From here to a Dice", anchor=False)
    step = next_step(runs_directory(), run)
    if step is not None and (runs_directory() / step.run_id / "run.json").is_file():
        show_take_over(open_run(runs_directory(), step.run_id))
    if step is None:
        st.success("A detector on this encoder is fitted, scored and evaluated.", icon=":material/check_circle:")
        st.page_link("pages/overview.py", label="See its Dice", icon=":material/dashboard:")
        return
    job = next((j for j in list_jobs(runs_directory()) if list(j.argv) == list(step.argv)), None)
    left, right = st.columns([1, 2], vertical_alignment="center")
    left.button(
        plain(step.label),
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
        begun = job.created[:16].replace("T", " ")
        title = f"{job.argv[0] if job.argv else 'damaged'} · {asked_run_id(job) or job.run_id or job.job_id}"
        with st.expander(
            f"{plain(title)} · **{plain(job.status)}** · {plain(begun)} UTC",
            icon=ICONS[job.status],
        ):
            st.markdown(plain(job.diagnosis))
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
