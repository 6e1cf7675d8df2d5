"""From a subject's files to one volume: contrasts and masks on one grid, every doubt said or refused.

A scan that cannot be used sets its subject aside with a reason; it never stops the others.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float32

from data.brain import brain_of
from data.cohort import ROLES, Cohort, Split, Subject, contrast_name
from data.errors import BadInput
from data.lesion_labels import lesion_of, note_on_lesion
from data.nifti import Scan, read_scan, volumes_of
from data.nifti_header import BadScan
from data.volume import Grid, Mask, Volume, resample
from data.workers import Died

ENDED = "E-ENDED"
"""Code of a subject whose process was ended twice."""
SUBJECT_FAULTS = (BadInput, OSError, MemoryError, ArithmeticError, ValueError, IndexError)
"""What a subject's files can make the code that reads, registers or plants raise; it concerns no other subject."""


@dataclass(frozen=True, eq=False)
class Reading:
    """A subject as read: `voxel_sha256` is over the first contrast's voxels in RAS+ order, blind to the header."""

    volume: Volume
    lesion: Mask | None
    notes: tuple[str, ...]
    file_hashes: Mapping[str, str]
    """SHA-256 of the bytes that were read, by role: "scan T1", "brain", "lesion"."""
    voxel_sha256: str
    axes: str = "RAS"
    """Axis codes in which the first contrast's file stores its voxels."""
    scan_sha256: Mapping[str, str] = field(default_factory=dict)
    """As `voxel_sha256`, of every contrast."""


@dataclass(frozen=True)
class SetAside:
    """A subject that cannot be used: the file, a code, and the whole message."""

    subject_id: str
    path: str
    code: str
    reason: str

    @property
    def cause(self) -> str:
        """The message without the code in front of it."""
        return self.reason.removeprefix(f"{self.code}: ")


@dataclass(frozen=True)
class SubjectFacts:
    """What a reading shows of a subject, without its voxels."""

    subject_id: str
    role: str | None
    healthy: bool | None
    """None when nobody says."""
    health_from: str
    """On whose word."""
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    orientation: str
    brain_ml: float
    lesion_ml: float | None
    """None when there is no lesion mask."""
    n_lesions: int | None
    """Lesions that touch by a face, an edge or a corner count as one."""
    notes: tuple[str, ...]
    voxel_sha256: str
    scan_sha256: Mapping[str, str] = field(default_factory=dict)
    """Of every contrast, the hash of its voxels."""


@dataclass(frozen=True)
class CohortCheck:
    """Who can be used, who cannot and why, and whose voxels stand under two ids."""

    facts: tuple[SubjectFacts, ...]
    set_aside: tuple[SetAside, ...]
    duplicates: tuple[tuple[str, str], ...]

    @property
    def n_total(self) -> int:
        """Subjects looked at."""
        return len(self.facts) + len(self.set_aside)


def read_subject(subject: Subject, contrasts: tuple[str, ...], *, resample_masks: bool = False) -> Reading:
    """The subject's contrasts on the grid of the first one, with brain and lesion mask.

    Later contrasts are resampled linearly, with a note. Without a brain mask the foreground of a skull-stripped
    scan is the brain. Masks must lie on the first contrast's grid (within a hundredth of a voxel), or `resample_masks`.
    Voxels of ignored labels belong neither to the brain nor to the lesion: nothing is learnt from them or scored.
    NaN inside the brain is an error, outside it becomes 0. BadScan or BadInput says what to do.
    """
    scans = _read_contrasts(subject, contrasts)
    grid = scans[0].grid
    for name, scan in zip(contrasts, scans, strict=True):
        _refuse_ct(subject, name, scan)
    notes = [f"{name}: {note}" for name, scan in zip(contrasts, scans, strict=True) for note in scan.notes]
    hashes = {f"scan {name}": scan.sha256 for name, scan in zip(contrasts, scans, strict=True)}
    brain = brain_of(subject, scans[0], contrasts[0], resample_masks, notes, hashes)
    lesion, ignored = lesion_of(subject, grid, resample_masks, notes, hashes)
    if ignored is not None:
        brain = Mask(brain.voxels & ~ignored, grid)
    if lesion is not None:
        note_on_lesion(subject, lesion, brain, notes)
    stack = [_on_grid(scan, grid, name, notes) for name, scan in zip(contrasts, scans, strict=True)]
    voxels = np.stack([_clean(subject, name, one, brain) for name, one in zip(contrasts, stack, strict=True)])
    volume = Volume(voxels, grid, brain.voxels, subject.subject_id, contrasts)
    own = {name: _voxel_sha256(scan.voxels) for name, scan in zip(contrasts, scans, strict=True)}
    notes += [f"{a} and {b} hold the same voxels; one of the two is filed wrongly." for a, b in find_duplicates(own)]
    return Reading(volume, lesion, tuple(notes), hashes, own[contrasts[0]], scans[0].axes, own)


