"""From a subject's files to a volume on the working grid and back, kept in a cache that is verified when read.

One matrix per subject carries everything: a scan is pulled onto the working grid once, a score map back once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Float32, Float64

from data.cohort import Cohort, Subject
from data.errors import BadInput, EnvironmentProblem, IntegrityError
from data.files import read_committed_json
from data.hashed import sha256_file
from data.intensity import normalise
from data.json_files import read_sealed_json, write_sealed_json
from data.nifti import claimed_voxels
from data.nifti_bytes import refuse_unreadable
from data.nifti_header import BadScan
from data.prepared import Prepared, Preprocessing
from data.prepared_cache import files_of, is_intact, key_of, load_prepared, load_voxel_hash, origin_of, store_prepared
from data.reading import SUBJECT_FAULTS, SetAside, ended_twice, read_subject, set_aside
from data.registration import alignment_notes, register
from data.room import NPY_HEADER, committed_bytes, require_room
from data.template import working_grid, working_template
from data.trouble import patiently
from data.volume import Grid, Mask, Volume, frozen, resample
from data.whole_files import clear_litter, faultpoint
from data.workers import Died, shared_out

_INDEX = "index.json"
_LEAST_COVERED = 0.98
_RECORD_BYTES = 1100


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
    hashes = {role: sha256_file(path) for role, path in files_of(subject, settings).items()}
    key = key_of(subject, settings, hashes)
    if not is_intact(cache / key):
        store_prepared(prepare_reading(subject, settings, key), cache, origin_of(subject, settings, hashes))
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
    if key and key != key_of(subject, settings, reading.file_hashes):
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
    to_do = [s for s in cohort.subjects if s.subject_id in keys and not is_intact(cache / keys[s.subject_id])]
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


def _cohort_keys(cohort: Cohort, settings: Preprocessing, cache: Path) -> tuple[dict[str, str], dict[str, SetAside]]:
    # Hashes of files that kept path, identity, size and times are taken from the index, the others computed. The
    # time of the last change of the inode is among them: a program can set the time of writing back, but not this one.
    known = _read_index(cache / _INDEX)
    seen = dict(known)
    keys: dict[str, str] = {}
    aside: dict[str, SetAside] = {}
    for subject in cohort.subjects:
        try:
            hashes = {role: _known_hash(path, seen) for role, path in files_of(subject, settings).items()}
        except BadScan as error:
            aside[subject.subject_id] = set_aside(subject, error)
        else:
            keys[subject.subject_id] = key_of(subject, settings, hashes)
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
        hashes = {role: _file_hash(path) for role, path in files_of(subject, settings).items()}
        if key_of(subject, settings, hashes) != key:
            raise BadInput(f"A file of subject {subject.subject_id!r} was changed while it was read. Prepare again.")
        store_prepared(prepared, cache, origin_of(subject, settings, hashes))
    except EnvironmentProblem:
        raise
    except (*SUBJECT_FAULTS, RuntimeError) as error:  # RuntimeError: the registration library's
        return subject.subject_id, set_aside(subject, error)
    return subject.subject_id, None
