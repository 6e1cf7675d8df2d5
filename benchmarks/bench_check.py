"""Reading a cohort strictly, against what a careful person writes by hand with nibabel for the same files.

Scans and masks are small and random, so that what is done per file counts and not the voxels. One thread, process CPU
time, both sides in turn. Run: python -m benchmarks --only check_vs_plain_nibabel
"""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import label

from benchmarks.clock import side_by_side
from data.choices import Choices
from data.layout import read_cohort
from data.reading import CohortCheck, check_cohort


@dataclass(frozen=True)
class _Plain:
    brain_ml: float
    lesion_ml: float
    voxels: str


def check_vs_plain_nibabel(files: int = 1000, side: int = 24, rounds: int = 3) -> dict[str, Any]:
    """`check` of half as many subjects as files, each a stripped scan and a lesion mask. Target: at most 3 x plain.

    The plain side loads both files in RAS order, hashes files and voxels, and counts brain, lesion and lesions. It does
    not look at layout, health, header, labels, field of view or contrast.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write(root, files // 2, side)
        timing = side_by_side(lambda: _check(root), lambda: _plain(root), rounds)
    ours = {one.subject_id: one for one in timing.value.facts}
    differences = [
        abs(ours[name].brain_ml - plain.brain_ml) + abs((ours[name].lesion_ml or 0.0) - plain.lesion_ml)
        for name, plain in timing.reference.items()
    ]
    return {
        "ratio": timing.ratio,
        "target": 1 / 3,
        "files": files,
        "ms_per_file": 1000 * timing.seconds / files,
        "plain_ms_per_file": 1000 * timing.reference_seconds / files,
        "subjects_read_by_one_side_only": len(set(ours) ^ set(timing.reference)),
        "largest_difference_ml": max(differences, default=0.0),
        "different_scans_plain": len({one.voxels for one in timing.reference.values()}),
    }


def _check(root: Path) -> CohortCheck:
    return check_cohort(read_cohort(root, choices=Choices(healthy_unless_masked=True)), ("T1",))


def _plain(root: Path) -> dict[str, _Plain]:
    found = {}
    for scan in sorted(root.glob("sub-*/anat/*_T1w.nii.gz")):
        mask = scan.with_name(scan.name.replace("_T1w", "_label-lesion_mask"))
        for path in (scan, mask):
            hashlib.sha256(path.read_bytes()).hexdigest()
        image = nib.as_closest_canonical(nib.load(scan))
        values = np.asarray(image.dataobj, dtype=np.float32)
        lesion = np.asarray(nib.as_closest_canonical(nib.load(mask)).dataobj) > 0
        np.unique(lesion)
        label(lesion, structure=np.ones((3, 3, 3)))
        ml = abs(float(np.linalg.det(image.affine[:3, :3]))) / 1000.0
        found[scan.parents[1].name] = _Plain(
            ml * np.count_nonzero(values), ml * np.count_nonzero(lesion), hashlib.sha256(values.tobytes()).hexdigest()
        )
    return found


def _write(root: Path, subjects: int, side: int) -> None:
    """A BIDS tree of stripped heads, brain-sized balls of noise, with a lesion each."""
    draw = np.random.Generator(np.random.Philox(7))
    spacing = 160.0 / side
    affine = np.diag([spacing, spacing, spacing, 1.0])
    away = np.linalg.norm(np.indices((side,) * 3) - (side - 1) / 2, axis=0)
    brain, lesion = away < 0.42 * side, away < 0.1 * side
    for n in range(subjects):
        folder = root / f"sub-{n:04d}" / "anat"
        folder.mkdir(parents=True)
        values = np.where(brain, draw.normal(100, 10, brain.shape), 0).astype(np.float32)
        for name, stored in (("T1w", values), ("label-lesion_mask", lesion.astype(np.uint8))):
            image = nib.Nifti1Image(stored, affine)
            image.header.set_xyzt_units("mm")
            nib.save(image, folder / f"{folder.parent.name}_{name}.nii.gz")