def check_cohort(
    cohort: Cohort,
    contrasts: tuple[str, ...],
    *,
    monitor: Callable[[int, str], None] | None = None,
    resample_masks: bool = False,
) -> CohortCheck:
    """Read every subject once, one at a time; `monitor` gets the position and the id before each."""
    facts: list[SubjectFacts] = []
    aside: list[SetAside] = []
    for position, subject in enumerate(cohort.subjects):
        if monitor is not None:
            monitor(position, subject.subject_id)
        try:
            facts.append(facts_of(subject, read_subject(subject, contrasts, resample_masks=resample_masks)))
        except (BadInput, OSError, MemoryError) as error:
            aside.append(set_aside(subject, error))
    return CohortCheck(tuple(facts), tuple(aside), _copies(facts))


def set_aside(subject: Subject, error: Exception) -> SetAside:
    """The record of a subject whose reading raised `error`."""
    if isinstance(error, BadScan):
        return SetAside(subject.subject_id, str(error.path), error.code, str(error))
    code = "E-SUBJECT" if isinstance(error, BadInput) else "E-READ"
    return SetAside(subject.subject_id, "", code, str(error) or type(error).__name__)


def ended_twice(subject: Subject, died: Died) -> SetAside:
    """The record of a subject whose process was ended twice."""
    reason = f"{ENDED}: {subject.subject_id}: {died.cause}, then run again."
    return SetAside(subject.subject_id, "", ENDED, reason)


def facts_of(subject: Subject, reading: Reading) -> SubjectFacts:
    """The facts of one reading."""
    grid = reading.volume.grid
    brain = Mask(reading.volume.brain_mask, grid)
    return SubjectFacts(
        subject.subject_id, subject.role, subject.healthy, subject.health_from,
        grid.shape, grid.spacing_mm, grid.orientation,
        brain.volume_ml, None if reading.lesion is None else reading.lesion.volume_ml,
        None if reading.lesion is None else _count_lesions(reading.lesion.voxels), reading.notes, reading.voxel_sha256,
        reading.scan_sha256,
    )  # fmt: skip


