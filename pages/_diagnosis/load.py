"""The stored diagnosis of a run, computed once when there is none, with the newest results of its jobs."""

import sys
from typing import Any

import streamlit as st

from core.diagnosis.detection_limits import stored_detection_limits
from core.diagnosis.diagnose import diagnose, stored_diagnosis
from core.diagnosis.whatif import applicable
from core.progress import Progress
from core.store import Run, open_run
from pages._shared import evaluation_version, in_words, runs_directory

RESULTS = ("whatifs", "post-processing", "detection-limits")
"""Folders of a run that jobs add to; a new file there makes the page read again."""


@in_words()
def diagnosis_of(run: Run, layer_set: str, protocol: str) -> dict[str, Any]:
    """Everything the page draws; the first time it takes some seconds."""
    return _diagnosis(run.run_id, _version(run), layer_set, protocol)


@in_words()
def limits_of(run: Run, layer_set: str) -> dict[str, Any] | None:
    """The stored detection limits, which need no diagnosis and no label."""
    return _limits(run.run_id, _version(run), layer_set)


@in_words()
def what_ifs_for(run: Run) -> list[dict[str, Any]]:
    """Every what-if there is, and what those lack that do not apply to this run."""
    return _what_ifs(run.run_id, evaluation_version(run))


def _version(run: Run) -> str:
    """Changes with every evaluation, of other runs too (R10 looks at them), and with every finished job."""
    files = [p for name in RESULTS for p in (run.directory / name).rglob("result.json")]
    stamps = sorted(f"{p.relative_to(run.directory)}@{p.stat().st_mtime_ns}" for p in files)
    others = sorted(
        f"{p.parts[-3]}@{p.stat().st_mtime_ns}" for p in run.directory.parent.glob("*/evaluation/manifest.json")
    )
    return "|".join([evaluation_version(run), *stamps, *others])


@st.cache_resource(max_entries=16, show_spinner="Finding where Dice is lost. Once per layer set; then it is stored")
def _diagnosis(run_id: str, version: str, layer_set: str, protocol: str) -> dict[str, Any]:
    run = open_run(runs_directory(), run_id)
    found = stored_diagnosis(run, layer_set, protocol)
    if found is None:
        found = diagnose(run, Progress(terminal=False, stream=sys.stderr), layer_set=layer_set, protocol=protocol)
    return found


@st.cache_resource(max_entries=16, show_spinner=False)
def _limits(run_id: str, version: str, layer_set: str) -> dict[str, Any] | None:
    return stored_detection_limits(open_run(runs_directory(), run_id), layer_set)


@st.cache_resource(max_entries=16, show_spinner=False)
def _what_ifs(run_id: str, version: str) -> list[dict[str, Any]]:
    return applicable(open_run(runs_directory(), run_id))
