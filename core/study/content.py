"""What a run holds now, in one word each: it changes whenever a file does that the answer to a question is read from.

A run made anew under an old id has other files, so what was remembered of the old one is not shown for the new one,
whatever the clock says.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from core.runs.remembered import identity_of
from core.runs.run_record import Run
from core.runs.stages import stage_directory, stage_name
from core.study.data_source import cache_directory
from data.errors import BadInput
from data.files import MANIFEST

STAGES = ("detector", "encoder", "evaluation", "visibility")
RESULTS = ("diagnosis", "whatifs", "post-processing", "detection-limits")
"""Folders that explain an evaluation, of which each result is committed by itself."""


def content_of(run: Run) -> str:
    """Its record, its fit and its evaluation."""
    stages = [run.directory / name / MANIFEST for name in STAGES]
    read = [run.directory / "evaluation" / name for name in ("metrics.json", "levels.json")]
    return _word([run.directory / "run.json", *stages, *read])


def subject_content(run: Run, subject_id: str) -> str:
    """Its record, its fit, and the scores and the prepared scan of one subject."""
    key = next((s["key"] for s in run.record["cohort"]["subjects"] if s["subject_id"] == subject_id), None)
    if key is None:
        raise BadInput(f"No subject {subject_id!r} in run {run.run_id}.")
    return _word(
        [
            *(run.directory / "run.json", run.directory / "detector" / MANIFEST),
            stage_directory(run, stage_name("scores", subject_id)) / MANIFEST,
            *_entries(cache_directory(run.directory.parent) / key),
        ]
    )


def scans_content(run: Run) -> str:
    """Its record and the prepared scans of all its subjects."""
    cache = cache_directory(run.directory.parent)
    keys = [subject["key"] for subject in run.record["cohort"]["subjects"]]
    read = [cache / key / name for key in keys for name in (MANIFEST, "record.json")]
    return _word([run.directory / "run.json", *read])


def whole_content(run: Run) -> str:
    """Everything: record, fit, scores, scans, evaluation, and what explains it."""
    results = [path for name in RESULTS for path in sorted((run.directory / name).rglob("*.json"))]
    scores = [path / MANIFEST for path in _entries(run.directory / "scores")]
    told = "".join(path.relative_to(run.directory).as_posix() for path in results)
    return "-".join((content_of(run), scans_content(run), _word([*scores, *results], told)))


def _word(paths: Iterable[Path], more: str = "") -> str:
    return hashlib.sha256((identity_of(*paths).text + more).encode()).hexdigest()[:16]


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory / name for name in os.listdir(directory) if not name.startswith("."))
    except OSError:
        return []
