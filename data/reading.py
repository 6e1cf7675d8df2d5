"""From a subject's files to one volume: contrasts and masks on one grid, every doubt said or refused.

A scan that cannot be used sets its subject aside with a reason; it never stops the others.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32

from data.cohort import ROLES, Cohort, Split, Subject, contrast_name
from data.errors import BadInput
from data.nifti import Labels, Scan, read_labels, read_scan, volumes_of
from data.nifti_header import BadScan
from data.volume import Grid, Mask, Volume, resample, resample_mask
from data.workers import Died

ENDED = "E-ENDED"
"""Code of a subject whose process was ended twice."""
SUBJECT_FAULTS = (BadInput, OSError, MemoryError, ArithmeticError, ValueError, IndexError)
"""What a subject's files can make the code that reads, registers or plants raise; it concerns no other subject."""
LARGEST_STRIPPED_ML = 2500.0
"""Non-zero tissue above this is a head, not a brain (whole heads at hand: over 6000 ml, brains: 1100 to 1600)."""
BRAIN_ML = (900.0, 2000.0)
"""Brain volumes outside of this are noted."""
SMALLEST_BRAIN_FRACTION = 1e-3
"""A brain in fewer of the voxels than this is an empty scan or a broken mask."""
CUT_CM2 = 20.0
"""A brain that touches a face of its scan over more than this is cut; a box around it touches over a tenth of that."""
MOST_LABELS = 1000
"""More different values than the finest atlas has regions: a scan given as a mask."""


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
    brain = _brain(subject, scans[0], contrasts[0], resample_masks, notes, hashes)
    lesion, ignored = _lesion(subject, grid, resample_masks, notes, hashes)
    if ignored is not None:
        brain = Mask(brain.voxels & ~ignored, grid)
    if lesion is not None:
        _note_lesion(subject, lesion, brain, notes)
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


def _brain(
    subject: Subject, scan: Scan, contrast: str, resample_masks: bool, notes: list[str], hashes: dict[str, str]
) -> Mask:
    path = subject.brain_mask
    if path is not None:
        labels = read_labels(path, cut=subject.mask_cut, header_form=subject.header_form)
        hashes["brain"] = labels.sha256
        notes += [f"brain mask: {note}" for note in labels.notes]
        _refuse_no_brain_mask(path, labels)
        mask = _mask_on_grid(subject, labels, labels.voxels > 0, scan.grid, "brain mask", resample_masks, notes)
    else:
        stripped, background = _stripped_brain(subject, scan, contrast)
        mask = Mask(stripped, scan.grid)
        notes.append(f"brain mask: {background} of {contrast}, which is skull-stripped.")
    count = int(np.count_nonzero(mask.voxels))
    if count < max(8, SMALLEST_BRAIN_FRACTION * mask.voxels.size):
        raise BadScan(
            "E-BRAIN-EMPTY", path or subject.scans[contrast],
            f"the brain has {count} of {mask.voxels.size} voxels; nothing can be learnt from that.",
            "Check the brain mask, or the scan when it has none.",
        )  # fmt: skip
    notes += _cut_by_the_edge(mask)
    if not BRAIN_ML[0] <= mask.volume_ml <= BRAIN_ML[1]:
        notes.append(f"brain mask: {mask.volume_ml:.0f} ml, brains have {BRAIN_ML[0]:.0f} to {BRAIN_ML[1]:.0f}.")
    return mask


def _cut_by_the_edge(brain: Mask) -> list[str]:
    """A note where the brain ends at a face of the scan over an area that no whole brain touches."""
    return [
        f"field of view: the brain ends at the {name} edge of the scan over {area:.0f} cm²; part of it was not scanned."
        for name, area in brain.at_faces_cm2().items()
        if area > CUT_CM2
    ]


