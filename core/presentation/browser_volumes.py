"""Volumes for the browser: one byte a voxel, compressed once, kept beside the run.

Scores are quantised at 255 rank-spaced levels that contain every protocol threshold, so that `byte >= t` says exactly
`score >= levels[t − 1]` and a Dice counted in the browser at such a step is the Dice of the float scores.
"""

import atexit
import contextlib
import functools
import gzip
import hashlib
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8

from core.diagnosis.errors.categories import VERSION as CATEGORIES_VERSION
from core.diagnosis.errors.categories import label_errors
from core.diagnosis.errors.error_map import cell_mm
from core.diagnosis.errors.reference import reference_of
from core.runs.listing import open_run
from core.runs.run_record import Run
from core.runs.stages import stage_directory, stage_done, stage_json, stage_name
from core.study.cases import case_of
from core.study.stored_scores import RunScores, open_scores, set_id
from data.errors import BadInput, EnvironmentProblem
from data.files import manifest_sha256, refuse_outside
from data.hashed import known_sha256
from data.json_files import content_digest
from data.names import folder_name
from data.prepared import Prepared
from data.whole_files import replace_whole

VERSION = 1
"""Counts up whenever the same scores would give other bytes."""
DEPLOYED = ("healthy", "validation")
"""Protocols whose threshold could be used without the test labels: error categories are told at these."""
DIRECTORY = ".browser"
_LAYERS = "[A-Za-z0-9_.+-]+"
_NAMES = re.compile(
    rf"image(?:-[0-9]{{1,3}})?|brain|lesion|score-{_LAYERS}|categories-{_LAYERS}-(?:{'|'.join(DEPLOYED)})"
)


def packed_path(runs: Path, run_id: str, subject: str, name: str, content: str | None = None) -> Path:
    """The gzip file of one volume: image-K, brain, lesion, score-<layer set> or categories-<layer set>-<protocol>.

    `subject` is the `folder_name` of an id. With `content`, only the volume whose `volume_content` that is. Made when
    first asked for; categories are the label map of `label_errors` at the protocol's threshold. uint8 in C order over
    (x, y, z) of the working grid. Where the run cannot be written, the file is in a directory of this process.
    BadInput for anything that the run does not hold.
    """
    run, subject_id = _asked(runs, run_id, subject, name)
    scores = open_scores(run)
    present = volume_content(scores, subject_id, name)
    if content is not None and content != present:
        raise BadInput(f"Run {run_id} was changed since this address of {name!r} was given. Load the page again.")
    refuse_outside(run.directory / DIRECTORY / "x", run.directory)
    kept = _kept(run.directory / DIRECTORY, present) or _kept(_own_directory(), present)
    if kept is not None:
        return kept
    packed = gzip.compress(_packed(scores, subject_id, name).tobytes(), compresslevel=1, mtime=0)
    with contextlib.suppress(OSError):
        return _keep(run.directory / DIRECTORY, present, packed)
    try:
        return _keep(_own_directory(), present, packed)
    except OSError as error:
        raise EnvironmentProblem(f"No room for a volume of {len(packed)} bytes: {error.strerror}.") from error


def volume_content(scores: RunScores, subject_id: str, name: str) -> str:
    """What a volume's bytes follow from, as a digest: it stands in the volume's address, so none is shown for another.

    BadInput when the run has no such volume.
    """
    run = scores.run
    subject = next((s for s in run.record["cohort"]["subjects"] if s["subject_id"] == subject_id), None)
    if subject is None:
        raise BadInput(f"No subject {subject_id!r} in run {run.run_id}.")
    made_from = [VERSION, name, subject["key"]]
    if name.startswith(("score-", "categories-")):
        if not stage_done(run, "evaluation"):
            raise BadInput(f"Run {run.run_id} is not evaluated yet. Do it: python cli.py evaluate {run.as_argument}")
        scored = stage_directory(run, stage_name("scores", subject_id))
        made_from += [manifest_sha256(stage_directory(run, "evaluation")), manifest_sha256(scored)]
    if name.startswith("categories-"):
        made_from += [CATEGORIES_VERSION, run.record["split"]["train"]]
    return content_digest(made_from)[:32]


