"""The brain of a scan: its mask, or what a stripped scan has left; and what is wrong about either."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool

from data.cohort import Subject
from data.nifti import Labels, Scan, read_labels
from data.nifti_header import BadScan
from data.volume import Grid, Mask, resample_mask

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


def brain_of(
    subject: Subject, scan: Scan, contrast: str, resample_masks: bool, notes: list[str], hashes: dict[str, str]
) -> Mask:
    """The brain of a scan: its mask, or what a stripped scan has left. Notes and hashes are added to."""
    path = subject.brain_mask
    if path is not None:
        labels = read_labels(path, cut=subject.mask_cut, header_form=subject.header_form)
        hashes["brain"] = labels.sha256
        notes += [f"brain mask: {note}" for note in labels.notes]
        _refuse_no_brain_mask(path, labels)
        mask = mask_on_grid(subject, labels, labels.voxels > 0, scan.grid, "brain mask", resample_masks, notes)
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


def mask_on_grid(
    subject: Subject, labels: Labels, positive: Bool[np.ndarray, "x y z"], grid: Grid, what: str,
    resample_masks: bool, notes: list[str],
) -> Mask:  # fmt: skip
    """A mask on the scan's grid: taken as it is, or resampled where that was asked for. BadScan otherwise."""
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
