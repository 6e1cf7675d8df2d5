"""Encoders while they learn: curves against chance, a verdict in words, and the jobs that make them."""

from typing import Any

import streamlit as st

from core.presentation.training_view import asked_name, asked_run_id, job_of_run
from core.runs.jobs import Job, list_jobs
from core.runs.listing import open_run
from core.runs.stages import stage_done
from core.study.run_summary import of_comparison
from pages._comparison import show_comparison
from pages._fit import fit_form
from pages._monitor import show_next, show_settings, watch_jobs, watch_run
from pages._pretrain import pretrain_form
from pages._shared import every_row, in_words, pick_by_id, runs_directory
from pages._take_over import show_take_over
from pages._text import plain
from pages._visibility import show_visibility


def pick_encoder(encoders: dict[str, dict[str, Any]], jobs: list[Job]) -> str | None:
    """The picker of encoder runs in the sidebar; a run that a job is still preparing scans for is among them."""
    coming = {i: asked_name(job) for job in jobs if job.argv[:1] == ("pretrain",) and (i := asked_run_id(job))}
    names = {i: name for i, name in coming.items() if i not in encoders}
    names |= {i: str(row["name"]) for i, row in encoders.items()}
    ids = list(names)
    if not ids:
        return None
    if "encoder_begun" in st.session_state:
        st.query_params["encoder_run"] = st.session_state.pop("encoder_begun")
    busy = [i for job in jobs if job.active and (i := asked_run_id(job)) in ids]
    own = [i for i in encoders if not of_comparison(i)]
    opening = (busy or own or list(encoders) or ids)[0]
    labels = {i: f"{names[i]} · {i}" for i in ids}
    return pick_by_id("Encoder run", "encoder_run", labels, str(opening), "Newest first. The choice is in the address.")


st.title("Training")
if "training_problem" in st.session_state:
    st.error(plain(st.session_state.pop("training_problem")), icon=":material/error:")
jobs = list_jobs(runs_directory())
encoders = {row["run_id"]: row for row in every_row("encoder")}
run_id = pick_encoder(encoders, jobs)

if run_id is None:
    st.info(
        "No encoder yet. Start one below, or make the demo study: `python cli.py demo`",
        icon=":material/model_training:",
    )
else:
    job = job_of_run(jobs, run_id)
    watch_run(run_id, active=job is not None and job.active, begun=run_id in encoders)
    if run_id in encoders:
        with in_words():
            run = open_run(runs_directory(), run_id)
        show_take_over(run, job)
        if stage_done(run, "encoder"):
            show_next(run)
            fit_form(run)
            show_visibility(run)
        show_settings(run)

show_comparison()
st.subheader("Train a new encoder", anchor=False)
pretrain_form(encoders, run_id)

st.subheader("Jobs", anchor=False)
if jobs:
    st.caption("Every command started from a browser. They go on when the browser or this server is closed.")
    watch_jobs(active=any(job.active for job in jobs))
else:
    st.caption("Nothing was started from a browser yet. The form above starts a training.")
