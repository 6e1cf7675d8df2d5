"""Real lesion shapes put into healthy brains: a lesioned cohort whose truth is known, written as ordinary files.

A planted lesion has a true shape and place, but its intensities are ours; say so beside every number got from it.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float64

from data.cohort import Cohort, Subject, contrast_name
from data.errors import BadInput
from data.files import committed_directory, is_committed
from data.json_files import read_json, write_json
from data.nifti import claimed_voxels, read_labels, write_nifti
from data.planted_texture import Polarity, plant
from data.preprocessing import pull
from data.ranges import check_range
from data.reading import SUBJECT_FAULTS, SetAside, ended_twice, read_subject, set_aside
from data.registration import register
from data.room import require_room
from data.table import write_table
from data.volume import Mask, Volume
from data.whole_files import clear_litter, faultpoint
from data.workers import Died, shared_out

TABLE = "cohort.csv"
RECORDS = "lesions.json"
_LEAST_INSIDE = 0.5


@dataclass(frozen=True, eq=False)
class LesionShape:
    """The outline of a real lesion in MNI152."""

    name: str
    mask: Mask


@dataclass(frozen=True)
class PlantedLesion:
    """What was planted in whom."""

    subject_id: str
    shape: str
    contrast: float
    """Fraction of the way from the local tissue's intensity to that of fluid (hypo) or the brightest tissue (hyper)."""
    polarity: Polarity
    volume_ml: float
    """Volume of the truth mask in the subject's own space, ml."""
    centre_mm: tuple[float, float, float]
    """Centre of the truth mask in the scan's world, mm."""


def read_shapes(directory: Path) -> tuple[LesionShape, ...]:
    """All NIfTI masks of a folder, taken to lie in MNI152 mm (any grid); values above 0 are lesion. Sorted by name."""
    paths = sorted(p for p in Path(directory).glob("*") if p.name.endswith((".nii", ".nii.gz")))
    if not paths:
        raise BadInput(f"No .nii or .nii.gz file in {directory}. Give a folder with lesion masks in MNI space.")
    shapes = []
    for path in paths:
        labels = read_labels(path)
        shapes.append(LesionShape(path.name.split(".nii")[0], Mask(labels.voxels > 0, labels.grid)))
    return tuple(shapes)


def plant_cohort(
    cohort: Cohort,
    shapes: Sequence[LesionShape],
    directory: Path,
    *,
    contrast: str = "T1",
    seed: int = 0,
    contrast_range: tuple[float, float] = (0.15, 0.6),
    min_volume_ml: float = 0.5,
    edge_mm: float = 2.0,
    polarity: Polarity = "hypo",
    workers: int = 2,
    resample_masks: bool = False,
) -> Path:
    """Plant one lesion in every subject of a healthy cohort; returns the table of what was written.

    Each subject draws its contrast and an order of the shapes from (seed, subject id). A shape fits when it keeps half
    of its volume inside the brain and at least `min_volume_ml` of it. Subjects, in order of id, take the first in their
    order among the least used that fit, so no shape comes twice while another one fits: heads with one shape are not
    independent. Shapes come from MNI152 by the subject's own affine registration. `directory` gets the planted scans,
    brain and lesion masks, cohort.csv and lesions.json (one PlantedLesion per subject, and who was set aside), all or
    nothing. Same input, same bytes.
    """
    check_range("workers", workers)
    check_range("seed", seed)
    _check(cohort, shapes, directory, contrast_range)
    scans = [s.scans[contrast_name(contrast)] for s in cohort.subjects if contrast_name(contrast) in s.scans]
    require_room(directory, 6 * sum(map(claimed_voxels, scans)), f"Planting in {len(scans)} scans", at_most=True)
    settings = _Settings(
        contrast_name(contrast), seed, contrast_range, min_volume_ml, edge_mm, polarity, resample_masks
    )
    clear_litter(directory.parent)
    cohort = cohort.in_order()
    with committed_directory(directory) as scratch:
        subjects = cohort.subjects
        fits = _each(
            workers,
            _fit_one,
            [(subject, tuple(shapes), settings) for subject in subjects],
            lambda number, died: _Fit(problem=ended_twice(subjects[number], died)),
        )
        chosen = _shared_out(cohort.subjects, [fit.shapes for fit in fits], len(shapes))
        results = _each(
            workers,
            _plant_one,
            [
                (number, subject, None if at is None else shapes[at], fit, settings, scratch)
                for number, (subject, at, fit) in enumerate(zip(subjects, chosen, fits, strict=True))
            ],
            lambda number, died: (None, None, ended_twice(subjects[number], died)),
        )
        _describe(scratch, results, settings)
    return directory / TABLE


