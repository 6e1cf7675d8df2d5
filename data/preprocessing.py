"""From a subject's files to a volume on the working grid and back, kept in a cache that is verified when read.

One matrix per subject carries everything: a scan is pulled onto the working grid once, a score map back once.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64

from data.cohort import Cohort, Subject, contrast_name
from data.errors import BadInput, EnvironmentProblem, IntegrityError
from data.files import (
    clear_litter,
    committed_directory,
    faultpoint,
    is_committed,
    load_committed_array,
    read_committed_json,
    read_sealed_json,
    sha256_file,
    verify_directory,
    write_sealed_json,
)
from data.intensity import normalise
from data.nifti import claimed_voxels, refuse_unreadable
from data.nifti_header import BadScan
from data.ranges import refuse_out_of_range
from data.reading import SUBJECT_FAULTS, SetAside, ended_twice, read_subject, set_aside
from data.registration import alignment_notes, register
from data.room import NPY_HEADER, committed_bytes, require_room
from data.schemas import check_schema
from data.template import working_grid, working_template
from data.trouble import patiently
from data.volume import Grid, Mask, Volume, frozen, resample
from data.workers import Died, shared_out

SCHEMA = 1
"""Counts up whenever the same files and settings would give other voxels."""
_INDEX = "index.json"
_KEY = re.compile(r"[0-9a-f]{32}")
_LEAST_WEIGHT = 1e-2
_LEAST_COVERED = 0.98
_RECORD_BYTES = 1100


@dataclass(frozen=True)
class Preprocessing:
    """How scans become comparable: where they are put, how finely, and in which intensities."""

    contrasts: tuple[str, ...] = ("T1",)
    """Names of the contrasts, in order; the first one gives the grid."""
    registration: Literal["affine", "centroid", "none"] = "affine"
    """How a brain is brought to MNI152: affine (12 parameters, about 6 s), centroid (a shift), none."""
    spacing_mm: float = 2.0
    """Voxel edge of the working grid, mm."""
    intensity: Literal["minmax", "percentile", "histogram"] = "percentile"
    """What maps the brain's intensities to 0..1: its range, its 1st to 99th percentile (clipped), or its ranks."""
    resample_masks: bool = False
    """Whether a mask on another grid than its scan is resampled (with a note) instead of refused."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "contrasts", tuple(map(contrast_name, self.contrasts)))
        if not self.contrasts or len(set(self.contrasts)) != len(self.contrasts):
            raise BadInput(f"Contrasts {self.contrasts}. Name at least one, and each once.")
        refuse_out_of_range(self)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A subject on the working grid, and what brings its scores home."""

    volume: Volume
    """Working grid, intensities 0..1, zero outside the brain."""
    lesion: Mask | None
    """Working grid; None when the subject has no lesion mask."""
    native_grid: Grid
    """Grid of the first contrast, in RAS+ order."""
    native_brain: Mask
    native_lesion: Mask | None
    world_to_native: Float64[np.ndarray, "4 4"]
    """Maps mm of the working world (MNI152) to mm of the scan's world."""
    notes: tuple[str, ...]
    key: str
    """Name of this subject in the cache."""
    voxel_sha256: str
    """Hash of the scan's voxels, blind to its header: the same scan under two names has the same."""
    axes: str = "RAS"
    """Axis codes in which the scan's file stores its voxels; exports are written like it."""
    made_from: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """What `key` is the hash of: settings, hashes of the files, id, health and labels of the subject. Empty for one
    that was prepared before this was kept."""


