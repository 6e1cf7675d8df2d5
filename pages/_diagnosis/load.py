"""The stored diagnosis of a run, computed once when there is none, and where its jobs leave their results."""

import sys
from typing import Any

import streamlit as st

from core.diagnosis.diagnose import diagnose, stored_diagnosis
from core.progress import Progress
from core.store import Run, open_run
from pages._shared import evaluation_version, in_words, runs_directory

RESULTS = ("whatifs", "post_processing", "post-processing", "detection_limits", "detection-limits")
"""Folders of a run that jobs add to; a new file there makes the page read again."""


@in_words()
def diagnosis_of(run: Run, layer_set: str, protocol: str) -> dict[str, Any]:
    """Everything the page draws; the first time it takes some seconds."""
    return _diagnosis(run.run_id, version_of(run), layer_set, protocol)


def version_of(run: Run) -> str:
    """Changes with every evaluation and with every finished job of the diagnosis."""
    files = [p for name in RESULTS for p in (run.directory / name).rglob("result.json")]
    stamps = sorted(f"{p.relative_to(run.directory)}@{p.stat().st_mtime_ns}" for p in files)
    return "|".join([evaluation_version(run), *stamps])


@st.cache_resource(max_entries=16, show_spinner="Finding where Dice is lost. Once for each layer set, then stored.")
def _diagnosis(run_id: str, version: str, layer_set: str, protocol: str) -> dict[str, Any]:
    run = open_run(runs_directory(), run_id)
    found = stored_diagnosis(run, layer_set, protocol)
    if found is None:
        found = diagnose(run, Progress(terminal=False, stream=sys.stderr), layer_set=layer_set, protocol=protocol)
    return found