def _describe(directory: Path, results: "Sequence[_Result]", settings: "_Settings") -> None:
    """The table of the planted scans, and what was planted; BadInput when nothing was."""
    planted = [(subject, record) for subject, record, _ in results if subject is not None and record is not None]
    aside = [problem for _, _, problem in results if problem is not None]
    if not planted:
        raise BadInput(f"No lesion could be planted. First reason: {aside[0].reason}")
    write_table(directory / TABLE, [subject for subject, _ in planted])
    write_json(
        directory / RECORDS,
        {
            "settings": {k: v for k, v in asdict(settings).items() if k != "resample_masks" or v},
            "lesions": [asdict(record) for _, record in planted],
            "set_aside": [asdict(problem) for problem in aside],
        },
    )


def _check(cohort: Cohort, shapes: Sequence[LesionShape], directory: Path, contrast_range: tuple[float, float]) -> None:
    low, high = contrast_range
    if not 0.0 < low <= high <= 1.0:
        raise BadInput(f"Contrast range {contrast_range}. Allowed: two fractions, 0 < low <= high <= 1.")
    if not shapes or not cohort.subjects:
        raise BadInput(f"{len(shapes)} shapes and {len(cohort.subjects)} subjects. At least one of each is needed.")
    ill = [s.subject_id for s in cohort.subjects if not s.healthy]
    if ill:
        raise BadInput(f"{len(ill)} subject(s) are not healthy: {', '.join(ill[:5])}. Plant in healthy subjects only.")
    if directory.exists() and not is_committed(directory) and any(directory.iterdir()):
        raise BadInput(f"{directory} holds other files and would be replaced. Choose a new or empty directory.")


def read_records(directory: Path) -> tuple[PlantedLesion, ...]:
    """The records that `plant_cohort` wrote."""
    records = read_json(directory / RECORDS)["lesions"]
    return tuple(PlantedLesion(**{**record, "centre_mm": tuple(record["centre_mm"])}) for record in records)


@dataclass(frozen=True)
class _Settings:
    contrast: str
    seed: int
    contrast_range: tuple[float, float]
    min_volume_ml: float
    edge_mm: float
    polarity: Polarity
    resample_masks: bool = False


@dataclass(frozen=True, eq=False)
class _Fit:
    """The shapes that fit into a subject, in the order in which it would take them; or why there are none."""

    shapes: tuple[int, ...] = ()
    world_to_native: Float64[np.ndarray, "4 4"] | None = None
    problem: SetAside | None = None


_Result = tuple[Subject | None, PlantedLesion | None, SetAside | None]
_T = TypeVar("_T")


def _each(
    workers: int, work: Callable[..., _T], given: Sequence[tuple[Any, ...]], ended: Callable[[int, Died], _T]
) -> list[_T]:
    """Results in the order of what was given; `ended` says what stands for a piece whose process was ended twice."""
    if workers <= 1:
        return [work(*one) for one in given]
    found: dict[int, _T] = {}
    for number, outcome in shared_out(work, given, workers):
        found[number] = ended(number, outcome) if isinstance(outcome, Died) else outcome
    return [found[number] for number in range(len(given))]


def _fit_one(subject: Subject, shapes: tuple[LesionShape, ...], settings: _Settings) -> _Fit:
    try:
        faultpoint(f"plant.{subject.subject_id}")
        volume = read_subject(subject, (settings.contrast,), resample_masks=settings.resample_masks).volume
        world_to_native = register(volume, "affine")
        order = _generator(settings.seed, f"order {subject.subject_id}").permutation(len(shapes))
        fitting = tuple(int(i) for i in order if _fits(_placed(volume, shapes[i], world_to_native), volume, settings))
        if not fitting:
            raise BadInput(
                f"None of {len(shapes)} shapes keeps {settings.min_volume_ml} ml inside the brain of "
                f"{subject.subject_id!r}. Give larger shapes, or check that they are in MNI space."
            )
    except SUBJECT_FAULTS as error:
        return _Fit(problem=set_aside(subject, error))
    return _Fit(fitting, world_to_native)


