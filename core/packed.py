"""Volumes for the browser: one byte a voxel, compressed once, kept beside the run.

Scores are quantised at 255 rank-spaced levels that contain every protocol threshold, so that `byte >= t` says exactly
`score >= levels[t − 1]` and a Dice counted in the browser at such a step is the Dice of the float scores.
"""

import gzip
import hashlib
import re
import uuid
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8

from core.diagnosis.cases import case_of
from core.diagnosis.categories import VERSION, label_errors
from core.diagnosis.error_map import cell_mm
from core.diagnosis.reference import reference_of
from core.run_scores import RunScores, open_scores, set_id
from core.store import open_run
from data.errors import BadInput
from data.files import is_committed, read_json, sha256_file, write_json
from data.preprocessing import Prepared

N_LEVELS = 255
DEPLOYED = ("healthy", "validation")
"""Protocols whose threshold could be used without the test labels: error categories are told at these."""
_LAYERS = "[A-Za-z0-9_.+-]+"
_NAMES = re.compile(rf"image(?:-[0-9]+)?|brain|lesion|score-{_LAYERS}|categories-{_LAYERS}-(?:{'|'.join(DEPLOYED)})")


def packed_path(runs: Path, run_id: str, subject_id: str, name: str) -> Path:
    """The gzip file of one volume: image-K, brain, lesion, score-<layer set> or categories-<layer set>-<protocol>.

    Made when first asked for; categories are the label map of `label_errors` at the protocol's threshold. uint8 in C
    order over (x, y, z) of the working grid. BadInput for anything that the run does not hold.
    """
    if not _NAMES.fullmatch(name):
        raise BadInput(
            f"No volume {name!r}. There are: image-0, brain, lesion, score-LAYERS, "
            "categories-LAYERS-healthy and -validation, with the layers joined by +."
        )
    run = open_run(runs, run_id, kind="detector")
    if subject_id not in {s["subject_id"] for s in run.record["cohort"]["subjects"]}:
        raise BadInput(f"No subject {subject_id!r} in run {run.run_id}.")
    manifest = run.directory / "evaluation" / "manifest.json"
    version = sha256_file(manifest) if manifest.is_file() else ""
    version += f"/{VERSION}" if name.startswith("categories-") else ""
    digest = hashlib.sha256(f"{version}/{subject_id}/{name}".encode()).hexdigest()[:24]
    path = run.directory / ".browser" / f"{digest}.gz"
    if path.is_file():
        return path
    scores = open_scores(run)
    prepared = scores.prepared(subject_id)
    if name.startswith(("score-", "categories-")) and not is_committed(run.directory / "evaluation"):
        raise BadInput(f"Run {run_id} is not evaluated yet. Do it: python cli.py evaluate {run_id}")
    if name.startswith("score-"):
        layers = scores.layer_set(name.removeprefix("score-"))
        levels = np.array(read_json(run.directory / "evaluation" / "levels.json")[name.removeprefix("score-")])
        packed = quantise(scores.score_map(subject_id, layers).scores, levels)
    elif name.startswith("categories-"):
        packed = _categories(scores, subject_id, *name.removeprefix("categories-").rsplit("-", 1))
    else:
        packed = _anatomy(prepared, name)
    path.parent.mkdir(exist_ok=True)
    scratch = path.with_name(f".tmp-{uuid.uuid4().hex}")  # its own: two browsers may ask for one volume at once
    scratch.write_bytes(gzip.compress(np.ascontiguousarray(packed).tobytes(), compresslevel=1, mtime=0))
    scratch.replace(path)
    return path


def quantise(scores: np.ndarray, levels: Float64[np.ndarray, " levels"]) -> UInt8[np.ndarray, "x y z"]:
    """How many levels lie at or below each score; 0 outside the brain (NaN)."""
    bytes_ = np.searchsorted(levels, np.nan_to_num(scores, nan=-np.inf), side="right")
    packed: np.ndarray = bytes_.astype(np.uint8)
    return packed


def score_levels(samples: np.ndarray, thresholds: Iterable[float]) -> Float64[np.ndarray, " levels"]:
    """255 ascending levels: dense where scores are high, and exactly at every given threshold.

    `samples` are in-brain scores. Half of the levels lie in the top 5 % of them.
    """
    exact = np.unique([np.float32(t) for t in thresholds if np.isfinite(t)]).astype(np.float64)
    n = N_LEVELS - len(exact)
    upper = 1 - np.geomspace(5e-2, 2e-6, n // 2)
    lower = np.linspace(0.0, 0.95, n - n // 2, endpoint=False)
    between = np.quantile(samples.astype(np.float64), np.concatenate([lower, upper]))
    merged = np.unique(np.concatenate([exact, between]))
    if len(merged) < N_LEVELS:
        top = max(float(merged[-1]), 1e-6)
        extra = top * (1 + np.arange(1, N_LEVELS - len(merged) + 1) * 1e-3)
        merged = np.concatenate([merged, extra])
    return np.asarray(merged[:N_LEVELS], dtype=np.float64)


def _categories(scores: RunScores, subject_id: str, set_name: str, protocol: str) -> UInt8[np.ndarray, "x y z"]:
    layers = scores.layer_set(set_name)
    figures = read_json(scores.run.directory / "evaluation" / "metrics.json")["sets"][set_id(layers)]["working"]
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


def save_levels(path: Path, levels: dict[str, list[float]]) -> None:
    """Write the levels of every layer set."""
    write_json(path, levels)