def _asked(runs: Path, run_id: str, subject: str, name: str) -> tuple[Run, str]:
    if not _NAMES.fullmatch(name):
        raise BadInput(
            f"No volume {name!r}. There are: image-0, brain, lesion, score-LAYERS, "
            "categories-LAYERS-healthy and -validation, with the layers joined by +."
        )
    run = open_run(runs, run_id, kind="detector")
    for known in run.record["cohort"]["subjects"]:
        if subject in (folder_name(known["subject_id"]), known["subject_id"]):
            return run, str(known["subject_id"])
    raise BadInput(f"No subject {subject!r} in run {run.run_id}.")


def _packed(scores: RunScores, subject_id: str, name: str) -> UInt8[np.ndarray, "x y z"]:
    if name.startswith("score-"):
        layers = scores.layer_set(name.removeprefix("score-"))
        levels = np.array(stage_json(scores.run, "evaluation", "levels.json")[set_id(layers)])
        packed = quantise(scores.score_map(subject_id, layers).scores, levels)
    elif name.startswith("categories-"):
        packed = _categories(scores, subject_id, *name.removeprefix("categories-").rsplit("-", 1))
    else:
        packed = _anatomy(scores.prepared(subject_id), name)
    return np.ascontiguousarray(packed)


def _kept(directory: Path, content: str) -> Path | None:
    """The file of this content, if it is there with the bytes that its name promises; else it is made anew."""
    for path in directory.glob(f"{content}-*.gz"):
        with contextlib.suppress(OSError):
            if known_sha256(path)[:32] == path.name.removesuffix(".gz").rpartition("-")[2]:
                return path
            path.unlink()
    return None


def _keep(directory: Path, content: str, packed: bytes) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / f"{content}-{hashlib.sha256(packed).hexdigest()[:32]}.gz"
    replace_whole(path, packed)
    return path


@functools.cache
def _own_directory() -> Path:
    directory = tempfile.mkdtemp(prefix="dicescope-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Path(directory)


def quantise(scores: np.ndarray, levels: Float64[np.ndarray, " levels"]) -> UInt8[np.ndarray, "x y z"]:
    """How many levels lie at or below each score; 0 outside the brain (NaN)."""
    bytes_ = np.searchsorted(levels, np.nan_to_num(scores, nan=-np.inf), side="right")
    packed: np.ndarray = bytes_.astype(np.uint8)
    return packed


def _categories(scores: RunScores, subject_id: str, set_name: str, protocol: str) -> UInt8[np.ndarray, "x y z"]:
    layers = scores.layer_set(set_name)
    figures = stage_json(scores.run, "evaluation", "metrics.json")["sets"][set_id(layers)]["working"]
    threshold = figures["protocols"].get(protocol, {}).get("threshold")
    if threshold is None:
        raise BadInput(f"Run {scores.run.run_id} has no {protocol} threshold: error categories belong to a threshold.")
    case = case_of(scores, subject_id, layers)
    return label_errors(case, threshold, reference_of(scores.run), cell_mm(scores, layers)).labels


def _anatomy(prepared: Prepared, name: str) -> UInt8[np.ndarray, "x y z"]:
    if name == "brain":
        return prepared.volume.brain_mask.astype(np.uint8)
    if name == "lesion":
        if prepared.lesion is None:
            raise BadInput(f"Subject {prepared.volume.subject_id!r} has no lesion mask.")
        return prepared.lesion.voxels.astype(np.uint8)
    contrast = int(name.partition("-")[2] or 0)
    if contrast >= len(prepared.volume.contrasts):
        raise BadInput(f"No contrast {contrast}; there are {len(prepared.volume.contrasts)}.")
    values = prepared.volume.voxels[contrast]
    low, high = _display_range(values[prepared.volume.brain_mask])
    scaled = np.clip((values - low) / (high - low), 0.0, 1.0) * 254 + 1
    return np.where(prepared.volume.brain_mask, scaled, 0).astype(np.uint8)


def _display_range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(np.quantile(values, 0.999))
    return low, max(high, low + 1e-6)
