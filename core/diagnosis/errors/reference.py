"""What is usual at every voxel: intensities and brain of a run's healthy training scans, kept with the run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32
from scipy.ndimage import binary_erosion

from core.progress import Progress
from core.runs.provenance import fingerprint
from core.runs.run_record import Run
from core.runs.stages import kept_if_possible, stage_beside, stage_directory, stage_done, undamaged, verify_stage
from core.study.run_scans import prepared_volumes, subjects_of
from data.errors import BadInput
from data.files import committed_directory, load_committed_array, read_committed_json, verify_directory
from data.json_files import write_json
from data.volume import Grid, Volume, frozen

DIRECTORY = "diagnosis-reference"
SCHEMA = 1
"""Counts up whenever the same scans would give another reference."""
BLOCK_BYTES = 256 * 2**20
"""Intensities held at a time; with 200,000 brain voxels, those of 335 scans. More scans are read in several passes."""
_ARRAYS = ("mean", "deviation", "low", "high", "brain", "core")


@dataclass(frozen=True)
class ReferenceSettings:
    """How the healthy scans are summed up."""

    least_share: float = 0.5
    """A voxel is in the consensus brain when at least this share of the training brains covers it."""
    erosion_voxels: int = 1
    """What is taken off the consensus brain for its core, in steps over voxel faces."""
    quantiles: tuple[float, float] = (0.05, 0.95)
    """Between them an intensity is usual."""


@dataclass(frozen=True, eq=False)
class HealthyReference:
    """Healthy intensities of the first contrast on the working grid, zero outside the consensus brain. Read-only.

    18 bytes per voxel of the grid.
    """

    grid: Grid
    mean: Float32[np.ndarray, "x y z"]
    """Over the training scans whose brain covers the voxel, as are the others."""
    deviation: Float32[np.ndarray, "x y z"]
    """Standard deviation, n − 1 in the denominator; 0 where one scan alone covers the voxel."""
    low: Float32[np.ndarray, "x y z"]
    """5th percentile, linear between scans."""
    high: Float32[np.ndarray, "x y z"]
    """95th percentile."""
    brain: Bool[np.ndarray, "x y z"]
    """Consensus brain."""
    core: Bool[np.ndarray, "x y z"]
    """Consensus brain, eroded."""
    n_subjects: int
    key: str
    """Fingerprint of the training scans and the settings."""

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            object.__setattr__(self, name, frozen(getattr(self, name)))


def reference_of(
    run: Run, progress: Progress | None = None, settings: ReferenceSettings = ReferenceSettings()
) -> HealthyReference:
    """The reference of a run's healthy training scans, from its directory when they are still the same.

    One that is damaged is computed anew. BadInput when the run has no healthy training scan.
    """
    subjects = {s["subject_id"]: s for s in run.record["cohort"]["subjects"]}
    ids = [i for i in subjects_of(run, "train") if i in subjects and subjects[i]["healthy"]]
    if not ids:
        raise BadInput(
            f"Run {run.run_id} has no healthy training scan, so nothing says what is usual at a voxel. "
            "Give healthy subjects the role train."
        )
    key = reference_key([subjects[i]["key"] for i in ids], settings)
    say = progress.say if progress is not None else lambda text: None
    stored = undamaged(lambda: _stored(run), say)
    if stored is not None and stored.key == key:
        return stored
    reference = _computed(prepared_volumes(run, ids), key, settings, progress)
    with kept_if_possible(run), stage_beside(run, DIRECTORY) as scratch:
        write_reference(reference, scratch, settings)
    return reference


def _stored(run: Run) -> HealthyReference | None:
    if not stage_done(run, DIRECTORY):
        return None
    verify_stage(run, DIRECTORY)
    return load_reference(stage_directory(run, DIRECTORY))


def reference_key(keys: Sequence[str], settings: ReferenceSettings = ReferenceSettings()) -> str:
    """Name of the reference of these cached scans, whatever their order."""
    return fingerprint({"schema": SCHEMA, "settings": asdict(settings), "scans": sorted(keys)})


def healthy_reference(
    volumes: Sequence[Volume],
    key: str = "",
    settings: ReferenceSettings = ReferenceSettings(),
    *,
    block_bytes: int = BLOCK_BYTES,
    read: Callable[[Volume], None] = lambda volume: None,
) -> HealthyReference:
    """The reference of healthy volumes on one grid. Each is read once, then once per block of brain voxels.

    A block holds the intensities of all volumes at as many voxels as fit in `block_bytes`; so memory does not grow
    with the volumes, and quantiles are exact. `read` is called after every reading.
    """
    if not len(volumes):
        raise BadInput("No healthy volume: nothing says what is usual at a voxel. Give at least one.")
    grid, share = _covered(volumes, read)
    brain = share >= np.float32(settings.least_share)
    if not brain.any():
        raise BadInput(f"No voxel is in {100 * settings.least_share:.0f} % of the brains. Check their registration.")
    places = np.flatnonzero(brain)
    per_block = max(1, block_bytes // (4 * len(volumes)))
    blocks = [
        _statistics(volumes, places[start : start + per_block], settings.quantiles, read)
        for start in range(0, len(places), per_block)
    ]
    mean, deviation, low, high = (_on_grid(np.concatenate(values), brain) for values in zip(*blocks, strict=True))
    steps = settings.erosion_voxels
    core = binary_erosion(brain, iterations=steps) if steps else brain
    return HealthyReference(grid, mean, deviation, low, high, brain, core, len(volumes), key)


def save_reference(
    reference: HealthyReference,
    directory: Path,
    settings: ReferenceSettings = ReferenceSettings(),
    *,
    within: Path | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Commit a reference as npy and JSON."""
    with committed_directory(directory, within=within, about=about) as scratch:
        write_reference(reference, scratch, settings)