def _stripped_brain(subject: Subject, scan: Scan, contrast: str) -> tuple[Bool[np.ndarray, "x y z"], str]:
    """What a skull-stripped scan has left, and by what it was told from its background, in a word.

    The background is 0, or the one value that nine tenths of the faces have (z-scored scans), or lies within half a
    percent of the range around it (resampling rings). A fifth of the scan must be background, and the rest brain-sized.
    """
    finite = np.isfinite(scan.voxels)
    inside = np.zeros(scan.voxels.shape, dtype=bool)
    inside[1:-1, 1:-1, 1:-1] = True
    faces = scan.voxels[~inside & finite]
    level = float(np.median(faces)) if faces.size else 0.0
    ring = 0.005 * float(np.percentile(np.abs(scan.voxels[finite][:: max(1, scan.voxels.size >> 18)] - level), 99.5))
    tried = [(finite & (scan.voxels != 0), "the non-zero voxels")]
    if level != 0:
        tried.append((finite & (scan.voxels != level), f"the voxels other than {level:.4g}, the background's value,"))
    tried.append(
        (
            finite & (np.abs(scan.voxels - level) > ring),
            f"the voxels more than {ring:.2g} from the background ({level:.3g})",
        )
    )
    mls = []
    for brain, told in tried:
        ml = np.count_nonzero(brain) * scan.grid.voxel_volume_mm3 / 1000.0
        mls.append(ml)
        if brain.mean() <= 0.8 and brain[~inside].mean() <= 0.1 and ml <= LARGEST_STRIPPED_ML:
            return brain, told
    raise BadScan(
        "E-BRAIN-MISSING", subject.scans[contrast],
        f"is a whole head ({mls[0]:.0f} ml of non-zero voxels) and subject {subject.subject_id!r} has no brain mask; "
        "skull would be scored as brain.",
        "Make a brain mask (HD-BET, SynthStrip) and name it as brain_mask, or strip the scan.",
    )  # fmt: skip


def _refuse_no_brain_mask(path: Path, labels: Labels) -> None:
    """Regions of an atlas make a brain mask, a scan's intensities or negative numbers do not."""
    if int(labels.voxels.min()) < 0:
        raise BadScan("E-MASK-NEGATIVE", path, "holds negative labels.", "Save brain as 1, rest 0.")
    step = max(1, labels.voxels.size >> 20)
    different = np.unique(labels.voxels.ravel()[::step]).size
    if different > MOST_LABELS:
        raise BadScan(
            "E-MASK-SCAN", path, f"holds {different} different values or more: this looks like a scan, not a mask.",
            "Name the brain mask as brain_mask.",
        )  # fmt: skip


def _lesion(
    subject: Subject, grid: Grid, resample_masks: bool, notes: list[str], hashes: dict[str, str]
) -> tuple[Mask | None, Bool[np.ndarray, "x y z"] | None]:
    """Lesion, and what is neither lesion nor healthy tissue, when the mask has such labels."""
    path = subject.lesion_mask
    if path is None:
        if subject.healthy is False:
            notes.append("lesion mask: none given; overlap cannot be measured.")
        return None, None
    labels = lesion_labels(subject)
    hashes["lesion"] = labels.sha256
    notes += [f"lesion mask: {note}" for note in labels.notes]
    positive = lesion_voxels(subject, labels, notes)
    lesion = _mask_on_grid(subject, labels, positive, grid, "lesion mask", resample_masks, notes)
    outside = np.asarray(np.isin(labels.voxels, subject.ignore_labels)) if subject.ignore_labels else None
    if outside is None or not outside.any():
        return lesion, None
    ignored = _mask_on_grid(subject, labels, outside, grid, "ignored label", resample_masks, notes)
    told = ", ".join(map(str, subject.ignore_labels))
    notes.append(f"lesion mask: label {told} is ignored: {ignored.volume_ml:.2f} ml are neither lesion nor healthy.")
    return Mask(lesion.voxels & ~ignored.voxels, grid), ignored.voxels


def lesion_labels(subject: Subject) -> Labels:
    """The lesion mask of a subject as it lies on the disk, in RAS+ order."""
    assert subject.lesion_mask is not None
    return read_labels(subject.lesion_mask, cut=subject.mask_cut, header_form=subject.header_form)


