"""The stored diagnosis of a run, computed once when there is none, with the newest results of its jobs."""

import sys
from typing import Any

import streamlit as st

from core.detectors import kinds_that_can
from core.detectors.capabilities import OnlyRanks
from core.diagnosis.diagnose import diagnose, stored_diagnosis
from core.diagnosis.limits.detection_limits import stored_detection_limits
from core.diagnosis.what_if.catalogue import applicable
from core.progress import Progress
from core.runs.listing import open_run
from core.runs.run_record import Run
from core.study.content import whole_content
from core.study.run_summary import run_rows
from pages._shared import in_words, runs_directory


@in_words()
def diagnosis_of(run: Run, layer_set: str, protocol: str) -> dict[str, Any]:
    """Everything the page draws; the first time it takes some seconds."""
    return _diagnosis(run.run_id, _content(run), layer_set, protocol)


@in_words()
def limits_of(run: Run, layer_set: str) -> dict[str, Any] | None:
    """The stored detection limits, which need no diagnosis and no label."""
    return _limits(run.run_id, _content(run), layer_set)


@in_words()
def what_ifs_for(run: Run) -> list[dict[str, Any]]:
    """Every what-if there is, and what those lack that do not apply to this run."""
    return _what_ifs(run.run_id, whole_content(run))


def _content(run: Run) -> str:
    """Changes with whatever the run holds, and with every intensity baseline (R10 looks at those of other runs)."""
    rows = run_rows(run.directory.parent)[0]
    return "-".join(
        [whole_content(run), *(row["content"] for row in rows if row["detector"] in kinds_that_can(OnlyRanks))]
    )


@st.cache_resource(max_entries=16, show_spinner="Finding where Dice is lost. Once per layer set; then it is stored")
def _diagnosis(run_id: str, content: str, layer_set: str, protocol: str) -> dict[str, Any]:
    run = open_run(runs_directory(), run_id)
    found = stored_diagnosis(run, layer_set, protocol)
    if found is None:
        found = diagnose(run, Progress(terminal=False, stream=sys.stderr), layer_set=layer_set, protocol=protocol)
    return found


@st.cache_resource(max_entries=16, show_spinner=False)
def _limits(run_id: str, content: str, layer_set: str) -> dict[str, Any] | None:
    return stored_detection_limits(open_run(runs_directory(), run_id), layer_set)


@st.cache_resource(max_entries=16, show_spinner=False)
def _what_ifs(run_id: str, content: str) -> list[dict[str, Any]]:
    return applicable(open_run(runs_directory(), run_id))
