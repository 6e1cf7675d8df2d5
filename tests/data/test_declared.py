"""What a user declares of labels, headers, volumes and probabilities holds through reading and preparing."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data.cohort import Subject
from data.errors import BadInput
from data.nifti import read_labels, read_scan, volumes_of, write_nifti
from data.nifti_header import BadScan
from data.prepared import Preprocessing
from data.preprocessing import prepare_reading, prepare_subject
from data.reading import read_subject
from data.volume import Grid

SHAPE = (40, 44, 40)
AFFINE = np.array([[4.0, 0, 0, -78], [0, 4.0, 0, -110], [0, 0, 4.0, -70], [0, 0, 0, 1]])
GRID = Grid(SHAPE, AFFINE)
PLAIN = Preprocessing(registration="none", spacing_mm=4.0)
INDICES = np.indices(SHAPE)
BRAIN = ((INDICES - np.array(SHAPE).reshape(3, 1, 1, 1) / 2) ** 2).sum(0) < 15**2
SCAN = np.where(BRAIN, 50 + 10 * np.sin(INDICES).sum(0), 0).astype(np.float32)
LABELS = np.zeros(SHAPE, np.uint8)
LABELS[18:22, 20:24, 18:22] = 1
LABELS[24:28, 20:24, 18:22] = 2


def subject(folder: Path, labels: np.ndarray = LABELS, **more: object) -> Subject:
    write_nifti(folder / "t1.nii.gz", SCAN, GRID)
    write_nifti(folder / "l.nii.gz", labels, GRID)
    return Subject("a", {"T1": folder / "t1.nii.gz"}, lesion_mask=folder / "l.nii.gz", healthy=False, **more)  # type: ignore[arg-type]


def test_an_ignored_label_is_neither_lesion_nor_brain_anywhere(tmp_path: Path) -> None:
    one = subject(tmp_path, lesion_labels=(1,), ignore_labels=(2,))
    reading = read_subject(one, ("T1",))
    assert (reading.lesion.voxels == (LABELS == 1)).all()
    assert (reading.volume.brain_mask == (BRAIN & (LABELS != 2))).all()
    assert any("label 2 is ignored: 4.10 ml" in note for note in reading.notes)
    prepared = prepare_reading(one, PLAIN)
    assert not prepared.native_brain.voxels[LABELS == 2].any()
    assert not (prepared.lesion.voxels & ~prepared.volume.brain_mask).any()
    whole = prepare_reading(replace(one, lesion_labels=(1, 2), ignore_labels=()), PLAIN)
    lost = whole.volume.brain_mask & ~prepared.volume.brain_mask
    assert 20 <= np.count_nonzero(lost) <= 100
    assert (prepared.volume.voxels[0][lost] == 0).all()


def test_what_was_declared_is_part_of_the_key(tmp_path: Path) -> None:
    one = subject(tmp_path, lesion_labels=(1,))
    keys = {
        prepare_subject(s, PLAIN, tmp_path / "cache").key
        for s in (one, replace(one, ignore_labels=(2,)), replace(one, lesion_labels=(1, 2)), replace(one, healthy=None))
    }
    assert len(keys) == 3  # an unknown person is prepared as one that is not healthy


def test_a_label_cannot_be_lesion_and_ignored(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="label 2 is called lesion and ignored"):
        subject(tmp_path, lesion_labels=(1, 2), ignore_labels=(2,))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, r"holds the labels \[1, 2\], undeclared.*--lesion-labels 1 2, or fewer, and --ignore-labels 2"),
        (
            {"lesion_labels": (1,), "labels_complete": True},
            r"labels \[2\], of unknown meaning \(known are 1 as lesion\)",
        ),
    ],
)
def test_labels_that_nobody_declared_are_a_question(tmp_path: Path, more: dict[str, object], words: str) -> None:
    with pytest.raises(BadScan, match=words):
        read_subject(subject(tmp_path, **more), ("T1",))


def test_one_label_is_left_when_the_others_are_ignored(tmp_path: Path) -> None:
    assert (read_subject(subject(tmp_path, ignore_labels=(1,)), ("T1",)).lesion.voxels == (LABELS == 2)).all()


def test_probabilities_need_a_cut(tmp_path: Path) -> None:
    soft = np.where(LABELS == 1, np.float32(0.7), np.where(LABELS == 2, np.float32(0.2), 0)).astype(np.float32)
    one = subject(tmp_path, soft)
    with pytest.raises(BadScan, match=r"E-LAB-SOFT.*--mask-cut 0.5"):
        read_subject(one, ("T1",))
    reading = read_subject(replace(one, mask_cut=0.5), ("T1",))
    assert (reading.lesion.voxels == (LABELS == 1)).all()
    assert (read_subject(replace(one, mask_cut=0.1), ("T1",)).lesion.voxels == (LABELS > 0)).all()


def test_a_mask_that_is_nearly_binary_is_one(tmp_path: Path) -> None:
    write_nifti(tmp_path / "l.nii.gz", np.where(LABELS == 1, np.float32(0.99994), 0).astype(np.float32), GRID)
    labels = read_labels(tmp_path / "l.nii.gz")
    assert (labels.voxels == (LABELS == 1)).all()
    assert any("rounded" in note for note in labels.notes)


def test_a_volume_of_a_series_is_chosen_and_says_nothing_of_others(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.stack([SCAN, SCAN * 2], -1), AFFINE), tmp_path / "t1.nii.gz")
    one = Subject("a", {"T1w": tmp_path / "t1.nii.gz"}, healthy=True)
    with pytest.raises(BadScan, match=r"E-NII-4D.*--volume with a number from 0 to 1"):
        read_subject(one, ("T1",))
    assert volumes_of(tmp_path / "t1.nii.gz") == 2
    both = [read_subject(replace(one, volumes={"t1": n}), ("T1",)).volume.voxels for n in (0, 1)]
    np.testing.assert_allclose(both[1], 2 * both[0], rtol=1e-6)
    write_nifti(tmp_path / "t1.nii.gz", SCAN, GRID)
    assert (read_subject(replace(one, volumes={"t1": 1}), ("T1",)).volume.voxels[0] == SCAN).all()


@pytest.mark.parametrize("form", ["sform", "qform"])
def test_of_two_orientations_that_disagree_the_chosen_one_holds(tmp_path: Path, form: str) -> None:
    image = nib.Nifti1Image(SCAN, None)
    moved = AFFINE.copy()
    moved[:3, 3] += [10, -5, 3]
    image.header.set_xyzt_units("mm")
    image.set_qform(AFFINE, 1)
    image.set_sform(moved, 2)
    nib.save(image, tmp_path / "t1.nii.gz")
    with pytest.raises(BadScan, match=r"E-NII-FORMS.*--header-form sform or --header-form qform"):
        read_scan(tmp_path / "t1.nii.gz")
    scan = read_scan(tmp_path / "t1.nii.gz", header_form=form)
    np.testing.assert_allclose(scan.grid.affine, moved if form == "sform" else AFFINE, atol=1e-4)
    assert any(f"Its {form} is taken, as was asked" in note for note in scan.notes)
    write_nifti(tmp_path / "t1.nii.gz", SCAN, GRID)
    assert read_scan(tmp_path / "t1.nii.gz", header_form=form).notes == ()


@pytest.mark.parametrize("off_mm", [0.0013, 0.004, 0.008])
def test_a_mask_that_is_thousandths_of_a_millimetre_off_is_on_the_grid(tmp_path: Path, off_mm: float) -> None:
    one = subject(tmp_path, (LABELS == 1).astype(np.uint8))
    moved = AFFINE.copy()
    moved[:3, 3] += off_mm
    write_nifti(one.lesion_mask, (LABELS == 1).astype(np.uint8), Grid(SHAPE, moved))
    reading = read_subject(one, ("T1",))
    assert (reading.lesion.voxels == (LABELS == 1)).all()
    assert any("taken as on the scan's grid" in note for note in reading.notes)


@pytest.mark.parametrize("background", [0.0, -3.2, -300.0, 7.0])
@pytest.mark.parametrize("ringing", [0.0, 1e-3])
def test_a_stripped_scan_is_told_from_its_background_whatever_its_value(
    tmp_path: Path, background: float, ringing: float
) -> None:
    noise = np.random.Generator(np.random.Philox(2)).uniform(-ringing, ringing, SHAPE)
    values = np.where(BRAIN, 20 + SCAN, background + noise).astype(np.float32)
    write_nifti(tmp_path / "t1.nii.gz", values, GRID)
    reading = read_subject(Subject("a", {"T1": tmp_path / "t1.nii.gz"}, healthy=True), ("T1",))
    assert (reading.volume.brain_mask == BRAIN).all()


def test_a_whole_head_is_still_no_brain(tmp_path: Path) -> None:
    head = ((INDICES - np.array(SHAPE).reshape(3, 1, 1, 1) / 2) ** 2).sum(0) < 19**2
    values = np.where(head, 50 + 10 * np.sin(INDICES).sum(0), 0).astype(np.float32)
    write_nifti(tmp_path / "t1.nii.gz", values, Grid(SHAPE, np.diag([5.0, 5.0, 5.0, 1.0])))
    with pytest.raises(BadScan, match="E-BRAIN-MISSING"):
        read_subject(Subject("a", {"T1": tmp_path / "t1.nii.gz"}, healthy=True), ("T1",))


def test_a_brain_that_the_scan_cuts_off_is_told(tmp_path: Path) -> None:
    write_nifti(tmp_path / "t1.nii.gz", SCAN[:, :, 14:], Grid((40, 44, 26), AFFINE))
    write_nifti(tmp_path / "b.nii.gz", BRAIN[:, :, 14:].astype(np.uint8), Grid((40, 44, 26), AFFINE))
    one = Subject("a", {"T1": tmp_path / "t1.nii.gz"}, tmp_path / "b.nii.gz", healthy=True)
    assert any("ends at the bottom edge of the scan" in note for note in read_subject(one, ("T1",)).notes)
    assert not any("field of view" in note for note in read_subject(subject(tmp_path, LABELS * 0), ("T1",)).notes)