@dataclass(frozen=True)
class PreparedCohort:
    """Who could be prepared, under which key, and who could not and why."""

    cohort: Cohort
    settings: Preprocessing
    cache: Path
    keys: Mapping[str, str]
    """Subject id to cache key, in the cohort's order."""
    voxel_hashes: Mapping[str, str]
    set_aside: tuple[SetAside, ...]

    def notes(self, subject_ids: Sequence[str] | None = None) -> dict[str, tuple[str, ...]]:
        """What was noticed of each prepared subject (or of some), from the records in the cache."""
        wanted = self.keys if subject_ids is None else [i for i in subject_ids if i in self.keys]
        return {i: tuple(read_committed_json(self.cache / self.keys[i], "record.json")["notes"]) for i in wanted}

    def without(self, aside: Mapping[str, SetAside]) -> "PreparedCohort":
        """The same with some subjects set aside."""
        order = [s.subject_id for s in self.cohort.subjects]
        everyone = {one.subject_id: one for one in self.set_aside} | dict(aside)
        return PreparedCohort(
            self.cohort,
            self.settings,
            self.cache,
            MappingProxyType({i: key for i, key in self.keys.items() if i not in aside}),
            MappingProxyType({i: found for i, found in self.voxel_hashes.items() if i not in aside}),
            tuple(everyone[i] for i in order if i in everyone),
        )

    def load(self, subject_id: str) -> Prepared:
        """The prepared subject, read from the cache. BadInput when it was set aside or never was there."""
        if subject_id in self.keys:
            return load_prepared(self.cache, self.keys[subject_id], subject_id)
        for one in self.set_aside:
            if one.subject_id == subject_id:
                raise BadInput(f"Subject {subject_id!r} was set aside: {one.reason}")
        raise BadInput(f"No subject {subject_id!r} in cohort {self.cohort.name!r}. It has {len(self.keys)} prepared.")


def prepare_subject(subject: Subject, settings: Preprocessing, cache: Path) -> Prepared:
    """Read, register, resample and normalise one subject, or take it from the cache when nothing has changed.

    The cache key covers the bytes of every file used, the settings, the subject's id and labels. A damaged entry is
    computed anew. BadInput or BadScan when the subject cannot be used.
    """
    hashes = {role: sha256_file(path) for role, path in _files(subject, settings).items()}
    key = _key(subject, settings, hashes)
    if not _intact(cache / key):
        _store(prepare_reading(subject, settings, key), cache, _made_from(subject, settings, hashes))
    return load_prepared(cache, key, subject.subject_id)


def prepare_reading(subject: Subject, settings: Preprocessing, key: str = "") -> Prepared:
    """What `prepare_subject` computes, without a cache.

    A `key` names files by their bytes: BadScan when other bytes were read, the files having changed meanwhile.
    Voxels: interpolated linearly among brain voxels only, so what lies beyond the brain mask (skull or zeros) does
    not leak in. A scan finer than the working grid is smoothed first by a Gaussian of sigma = 0.5 √(r² - 1) scan
    voxels along each axis, r being the working step in scan voxels: the area average of the finer samples.
    Masks: the same smoothing, linear, at least one half. Intensities: normalised on the working grid in the brain.
    """
    reading = read_subject(subject, settings.contrasts, resample_masks=settings.resample_masks)
    if key and key != _key(subject, settings, reading.file_hashes):
        raise BadScan(
            "E-SCAN-CHANGED", subject.scans[settings.contrasts[0]], "or one of its masks or other contrasts changed "
            "while it was prepared.", "Run again when nothing writes to them any more.",
        )  # fmt: skip
    native, grid = reading.volume, working_grid(settings.spacing_mm)
    world_to_native = register(native, settings.registration)
    weight = pull(native.brain_mask.astype(np.float32), native.grid, grid, world_to_native)
    brain = weight >= 0.5
    if not brain.any():
        raise BadInput(
            f"The brain of {subject.subject_id!r} lies outside the working grid, which covers MNI152. "
            "Use registration 'affine' or 'centroid', or check the scan's header."
        )
    voxels = np.stack(
        [
            normalise(_pull_inside(one, native, weight, grid, world_to_native), brain, settings.intensity)
            for one in native.voxels
        ]
    )
    lesion = None
    if reading.lesion is not None:
        soft = pull(reading.lesion.voxels.astype(np.float32), native.grid, grid, world_to_native)
        lesion = Mask(soft >= 0.5, grid)
    notes = [*reading.notes, *alignment_notes(native, brain, working_template(settings.spacing_mm).brain_mask)]
    notes += _cut_off(native, grid, world_to_native)
    return Prepared(
        volume=Volume(voxels, grid, brain, subject.subject_id, settings.contrasts),
        lesion=lesion,
        native_grid=native.grid,
        native_brain=Mask(native.brain_mask, native.grid),
        native_lesion=reading.lesion,
        world_to_native=frozen(world_to_native),
        notes=tuple(notes),
        key=key,
        voxel_sha256=reading.voxel_sha256,
        axes=reading.axes,
    )