def write_reference(
    reference: HealthyReference, scratch: Path, settings: ReferenceSettings = ReferenceSettings()
) -> None:
    """Write the files of a reference into a directory that somebody else commits."""
    for name in _ARRAYS:
        np.save(scratch / f"{name}.npy", getattr(reference, name))
    record = {"key": reference.key, "n_subjects": reference.n_subjects, "settings": asdict(settings)}
    record["grid"] = {"shape": list(reference.grid.shape), "affine": reference.grid.affine.tolist()}
    write_json(scratch / "reference.json", record)


def load_reference(directory: Path) -> HealthyReference:
    """Read what `save_reference` committed. IntegrityError unless every byte is what it was."""
    verify_directory(directory)
    record: Mapping[str, Any] = read_committed_json(directory, "reference.json")
    arrays = {name: np.array(load_committed_array(directory, f"{name}.npy")) for name in _ARRAYS}
    grid = Grid(tuple(record["grid"]["shape"]), np.array(record["grid"]["affine"]))
    return HealthyReference(grid=grid, n_subjects=record["n_subjects"], key=record["key"], **arrays)


def _computed(
    volumes: Sequence[Volume], key: str, settings: ReferenceSettings, progress: Progress | None
) -> HealthyReference:
    if progress is None:
        return healthy_reference(volumes, key, settings)
    with progress.task("Reading the healthy training scans") as advance:
        return healthy_reference(volumes, key, settings, read=lambda volume: advance(1, volume.subject_id))


def _covered(volumes: Sequence[Volume], read: Callable[[Volume], None]) -> tuple[Grid, np.ndarray]:
    grid = volumes[0].grid
    count = np.zeros(grid.shape, dtype=np.int32)
    for volume in volumes:
        if not volume.grid.matches(grid):
            raise BadInput(
                f"Volume {volume.subject_id!r} is on grid {volume.grid.shape}, the first one on {grid.shape}. "
                "Prepare all with the same settings."
            )
        count += volume.brain_mask
        read(volume)
    return grid, (count / len(volumes)).astype(np.float32)


def _statistics(
    volumes: Sequence[Volume], places: np.ndarray, quantiles: tuple[float, float], read: Callable[[Volume], None]
) -> tuple[np.ndarray, ...]:
    """Mean, standard deviation and the two quantiles at some voxels, over the volumes whose brain covers each."""
    values = np.empty((len(volumes), len(places)), dtype=np.float32)
    for row, volume in zip(values, volumes, strict=True):
        inside = volume.brain_mask.reshape(-1)[places]
        row[:] = np.where(inside, volume.voxels[0].reshape(-1)[places], np.nan)
        read(volume)
    values.sort(axis=0)
    count = np.count_nonzero(np.isfinite(values), axis=0)
    values[np.isnan(values)] = 0
    mean = values.sum(axis=0, dtype=np.float64) / count
    square = np.zeros(len(places))
    for number, row in enumerate(values):
        square += np.where(number < count, (row - mean) ** 2, 0.0)
    deviation = np.sqrt(square / np.maximum(count - 1, 1))
    return mean, deviation, *(_quantile(values, count, q) for q in quantiles)


def _quantile(ordered: np.ndarray, count: np.ndarray, q: float) -> np.ndarray:
    """Quantile of the first `count` values of every column, linear between neighbours as numpy's default."""
    place = q * (count - 1)
    below = np.floor(place).astype(int)
    above = np.minimum(below + 1, count - 1)
    columns = np.arange(ordered.shape[1])
    low = ordered[below, columns].astype(np.float64)
    value: np.ndarray = low + (place - below) * (ordered[above, columns] - low)
    return value


def _on_grid(values: np.ndarray, brain: np.ndarray) -> np.ndarray:
    full = np.zeros(brain.shape, dtype=np.float32)
    full[brain] = values
    return full