def _shared_out(subjects: Sequence[Subject], fitting: Sequence[tuple[int, ...]], n: int) -> list[int | None]:
    used = [0] * n
    chosen: list[int | None] = [None] * len(subjects)
    for number in sorted(range(len(subjects)), key=lambda i: subjects[i].subject_id):
        if fitting[number]:
            taken = min(fitting[number], key=lambda i: used[i])  # the first of the least used
            used[taken] += 1
            chosen[number] = taken
    return chosen


def _plant_one(
    number: int, subject: Subject, shape: LesionShape | None, fit: _Fit, settings: _Settings, directory: Path
) -> _Result:
    if shape is None or fit.world_to_native is None:
        return None, None, fit.problem
    try:
        volume = read_subject(subject, (settings.contrast,), resample_masks=settings.resample_masks).volume
        lesion = Mask(_placed(volume, shape, fit.world_to_native) & volume.brain_mask, volume.grid)
        generator = _generator(settings.seed, subject.subject_id)
        contrast = float(np.round(generator.uniform(*settings.contrast_range), 4))
        planted = plant(
            volume,
            lesion,
            contrast=contrast,
            edge_mm=settings.edge_mm,
            texture_seed=int(generator.integers(2**32)),
            polarity=settings.polarity,
        )
    except SUBJECT_FAULTS as error:
        return None, None, set_aside(subject, error)
    centre = np.argwhere(lesion.voxels).mean(axis=0) @ volume.grid.affine[:3, :3].T + volume.grid.affine[:3, 3]
    x, y, z = (round(float(value), 3) for value in centre)
    record = PlantedLesion(
        subject.subject_id, shape.name, contrast, settings.polarity, round(lesion.volume_ml, 4), (x, y, z)
    )
    return _write(number, subject, planted, lesion, settings.contrast, directory), record, None


def _write(number: int, subject: Subject, planted: Volume, lesion: Mask, contrast: str, directory: Path) -> Subject:
    stem = f"{number:04d}_{re.sub(r'[^A-Za-z0-9._-]', '_', subject.subject_id)[:100]}"
    scan, brain, mask = (directory / f"{stem}_{what}.nii.gz" for what in (contrast, "brain", "lesion"))
    write_nifti(scan, planted.voxels[0], planted.grid)
    write_nifti(brain, planted.brain_mask.astype(np.uint8), planted.grid)
    write_nifti(mask, lesion.voxels.astype(np.uint8), planted.grid)
    return Subject(
        subject.subject_id,
        {contrast: scan},
        brain_mask=brain,
        lesion_mask=mask,
        healthy=False,
        role=subject.role,
        site=subject.site,
        age=subject.age,
        sex=subject.sex,
    )


def _placed(
    volume: Volume, shape: LesionShape, world_to_native: Float64[np.ndarray, "4 4"]
) -> Bool[np.ndarray, "x y z"]:
    to_template = np.linalg.inv(world_to_native)
    placed: np.ndarray = pull(shape.mask.voxels.astype(np.float32), shape.mask.grid, volume.grid, to_template) >= 0.5
    return placed


def _fits(placed: Bool[np.ndarray, "x y z"], volume: Volume, settings: _Settings) -> bool:
    lesion = Mask(placed & volume.brain_mask, volume.grid)
    kept = int(np.count_nonzero(lesion.voxels)) / max(int(np.count_nonzero(placed)), 1)
    return lesion.volume_ml >= settings.min_volume_ml and kept >= _LEAST_INSIDE


def _generator(seed: int, name: str) -> np.random.Generator:
    purpose = int.from_bytes(hashlib.sha256(f"planting {name}".encode()).digest()[:8], "little")
    return np.random.Generator(np.random.Philox(key=np.array([seed, purpose], dtype=np.uint64)))