def load_prepared(cache: Path, key: str, subject_id: str | None = None) -> Prepared:
    """A prepared subject from the cache; each file is hashed once per process. Arrays are read-only.

    IntegrityError names what is damaged or missing, and refuses a scan that is not that of `subject_id`.
    """
    directory = cache / key
    if not _KEY.fullmatch(key) or not directory.is_dir():
        raise IntegrityError(
            f"Prepared scan {key!r} is not in {cache}: runs were copied without their cache, or it was emptied. "
            "Prepare it again, with the flags of the run's fit: python cli.py prepare COHORT"
        )
    record = read_committed_json(directory, "record.json")
    check_schema(directory / "record.json", record, SCHEMA)
    made_from = record.get("made_from")
    strange = subject_id is not None and record["subject_id"] != subject_id
    if strange or (made_from is not None and not _belongs(made_from, record["subject_id"], key)):
        raise IntegrityError(
            f"{directory} holds the prepared scan of {record['subject_id']!r}, not what {subject_id!r} was prepared "
            "to. Delete it and prepare the cohort again: python cli.py prepare COHORT"
        )
    grid, native = _grid(record["grid"]), _grid(record["native_grid"])
    volume = Volume(
        load_committed_array(directory, "voxels.npy"),
        grid,
        np.array(load_committed_array(directory, "brain.npy")),
        record["subject_id"],
        tuple(record["contrasts"]),
    )
    return Prepared(
        volume=volume,
        lesion=_load_mask(directory, "lesion.npy", grid) if record["lesion"] else None,
        native_grid=native,
        native_brain=_load_mask(directory, "native_brain.npy", native),
        native_lesion=_load_mask(directory, "native_lesion.npy", native) if record["lesion"] else None,
        world_to_native=frozen(np.array(record["world_to_native"], dtype=np.float64)),
        notes=tuple(record["notes"]),
        key=key,
        voxel_sha256=record["voxel_sha256"],
        axes=record.get("axes", "RAS"),
        made_from=MappingProxyType(made_from or {}),
    )


def load_voxel_hash(cache: Path, key: str, subject_id: str) -> str:
    """Hash of a prepared subject's voxels, without reading them. IntegrityError as in `load_prepared`."""
    if not _KEY.fullmatch(key):
        raise IntegrityError(f"{key!r} is no prepared scan.")
    record = read_committed_json(cache / key, "record.json")
    if record["subject_id"] != subject_id:
        raise IntegrityError(
            f"{cache / key} holds the scan of {record['subject_id']!r}, not of {subject_id!r}. Delete it and repeat "
            "`prepare`; it is computed anew."
        )
    return str(record["voxel_sha256"])


def prepare_cohort(
    cohort: Cohort,
    settings: Preprocessing,
    cache: Path,
    *,
    workers: int = 2,
    monitor: Callable[[int, int, str], None] | None = None,
) -> PreparedCohort:
    """Prepare every subject, `workers` at a time; the result does not depend on who finishes first.

    A subject that cannot be read or used is set aside with its reason, and so is one whose process was ended twice;
    one worker is this process itself. What the cache holds intact is not computed again. `monitor` gets (subjects done,
    subjects, text). EnvironmentProblem when the cache cannot be written, or every process was ended.
    """
    total = len(cohort.subjects)
    tell: Callable[[int, int, str], None] = monitor if monitor is not None else lambda done, total, text: None
    clear_litter(cache)
    keys, aside = _cohort_keys(cohort, settings, cache)
    to_do = [s for s in cohort.subjects if s.subject_id in keys and not _intact(cache / keys[s.subject_id])]
    estimate = sum(prepared_bytes(subject, settings) for subject in to_do)
    require_room(cache, estimate, f"Preparing {len(to_do)} of {total} scans")
    done = total - len(to_do)
    tell(done, total, "from the cache")
    for subject_id, problem in _compute(to_do, settings, cache, keys, workers):
        done += 1
        if problem is not None:
            aside[subject_id] = problem
        tell(done, total, subject_id)
    kept = {s.subject_id: keys[s.subject_id] for s in cohort.subjects if s.subject_id not in aside}
    hashes = {i: load_voxel_hash(cache, key, i) for i, key in kept.items()}
    return PreparedCohort(
        cohort,
        settings,
        cache,
        MappingProxyType(kept),
        MappingProxyType(hashes),
        tuple(aside[s.subject_id] for s in cohort.subjects if s.subject_id in aside),
    )


