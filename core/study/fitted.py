"""The fitted detector of a run, from its directory."""

from pathlib import Path

from core.detectors import detector_kind
from core.detectors.capabilities import SearchIndex, can
from core.runs.run_record import Run
from core.runs.stages import stage_directory, stage_done, verify_stage
from core.types import Detector
from data.errors import BadInput
from data.files import read_committed_json
from data.schemas import check_schema


def load_detector(run: Run) -> Detector:
    """The fitted detector of a run. IntegrityError when its files are not what was saved."""
    if not stage_done(run, "detector"):
        raise BadInput(
            f"Run {run.run_id} has no fitted detector. Finish it: python cli.py fit --run-id {run.run_id} ..."
        )
    verify_stage(run, "detector")
    directory = stage_directory(run, "detector")
    check_schema(directory / "detector.json", read_committed_json(directory, "detector.json"), 1)
    try:
        detector: Detector = detector_kind(run.record["recipe"]["kind"]).load(directory)
    except ValueError as error:  # models knows no error of ours
        raise error if isinstance(error, BadInput) else BadInput(str(error)) from error
    if can(detector, SearchIndex):
        detector.index_cache_ = index_cache(run)
    return detector


def index_cache(run: Run) -> Path:
    """Where the search index of a memory bank is kept: made anew from the bank when it is not there."""
    return run.directory.parent / ".cache" / "faiss" / run.run_id
