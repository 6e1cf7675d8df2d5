"""Reading subjects: masks and scans must belong together, one bad subject never stops the others, leaks are named."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from data.cohort import Cohort, Split, Subject
from data.errors import BadInput
from data.nifti import write_nifti
from data.nifti_header import BadScan
from data.reading import check_cohort, find_duplicates, read_subject, refuse_leakage
from data.volume import Grid, resample

REAL = Path(__file__).parents[2] / ".." / "shared" / "mri"
GRID = Grid((20, 22, 24), np.diag([6.0, 6.0, 6.0, 1.0]))


def brain() -> np.ndarray:
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in GRID.shape], indexing="ij")
    return np.sqrt(sum(a**2 for a in axes)) < 0.8


def scan(seed: int = 0, stripped: bool = True) -> np.ndarray:
    values = np.random.Generator(np.random.Philox(seed)).normal(100, 10, GRID.shape).astype(np.float32)
    return np.where(brain(), values, 0 if stripped else values + 50).astype(np.float32)


def lesion() -> np.ndarray:
    mask = np.zeros(GRID.shape, dtype=np.uint8)
    mask[8:10, 9:11, 10:12] = 1
    mask[12, 12, 12] = 1
    return mask


def subject(tmp_path: Path, name: str = "a", seed: int = 0, stripped: bool = True, **masks: np.ndarray) -> Subject:
    write_nifti(tmp_path / f"{name}_t1.nii.gz", scan(seed, stripped), GRID)
    files = {}
    for kind, values in masks.items():
        files[kind] = tmp_path / f"{name}_{kind}.nii.gz"
        write_nifti(files[kind], values, GRID)
    return Subject(name, {"T1": tmp_path / f"{name}_t1.nii.gz"}, healthy="lesion_mask" not in masks, **files)


def shifted(millimetres: float) -> Grid:
    affine = np.array(GRID.affine)
    affine[0, 3] += millimetres
    return Grid(GRID.shape, affine)


def refusal(one: Subject, *contrasts: str) -> str:
    with pytest.raises(BadScan) as caught:
        read_subject(one, contrasts or ("T1",))
    return caught.value.code


def test_a_stripped_scan_is_its_own_brain_mask(tmp_path: Path) -> None:
    reading = read_subject(subject(tmp_path), ("T1",))
    assert (reading.volume.brain_mask == brain()).all()
    assert (reading.volume.voxels[0] == scan()).all()
    assert reading.lesion is None
    assert any("skull-stripped" in note for note in reading.notes)


def test_a_whole_head_needs_a_brain_mask_which_may_be_a_label_map(tmp_path: Path) -> None:
    assert refusal(subject(tmp_path, stripped=False)) == "E-BRAIN-MISSING"
    regions = brain() * np.arange(GRID.shape[0], dtype=np.int16)[:, None, None]
    reading = read_subject(subject(tmp_path, stripped=False, brain_mask=regions), ("T1",))
    assert (reading.volume.brain_mask == (regions > 0)).all()
    assert (reading.volume.voxels[0] == scan(stripped=False)).all()


def test_a_zero_background_does_not_make_a_head_a_brain(tmp_path: Path) -> None:
    big = Grid(GRID.shape, np.diag([12.0, 12.0, 12.0, 1.0]))
    write_nifti(tmp_path / "head.nii.gz", scan(), big)
    with pytest.raises(BadScan, match=r"E-BRAIN-MISSING.*brain_mask"):
        read_subject(Subject("head", {"T1": tmp_path / "head.nii.gz"}), ("T1",))


def test_nan_inside_the_brain_is_an_error_and_outside_becomes_zero(tmp_path: Path) -> None:
    one = subject(tmp_path, brain_mask=brain())
    values = scan()
    values[0, 0, 0] = np.nan
    write_nifti(one.scans["T1"], values, GRID)
    reading = read_subject(one, ("T1",))
    assert reading.volume.voxels[0, 0, 0, 0] == 0
    assert any("1 of 10560 voxels" in note for note in reading.notes)
    values[10, 11, 12] = np.inf
    write_nifti(one.scans["T1"], values, GRID)
    assert refusal(one) == "E-SCAN-NAN"


def test_empty_and_constant_brains_are_refused(tmp_path: Path) -> None:
    assert refusal(subject(tmp_path, brain_mask=np.zeros(GRID.shape, dtype=np.uint8))) == "E-BRAIN-EMPTY"
    one = subject(tmp_path, brain_mask=brain())
    write_nifti(one.scans["T1"], np.where(brain(), np.float32(5), scan(stripped=False)), GRID)
    assert refusal(one) == "E-SCAN-CONSTANT"


@pytest.mark.parametrize("kind", ["brain_mask", "lesion_mask"])
def test_a_mask_on_another_grid_is_snapped_refused_or_resampled_on_request(tmp_path: Path, kind: str) -> None:
    values = {"brain_mask": brain(), "lesion_mask": lesion()}[kind]
    one = subject(tmp_path, **{kind: values})
    path = getattr(one, kind)

    def mask(reading):
        return reading.volume.brain_mask if kind == "brain_mask" else reading.lesion.voxels

    write_nifti(path, values, shifted(0.0009))
    assert (mask(read_subject(one, ("T1",))) == values).all()
    for drift in (0.01, 6.0):
        write_nifti(path, values, shifted(drift))
        with pytest.raises(BadScan, match=r"E-MASK-GRID.*--preprocessing.resample-masks"):
            read_subject(one, ("T1",))
    reading = read_subject(one, ("T1",), resample_masks=True)
    assert (mask(reading)[1:] == values[:-1]).all()
    assert any("resampled onto the scan's grid" in note for note in reading.notes)


def test_a_second_contrast_comes_onto_the_grid_of_the_first(tmp_path: Path) -> None:
    one = subject(tmp_path)
    fine = Grid((30, 30, 30), np.diag([4.0, 4.0, 4.0, 1.0]))
    values = np.random.Generator(np.random.Philox(3)).normal(50, 5, fine.shape).astype(np.float32)
    write_nifti(tmp_path / "flair.nii.gz", values, fine)
    both = replace(one, scans={**one.scans, "FLAIR": tmp_path / "flair.nii.gz"})
    reading = read_subject(both, ("T1", "FLAIR"))
    assert reading.volume.contrasts == ("T1", "FLAIR")
    np.testing.assert_array_equal(reading.volume.voxels[1], resample(values, fine, GRID))
    assert any(note.startswith("FLAIR: resampled linearly") for note in reading.notes)
    with pytest.raises(BadInput, match=r"no 'T2' scan\. It has: T1, FLAIR"):
        read_subject(both, ("T2",))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda m: m * np.arange(GRID.shape[2], dtype=np.int16), "E-MASK-LABELS"),
        (lambda m: -m.astype(np.int16), "E-MASK-NEGATIVE"),
        (lambda m: m * np.float32(0.7), "E-LAB-SOFT"),
        (lambda m: m * np.float32(0.9999), "E-LAB-SOFT"),
        (lambda m: np.where(m, np.nan, 0).astype(np.float32), "E-LAB-NAN"),
    ],
)
def test_a_lesion_mask_that_is_not_binary_is_refused(tmp_path: Path, change, code: str) -> None:
    assert refusal(subject(tmp_path, lesion_mask=change(lesion()))) == code


def test_declared_labels_and_a_single_odd_value_are_read(tmp_path: Path) -> None:
    labelled = lesion()
    labelled[12, 12, 12] = 4
    labelled[3, 11, 12] = 9
    one = replace(subject(tmp_path, lesion_mask=labelled), lesion_labels=(1, 2, 4))
    reading = read_subject(one, ("T1",))
    assert (reading.lesion.voxels == (lesion() > 0)).all()
    assert any("[9] are not declared" in note for note in reading.notes)
    reading = read_subject(subject(tmp_path, "b", lesion_mask=lesion() * np.uint8(255)), ("T1",))
    assert (reading.lesion.voxels == (lesion() > 0)).all()
    assert any("255" in note for note in reading.notes)


def test_empty_outside_and_surprising_lesions_are_kept_and_noted(tmp_path: Path) -> None:
    one = subject(tmp_path, lesion_mask=np.zeros(GRID.shape, dtype=np.uint8))
    reading = read_subject(one, ("T1",))
    assert reading.lesion.volume_ml == 0
    assert any("Dice is undefined" in note for note in reading.notes)
    corner = lesion()
    corner[0, 0, :3] = 1
    one = replace(subject(tmp_path, "b", lesion_mask=corner), healthy=True)
    notes = read_subject(one, ("T1",)).notes
    assert any("25.0 % lies outside the brain mask" in note for note in notes)
    assert any("marked healthy" in note for note in notes)
    missing = replace(subject(tmp_path, "c"), healthy=False)
    assert any("none given" in note for note in read_subject(missing, ("T1",)).notes)


def test_lesions_that_cannot_be_found_or_fill_the_brain_are_told(tmp_path: Path) -> None:
    outside = np.zeros(GRID.shape, dtype=np.uint8)
    outside[:2, :2, :2] = 1
    notes = read_subject(subject(tmp_path, "out", lesion_mask=outside), ("T1",)).notes
    assert "lesion mask: 100.0 % lies outside the brain mask and cannot be found." in notes
    half = (brain() & (np.indices(GRID.shape)[0] < 12)).astype(np.uint8)
    assert half.sum() > 0.5 * brain().sum()
    assert (
        "lesion mask: larger than half of the brain."
        in read_subject(subject(tmp_path, "half", lesion_mask=half), ("T1",)).notes
    )
    fewer = (brain() & (np.indices(GRID.shape)[0] < 8)).astype(np.uint8)
    assert not any("half" in n for n in read_subject(subject(tmp_path, "few", lesion_mask=fewer), ("T1",)).notes)


def test_one_bad_subject_never_stops_the_rest(tmp_path: Path) -> None:
    good = [subject(tmp_path, "a", 1), subject(tmp_path, "z", 2, lesion_mask=lesion())]
    cut = subject(tmp_path, "cut", 3)
    cut.scans["T1"].write_bytes(cut.scans["T1"].read_bytes()[:-8])
    gone = Subject("gone", {"T1": tmp_path / "gone.nii.gz"})
    other = Subject("other", {"T2": tmp_path / "a_t1.nii.gz"})
    seen = []
    cohort = Cohort("c", (good[0], cut, gone, other, good[1]))
    check = check_cohort(cohort, ("T1",), monitor=lambda n, name: seen.append((n, name)))
    assert seen == [(0, "a"), (1, "cut"), (2, "gone"), (3, "other"), (4, "z")]
    assert check.n_total == 5
    assert [f.subject_id for f in check.facts] == ["a", "z"]
    assert [(s.subject_id, s.code) for s in check.set_aside] == [
        ("cut", "E-NII-GZIP-TRUNC"), ("gone", "E-NII-READ"), ("other", "E-SUBJECT"),
    ]  # fmt: skip
    assert check.set_aside[0].path == str(cut.scans["T1"])
    ill = check.facts[1]
    assert (ill.n_lesions, ill.lesion_ml) == (2, pytest.approx(9 * 0.216))
    assert ill.brain_ml == pytest.approx(brain().sum() * 0.216)
    assert asdict(check)["facts"][0]["orientation"] == "RAS"


def test_the_same_voxels_under_two_ids_are_found_whatever_the_file_looks_like(tmp_path: Path) -> None:
    subjects = [subject(tmp_path, name, seed) for name, seed in (("a", 1), ("b", 2), ("c", 1), ("d", 1))]
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = GRID.shape[0] - 1
    write_nifti(subjects[2].scans["T1"], scan(1)[::-1], Grid(GRID.shape, GRID.affine @ flip))
    write_nifti(tmp_path / "d.nii", scan(1), shifted(3.0))
    subjects[3] = replace(subjects[3], scans={"T1": tmp_path / "d.nii"})
    check = check_cohort(Cohort("c", tuple(subjects)), ("T1",))
    assert check.duplicates == (("a", "c"), ("a", "d"))
    hashes = {f.subject_id: f.voxel_sha256 for f in check.facts}
    with pytest.raises(BadInput, match=r"'a' \(train\) and 'c' \(test\)"):
        refuse_leakage(Split(train=("a", "b"), calibration=(), test=("c",)), hashes)
    refuse_leakage(Split(train=("a",), calibration=("b",)), hashes)
    assert find_duplicates({}) == ()


def test_hashes_follow_files_and_voxels(tmp_path: Path) -> None:
    first = read_subject(subject(tmp_path, "a", 1), ("T1",))
    again = read_subject(subject(tmp_path, "b", 1), ("T1",))
    other = read_subject(subject(tmp_path, "c", 2), ("T1",))
    assert (first.file_hashes, first.voxel_sha256) == (again.file_hashes, again.voxel_sha256)
    assert set(first.file_hashes) == {"scan T1"}
    assert first.file_hashes != other.file_hashes
    assert first.voxel_sha256 != other.voxel_sha256


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no real scans beside the project")
def test_real_lesions_are_read_with_their_masks() -> None:
    folder = REAL / "lesions" / "openms_p26"
    one = Subject("ms", {"FLAIR": folder / "flair.nii.gz"}, lesion_mask=folder / "mask.nii.gz", healthy=False)
    reading = read_subject(one, ("FLAIR",))
    assert reading.lesion.volume_ml == pytest.approx(8.227)
    nichart = REAL / "lesions" / "nichart_S03"
    head = Subject("wm", {"FLAIR": nichart / "flair.nii.gz"})
    assert refusal(head, "FLAIR") == "E-BRAIN-MISSING"
    assert refusal(replace(head, brain_mask=nichart / "t1_dlmuse.nii.gz"), "FLAIR") == "E-MASK-GRID"


def test_copies_are_sought_in_every_contrast(tmp_path: Path) -> None:
    people = []
    for name, t1, flair in (("a", 1, 5), ("b", 2, 5), ("c", 3, 3)):
        one = subject(tmp_path, name, t1)
        two = subject(tmp_path, f"{name}-flair", flair)
        people.append(replace(one, scans={"T1": one.scans["T1"], "FLAIR": two.scans["T1"]}))
    check = check_cohort(Cohort("c", tuple(people)), ("T1", "FLAIR"))
    assert check.duplicates == (("a", "b"),)
    own = ["FLAIR and T1 hold the same voxels" in " ".join(one.notes) for one in check.facts]
    assert own == [False, False, True]