def lesion_voxels(subject: Subject, labels: Labels, notes: list[str]) -> Bool[np.ndarray, "x y z"]:
    """Which voxels of a lesion mask are lesion; nothing is guessed about a map with several labels."""
    assert subject.lesion_mask is not None
    values = [int(v) for v in np.unique(labels.voxels) if v != 0]
    if any(v < 0 for v in values):
        raise BadScan(
            "E-MASK-NEGATIVE", subject.lesion_mask, f"holds negative labels {values[:8]}.", "Save lesion as 1, rest 0."
        )
    if subject.lesion_labels is not None:
        unknown = sorted(set(values) - set(subject.lesion_labels) - set(subject.ignore_labels))
        if unknown and subject.labels_complete:
            known = f"known are {', '.join(map(str, subject.lesion_labels))} as lesion"
            if subject.ignore_labels:
                known += f" and {', '.join(map(str, subject.ignore_labels))} as ignored"
            raise BadScan(
                "E-MASK-LABELS", subject.lesion_mask, f"holds the labels {unknown[:8]}, of unknown meaning ({known}).",
                _declare([*subject.lesion_labels, *unknown[:8]], unknown[:8]),
            )  # fmt: skip
        if unknown:
            notes.append(f"lesion mask: labels {unknown[:8]} are not declared as lesion and count as tissue.")
        return np.asarray(np.isin(labels.voxels, subject.lesion_labels))
    values = [v for v in values if v not in subject.ignore_labels]
    if len(values) > 1:
        raise BadScan(
            "E-MASK-LABELS", subject.lesion_mask, f"holds the labels {values[:8]}, undeclared.",
            _declare(values[:8], values[1:8]),
        )  # fmt: skip
    if subject.ignore_labels:
        return np.asarray(np.isin(labels.voxels, values))
    if values and values != [1]:
        notes.append(f"lesion mask: its one value {values[0]} is taken as lesion.")
    return labels.voxels > 0


def _declare(lesion: Sequence[int], ignored: Sequence[int]) -> str:
    """How labels are declared."""
    both = " ".join(map(str, lesion)), " ".join(map(str, ignored))
    return (
        f"Say which are lesion and which neither lesion nor healthy: --lesion-labels {both[0]}, or fewer, and "
        f"--ignore-labels {both[1]}; in a table, columns lesion_labels and ignore_labels."
    )


def _mask_on_grid(
    subject: Subject, labels: Labels, positive: Bool[np.ndarray, "x y z"], grid: Grid, what: str,
    resample_masks: bool, notes: list[str],
) -> Mask:  # fmt: skip
    mask = Mask(positive, labels.grid)
    if mask.grid.coincides(grid):
        if not mask.grid.matches(grid):
            off = np.abs(mask.grid.corners_mm() - grid.corners_mm()).max()
            notes.append(f"{what}: taken as on the scan's grid; its corners lie up to {off:.2g} mm off.")
        return Mask(positive, grid)
    apart = (
        f"its corners lie up to {np.abs(mask.grid.corners_mm() - grid.corners_mm()).max():.3g} mm from the scan's"
        if mask.grid.shape == grid.shape
        else f"its shape is {mask.grid.shape}, the scan's {grid.shape}"
    )
    if not resample_masks:
        path = subject.brain_mask if what == "brain mask" else subject.lesion_mask
        assert path is not None
        raise BadScan(
            "E-MASK-GRID", path, f"the {what} is on another grid than the scan: {apart} (both in RAS+ order).",
            "Check that it belongs to this scan, then say --preprocessing.resample-masks; it will be noted.",
        )  # fmt: skip
    moved = resample_mask(mask, grid)
    notes.append(
        f"{what}: resampled onto the scan's grid ({apart}); {mask.volume_ml:.3f} ml became {moved.volume_ml:.3f} ml."
    )
    return moved


def _note_lesion(subject: Subject, lesion: Mask, brain: Mask, notes: list[str]) -> None:
    total = int(np.count_nonzero(lesion.voxels))
    if total == 0:
        notes.append("lesion mask: empty; Dice is undefined, only false positives are counted.")
        return
    if subject.healthy:
        notes.append("lesion mask: not empty although the subject is marked healthy.")
    outside = np.count_nonzero(lesion.voxels & ~brain.voxels) / total
    if outside > 0:
        notes.append(f"lesion mask: {100 * outside:.1f} % lies outside the brain mask and cannot be found.")
    if total > 0.5 * np.count_nonzero(brain.voxels):
        notes.append("lesion mask: larger than half of the brain.")


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
