"""The one document that leaves the room: a run told in one HTML file, shown, downloaded, printed."""

import streamlit as st

from core.diagnosis.diagnose import stored_diagnosis
from core.metrics.protocols import first_protocol
from core.presentation.commands import in_shell
from core.presentation.report.document import framed, report_html
from core.runs.listing import open_run
from core.runs.run_record import Run
from core.study.content import whole_content
from core.study.stored_scores import set_id
from pages._diagnosis.load import diagnosis_of
from pages._shared import (
    in_words,
    metrics_or_stop,
    pick_layers,
    pick_protocol,
    pick_run,
    runs_directory,
    scores_of,
)
from pages._text import plain

HEIGHT = 900


@in_words()
def report_of(run: Run, layer_set: str, protocol: str, share: bool) -> tuple[str, bool]:
    """The document, and whether a diagnosis is in it."""
    return _report(run.run_id, whole_content(run), layer_set, protocol, share)


@st.cache_resource(max_entries=4, show_spinner="Writing the report")
def _report(run_id: str, content: str, layer_set: str, protocol: str, share: bool) -> tuple[str, bool]:
    run = open_run(runs_directory(), run_id)
    found = stored_diagnosis(run, layer_set, protocol)
    return report_html(run, found, share=share), found is not None


st.title("Report")
run = pick_run()
metrics = metrics_or_stop(run)
layers = set_id(pick_layers(scores_of(run), metrics["headline"]))
protocols = metrics["sets"][layers]["working"]["protocols"]
protocol = pick_protocol(protocols)

actions = st.container(horizontal=True, vertical_alignment="center")
share = st.sidebar.toggle(
    "To share",
    key="share",
    bind="query-params",
    help="Subjects by pseudonyms, sites by letters, ages in steps of five years; no path, machine or person.",
)
document, diagnosed = report_of(run, layers, protocol, share)
if not diagnosed and protocols[first_protocol(protocols)]["subjects"]:
    st.info(
        f"Layer set {plain(layers)} is not diagnosed at this threshold, so the report tells of the headline's results "
        "only: no ladder, no error map, no causes.",
        icon=":material/info:",
    )
    if actions.button("Diagnose it first", icon=":material/search_insights:", type="primary"):
        diagnosis_of(run, layers, protocol)
        st.rerun()
actions.download_button(
    "Download",
    document,
    file_name=f"report-{run.run_id}.html",
    mime="text/html",
    on_click="ignore",
    icon=":material/download:",
    type="primary" if diagnosed else "secondary",
)
actions.caption(
    f"One file of {len(document.encode()) / 1e6:.1f} MB that opens offline and asks nobody for anything. For a PDF, "
    "open it and print it with the browser: it has its own style for A4."
)
# Streamlit lets a page in this frame run scripts; the report's own policy forbids every script and every request.
st.container(border=True).iframe(framed(document), height=HEIGHT, alt=f"Report of {run.name}")
words = ["report", run.run_id, "--runs", str(runs_directory()), "--layers", layers, "--protocol", protocol]
words += ["--share"] if share else []
st.markdown("The same in a terminal:")
st.code(in_shell(words), language="bash", wrap_lines=True)