def prepared_bytes(subject: Subject, settings: Preprocessing) -> int:
    """What `prepare_subject` will keep: float32 voxels, masks of one byte or one bit a voxel, and their description."""
    working = int(np.prod(working_grid(settings.spacing_mm).shape))
    native = claimed_voxels(subject.scans[settings.contrasts[0]]) if settings.contrasts[0] in subject.scans else 0
    masks = [working, -(-native // 8)]
    if subject.lesion_mask is not None:
        masks += [-(-working // 8), -(-native // 8)]
    arrays = [4 * working * len(settings.contrasts), *masks]
    return committed_bytes(_RECORD_BYTES, *(NPY_HEADER + n for n in arrays))


def to_native(
    values: Float32[np.ndarray, "x y z"], working: Grid, prepared: Prepared, *, outside: float = np.nan
) -> Float32[np.ndarray, "i j k"]:
    """A map of the working grid (NaN outside the brain) at the voxels of the subject's own scan, in one resampling.

    Linear among finite values, with weights that sum to one, so the brain's rim keeps its scores. Voxels of the
    native brain that no finite value reaches take the nearest one; outside the native brain stands `outside`.
    """
    finite = np.isfinite(values)
    if not finite.any():
        raise BadInput(f"Not one finite value in the map of {prepared.volume.subject_id!r}: nothing to bring back.")
    back = np.linalg.inv(prepared.world_to_native)
    result = np.full(prepared.native_grid.shape, outside, dtype=np.float32)
    box = _bounding_box(prepared.native_brain.voxels)
    brain, onto = prepared.native_brain.voxels[box], _cropped(prepared.native_grid, box)
    weight = resample(finite.astype(np.float32), working, onto, world_to_source=back)
    total = resample(np.where(finite, values, np.float32(0)), working, onto, world_to_source=back)
    reached = weight > _LEAST_WEIGHT
    inside = brain & reached
    result[box][inside] = total[inside] / weight[inside]
    missing = brain & ~reached
    if missing.any():
        indices = np.argwhere(missing) @ onto.affine[:3, :3].T + onto.affine[:3, 3]
        result[box][missing] = _nearest_finite(values, finite, working, indices @ back[:3, :3].T + back[:3, 3])
    return result


def pull(
    values: Float32[np.ndarray, "x y z"], source: Grid, onto: Grid, world_to_source: Float64[np.ndarray, "4 4"]
) -> Float32[np.ndarray, "i j k"]:
    """Values at the voxel centres of `onto`, linear; a finer source is smoothed first to the area `onto` averages.

    Gaussian of sigma = 0.5 √(r² - 1) source voxels along each source axis, r being the step of `onto` in source
    voxels; none where `onto` is the finer one. `world_to_source` as in `resample`.
    """
    from scipy.ndimage import gaussian_filter

    matrix = np.linalg.inv(source.affine) @ world_to_source @ onto.affine
    steps = np.linalg.norm(matrix[:3, :3], axis=1)
    sigma = 0.5 * np.sqrt(np.maximum(steps**2 - 1.0, 0.0))
    if sigma.max() > 0.0:
        values = gaussian_filter(values, sigma, mode="constant")
    return resample(values, source, onto, world_to_source=world_to_source)


def _bounding_box(mask: Bool[np.ndarray, "x y z"]) -> tuple[slice, slice, slice]:
    """The smallest box that holds the mask; the whole grid when it is empty."""
    if not mask.any():
        return slice(None), slice(None), slice(None)
    spans = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    x, y, z = (slice(int(span[0]), int(span[-1]) + 1) for span in spans)
    return x, y, z


def _cropped(grid: Grid, box: tuple[slice, slice, slice]) -> Grid:
    starts = [span.start or 0 for span in box]
    stops = [n if span.stop is None else span.stop for span, n in zip(box, grid.shape, strict=True)]
    shift = np.eye(4)
    shift[:3, 3] = starts
    x, y, z = (stop - start for start, stop in zip(starts, stops, strict=True))
    return Grid((x, y, z), grid.affine @ shift)


def _nearest_finite(
    values: Float32[np.ndarray, "x y z"],
    finite: Bool[np.ndarray, "x y z"],
    working: Grid,
    points_mm: Float64[np.ndarray, "points 3"],
) -> Float32[np.ndarray, " points"]:
    from scipy.ndimage import binary_erosion
    from scipy.spatial import cKDTree

    rim = finite & ~binary_erosion(finite, border_value=1)
    if not rim.any():
        rim = finite
    centres = np.argwhere(rim) @ working.affine[:3, :3].T + working.affine[:3, 3]
    _, which = cKDTree(centres).query(points_mm)
    return np.asarray(values[rim][which], dtype=np.float32)


def _pull_inside(
    values: Float32[np.ndarray, "x y z"],
    native: Volume,
    weight: Float32[np.ndarray, "i j k"],
    onto: Grid,
    world_to_source: Float64[np.ndarray, "4 4"],
) -> Float32[np.ndarray, "i j k"]:
    masked = np.where(native.brain_mask, values, np.float32(0))
    pulled = pull(masked, native.grid, onto, world_to_source)
    return np.asarray(np.where(weight >= 0.5, pulled / np.maximum(weight, 0.5), 0.0), dtype=np.float32)


def _cut_off(native: Volume, grid: Grid, world_to_native: Float64[np.ndarray, "4 4"]) -> list[str]:
    matrix = np.linalg.inv(grid.affine) @ np.linalg.inv(world_to_native) @ native.grid.affine
    where = np.argwhere(native.brain_mask) @ matrix[:3, :3].T + matrix[:3, 3]
    covered = float(np.all((where >= -0.5) & (where <= np.array(grid.shape) - 0.5), axis=1).mean())
    if covered >= _LEAST_COVERED:
        return []
    return [f"{100 * (1 - covered):.1f} % of the brain lies outside the working grid; there scores are extrapolated."]


def _files(subject: Subject, settings: Preprocessing) -> dict[str, Path]:
    files = {f"scan {name}": subject.scans[name] for name in settings.contrasts if name in subject.scans}
    if subject.brain_mask is not None:
        files["brain"] = subject.brain_mask
    if subject.lesion_mask is not None:
        files["lesion"] = subject.lesion_mask
    return files


def _made_from(subject: Subject, settings: Preprocessing, hashes: Mapping[str, str]) -> dict[str, Any]:
    labels = list(subject.lesion_labels) if subject.lesion_labels is not None else None
    declared = {
        "ignore_labels": list(subject.ignore_labels),
        "volumes": dict(subject.volumes),
        "header_form": subject.header_form,
        "mask_cut": subject.mask_cut,
    }
    said = {name: value for name, value in declared.items() if value not in ([], {}, "", None)}
    return {
        "schema": SCHEMA,
        "settings": {**asdict(settings), "contrasts": list(settings.contrasts)},
        "files": dict(hashes),
        "subject": [subject.subject_id, bool(subject.healthy), labels, *([said] if said else [])],
    }


def _key(subject: Subject, settings: Preprocessing, hashes: Mapping[str, str]) -> str:
    return _digest(_made_from(subject, settings, hashes))


def _digest(made_from: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:32]


def _belongs(made_from: Mapping[str, Any], subject_id: str, key: str) -> bool:
    return _digest(made_from) == key and made_from["subject"][0] == subject_id


def _cohort_keys(cohort: Cohort, settings: Preprocessing, cache: Path) -> tuple[dict[str, str], dict[str, SetAside]]:
    # Hashes of files that kept path, identity, size and times are taken from the index, the others computed. The
    # time of the last change of the inode is among them: a program can set the time of writing back, but not this one.
    known = _read_index(cache / _INDEX)
    seen = dict(known)
    keys: dict[str, str] = {}
    aside: dict[str, SetAside] = {}
    for subject in cohort.subjects:
        try:
            hashes = {role: _known_hash(path, seen) for role, path in _files(subject, settings).items()}
        except BadScan as error:
            aside[subject.subject_id] = set_aside(subject, error)
        else:
            keys[subject.subject_id] = _key(subject, settings, hashes)
    if seen != known:
        write_sealed_json(cache / _INDEX, seen)
    return keys, aside


def _known_hash(path: Path, seen: dict[str, str]) -> str:
    try:
        state = path.stat()
        times = f"{state.st_mtime_ns}|{state.st_ctime_ns}"
        name = f"{path.resolve()}|{state.st_dev}|{state.st_ino}|{state.st_size}|{times}"
        if name not in seen:
            seen[name] = _file_hash(path)
    except OSError as error:
        refuse_unreadable(path, error)
    return seen[name]


def _file_hash(path: Path) -> str:
    return patiently(lambda: sha256_file(path))


def _read_index(path: Path) -> dict[str, str]:
    try:
        return read_sealed_json(path) if path.is_file() else {}
    except IntegrityError:
        return {}


def _compute(
    to_do: list[Subject], settings: Preprocessing, cache: Path, keys: Mapping[str, str], workers: int
) -> Iterator[tuple[str, SetAside | None]]:
    if workers <= 1:
        for subject in to_do:
            yield _prepare_into(subject, settings, cache, keys[subject.subject_id])
        return
    # In processes even when there is one scan: a library that crashes on a damaged file stops that subject only.
    given = [(s, settings, cache, keys[s.subject_id]) for s in to_do]
    for number, outcome in shared_out(_prepare_into, given, workers):
        if isinstance(outcome, Died):
            yield to_do[number].subject_id, ended_twice(to_do[number], outcome)
        else:
            yield outcome


def _prepare_into(subject: Subject, settings: Preprocessing, cache: Path, key: str) -> tuple[str, SetAside | None]:
    try:
        faultpoint(f"prepare.{subject.subject_id}")
        prepared = prepare_reading(subject, settings, key)
        hashes = {role: _file_hash(path) for role, path in _files(subject, settings).items()}
        if _key(subject, settings, hashes) != key:
            raise BadInput(f"A file of subject {subject.subject_id!r} was changed while it was read. Prepare again.")
        _store(prepared, cache, _made_from(subject, settings, hashes))
    except EnvironmentProblem:
        raise
    except (*SUBJECT_FAULTS, RuntimeError) as error:  # RuntimeError: the registration library's
        return subject.subject_id, set_aside(subject, error)
    return subject.subject_id, None


def _store(prepared: Prepared, cache: Path, made_from: Mapping[str, Any]) -> None:
    record = {
        "schema": SCHEMA,
        "subject_id": prepared.volume.subject_id,
        "contrasts": list(prepared.volume.contrasts),
        "grid": _describe(prepared.volume.grid),
        "native_grid": _describe(prepared.native_grid),
        "world_to_native": prepared.world_to_native.tolist(),
        "lesion": prepared.lesion is not None,
        "notes": list(prepared.notes),
        "voxel_sha256": prepared.voxel_sha256,
        "axes": prepared.axes,
        "made_from": dict(made_from),
    }
    about = {"stage": "prepared", "made_by": "prepare"}
    with committed_directory(cache / prepared.key, within=cache, about=about) as scratch:
        np.save(scratch / "voxels.npy", prepared.volume.voxels, allow_pickle=False)
        np.save(scratch / "brain.npy", prepared.volume.brain_mask, allow_pickle=False)
        _save_mask(scratch / "native_brain.npy", prepared.native_brain)
        if prepared.lesion is not None and prepared.native_lesion is not None:
            _save_mask(scratch / "lesion.npy", prepared.lesion)
            _save_mask(scratch / "native_lesion.npy", prepared.native_lesion)
        (scratch / "record.json").write_text(json.dumps(record, indent=1, sort_keys=True))


def _save_mask(path: Path, mask: Mask) -> None:
    # Eight voxels a byte: native masks at 1 mm would outweigh everything else.
    np.save(path, np.packbits(mask.voxels), allow_pickle=False)


def _load_mask(directory: Path, name: str, grid: Grid) -> Mask:
    bits = np.unpackbits(load_committed_array(directory, name), count=int(np.prod(grid.shape)))
    return Mask(frozen(bits.view(bool).reshape(grid.shape)), grid)


def _describe(grid: Grid) -> dict[str, Any]:
    return {"shape": list(grid.shape), "affine": grid.affine.tolist()}


def _grid(record: Mapping[str, Any]) -> Grid:
    x, y, z = record["shape"]
    return Grid((x, y, z), np.array(record["affine"], dtype=np.float64))


def _intact(directory: Path) -> bool:
    if not is_committed(directory):
        return False
    try:
        verify_directory(directory)
    except IntegrityError as problem:
        print(f"note: a prepared scan is made anew. {problem}", file=sys.stderr)
        return False
    return True