def find_duplicates(hashes: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Pairs of ids with the same voxels, from a mapping of id to voxel hash; the first id of a group stands first."""
    owners: dict[str, list[str]] = defaultdict(list)
    for subject_id in sorted(hashes):
        owners[hashes[subject_id]].append(subject_id)
    return tuple((ids[0], other) for ids in owners.values() for other in ids[1:])


def _copies(facts: Sequence[SubjectFacts]) -> tuple[tuple[str, str], ...]:
    """Pairs of ids with the same voxels in any contrast."""
    contrasts = dict.fromkeys(name for one in facts for name in one.scan_sha256)
    pairs = [
        pair
        for name in contrasts
        for pair in find_duplicates({f.subject_id: f.scan_sha256[name] for f in facts if name in f.scan_sha256})
    ]
    return tuple(dict.fromkeys(pairs))


def refuse_leakage(split: Split, hashes: Mapping[str, str]) -> None:
    """Raise BadInput when two ids of the split have the same voxels, in one role or in two."""
    roles = {subject_id: role for role in ROLES for subject_id in getattr(split, role)}
    pairs = find_duplicates({i: h for i, h in hashes.items() if i in roles})
    if not pairs:
        return
    named = "; ".join(f"{a!r} ({roles[a]}) and {b!r} ({roles[b]})" for a, b in pairs[:5])
    raise BadInput(
        f"E-LEAKAGE: {len(pairs)} pair(s) of ids hold the same scan: {named}. Numbers on them would be too good or "
        "counted twice. Remove one id of each pair from the split."
    )


def _read_contrasts(subject: Subject, contrasts: tuple[str, ...]) -> list[Scan]:
    contrasts = tuple(map(contrast_name, contrasts))
    if not contrasts:
        raise BadInput("No contrast was asked for. Name at least one, for example ('t1',).")
    for name in contrasts:
        if name not in subject.scans:
            raise BadInput(
                f"Subject {subject.subject_id!r} has no {name!r} scan. It has: {', '.join(subject.scans) or 'none'}. "
                "Choose another contrast or add the file."
            )
    return [_read_contrast(subject, name) for name in contrasts]


def _read_contrast(subject: Subject, name: str) -> Scan:
    path = subject.scans[name]
    index = subject.volumes.get(name)
    if index is not None and volumes_of(path) == 1:
        index = None  # what is said of 4-D scans does not concern it
    return read_scan(path, volume_index=index, header_form=subject.header_form)


def _refuse_ct(subject: Subject, name: str, scan: Scan) -> None:
    """Hounsfield units: air at -1000, and nothing that is soft above a few hundred."""
    step = max(1, scan.voxels.size >> 18)
    values = scan.voxels.ravel(order="K")[::step]
    values = values[np.isfinite(values)]
    tissue = values[values > -500]
    if subject.kept or tissue.size < 0.02 * values.size or values.min() > -900:
        return
    if float(np.median(values)) < -900 and 0 <= float(np.median(tissue)) <= 150 and values.min() >= -3100:
        raise BadScan(
            "E-REF-CT", subject.scans[name], f"looks like a CT and no {name} (air at {values.min():g}, tissue around "
            f"{float(np.median(tissue)):.0f}: Hounsfield units).",
            f"Take it out, or say --keep {subject.subject_id} if it is what you want.",
        )  # fmt: skip


def _on_grid(scan: Scan, grid: Grid, name: str, notes: list[str]) -> Float32[np.ndarray, "x y z"]:
    if scan.grid.coincides(grid):
        return scan.voxels
    spacing = " x ".join(f"{x:.3g}" for x in scan.grid.spacing_mm)
    notes.append(f"{name}: resampled linearly onto the first contrast's grid (from {scan.grid.shape}, {spacing} mm).")
    return resample(scan.voxels, scan.grid, grid, order=1)


def _clean(
    subject: Subject, contrast: str, voxels: Float32[np.ndarray, "x y z"], brain: Mask
) -> Float32[np.ndarray, "x y z"]:
    """Finite voxels with a spread inside the brain; NaN and infinity outside it become 0."""
    bad = ~np.isfinite(voxels)
    inside = int(np.count_nonzero(bad & brain.voxels))
    if inside:
        raise BadScan(
            "E-SCAN-NAN", subject.scans[contrast], f"{inside} voxels inside the brain are NaN or infinite.",
            "Their score would be undefined. Repair the scan or shrink the brain mask.",
        )  # fmt: skip
    values = voxels[brain.voxels]
    if float(values.min()) == float(values.max()):
        raise BadScan(
            "E-SCAN-CONSTANT", subject.scans[contrast], f"is {float(values[0]):g} everywhere inside the brain.",
            "Check that scan and brain mask belong together.",
        )  # fmt: skip
    return np.where(bad, np.float32(0), voxels) if bad.any() else voxels


def _voxel_sha256(voxels: Float32[np.ndarray, "x y z"]) -> str:
    digest = hashlib.sha256(repr(voxels.shape).encode())
    digest.update(np.ascontiguousarray(voxels + np.float32(0), dtype="<f4").tobytes())
    return digest.hexdigest()


def _count_lesions(voxels: Bool[np.ndarray, "x y z"]) -> int:
    from scipy.ndimage import label

    return int(label(voxels, structure=np.ones((3, 3, 3)))[1])
