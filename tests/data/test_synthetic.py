"""The demo cohort: reproducible, truthful about its lesions, and not solvable by intensity alone."""

import csv
import functools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from data.errors import BadInput
from data.synthetic import DemoSettings, SyntheticSubject, synthesise_subject, write_demo_cohort
from data.synthetic_lesions import CONTRAST_SD, DIAMETER_MM, SITES
from data.table import read_table

TINY = DemoSettings(n_train=1, n_calibration=0, n_validation=1, n_test=1, n_test_healthy=1, seed=5)


@functools.cache
def subject(index: int, with_lesions: bool) -> SyntheticSubject:
    return synthesise_subject(index, with_lesions=with_lesions, seed=3)


def best_dice(scores: np.ndarray, truth: np.ndarray) -> float:
    ordered = truth[np.argsort(-scores, kind="stable")]
    positives = np.cumsum(ordered)
    return float((2 * positives / (np.arange(1, len(ordered) + 1) + truth.sum())).max())


@pytest.mark.parametrize("index", [0, 1])
def test_the_same_seed_gives_the_same_voxels(index: int) -> None:
    first, again = subject(index, True), synthesise_subject(index, with_lesions=True, seed=3)
    assert first.t1.tobytes() == again.t1.tobytes()
    assert first.flair.tobytes() == again.flair.tobytes()
    assert first.lesion_labels.tobytes() == again.lesion_labels.tobytes()
    assert first.lesions == again.lesions


def test_written_files_are_byte_identical_and_finished_subjects_are_kept(tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        write_demo_cohort(tmp_path / name, TINY, workers=workers)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert len(files) == 3 + 3 * 4 + 1
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file

    kept = tmp_path / "one" / "sub-train001" / "sub-train001_T1.nii.gz"
    lost = tmp_path / "one" / "sub-test001" / "sub-test001_T1.nii.gz"
    before = kept.stat().st_mtime_ns
    lost.unlink()
    heard: list[tuple[int, int, str]] = []
    write_demo_cohort(tmp_path / "one", TINY, monitor=lambda done, n, who: heard.append((done, n, who)))
    assert kept.stat().st_mtime_ns == before
    assert lost.read_bytes() == (tmp_path / "two" / "sub-test001" / "sub-test001_T1.nii.gz").read_bytes()
    assert [(done, n) for done, n, _ in heard] == [(1, 3), (2, 3), (3, 3)]


def test_the_table_names_files_that_exist_and_lesions_only_where_there_are_some(tmp_path: Path) -> None:
    table = write_demo_cohort(tmp_path, TINY)
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert [(r["subject_id"], r["role"]) for r in rows] == [
        ("sub-train001", "train"),
        ("sub-validation001", "validation"),
        ("sub-test001", "test"),
    ]
    assert [bool(r["lesion_mask"]) for r in rows] == [False, True, False]
    assert [s.healthy for s in read_table(table).subjects] == [True, False, True]
    assert all((tmp_path / r[c]).is_file() for r in rows for c in ("T1", "FLAIR", "brain_mask"))
    mask = np.asarray(nib.load(tmp_path / rows[1]["lesion_mask"]).dataobj)
    assert set(np.unique(mask)) == {0, 1}
    told = json.loads((tmp_path / "lesions.json").read_text(encoding="utf-8"))
    assert list(told) == ["sub-validation001"]
    assert mask.sum() * 0.008 == pytest.approx(sum(lesion["volume_ml"] for lesion in told["sub-validation001"]))


@pytest.mark.parametrize("index", [0, 1, 2])
def test_records_agree_with_the_label_map(index: int) -> None:
    ill = subject(index, True)
    assert 1 <= len(ill.lesions) <= 4
    assert set(np.unique(ill.lesion_labels)) == {0, *(lesion.label for lesion in ill.lesions)}
    assert not (ill.lesion_labels[~ill.brain] > 0).any()
    for lesion in ill.lesions:
        where = np.argwhere(ill.lesion_labels == lesion.label)
        assert lesion.volume_ml == pytest.approx(len(where) * 0.008)
        assert lesion.diameter_mm == pytest.approx((6000 * lesion.volume_ml / np.pi) ** (1 / 3), abs=1e-3)
        assert 2.0 < lesion.diameter_mm <= DIAMETER_MM[1] + 0.3
        centre = where.mean(0) @ ill.grid.affine[:3, :3].T + ill.grid.affine[:3, 3]
        np.testing.assert_allclose(centre, lesion.centre_mm, atol=1e-3)
        assert lesion.site in SITES
        assert (lesion.contrast["FLAIR"] > 0) == (lesion.polarity == "hyper")


@pytest.mark.parametrize("index", [0, 1, 2])
def test_recorded_contrast_is_what_separates_a_lesion_from_its_healthy_twin(index: int) -> None:
    ill, well = subject(index, True), subject(index, False)
    for lesion in ill.lesions:
        mask = ill.lesion_labels == lesion.label
        near = ndimage.binary_dilation(mask, iterations=4) & well.brain
        for name, sick, healthy in (("FLAIR", ill.flair, well.flair), ("T1", ill.t1, well.t1)):
            change = float(sick[mask].mean() - healthy[mask].mean())
            tissue = healthy[near & (healthy > 0.5 * np.median(healthy[near]))]
            measured = change / float(tissue.std())
            assert np.sign(measured) == np.sign(lesion.contrast[name])
            assert measured == pytest.approx(lesion.contrast[name], rel=0.6)
            assert abs(lesion.contrast[name]) < 1.2 * CONTRAST_SD[1]


def test_healthy_subjects_have_no_lesion_and_scans_are_empty_outside_the_brain() -> None:
    for who in (subject(0, False), subject(0, True)):
        assert not who.t1[~who.brain].any()
        assert not who.flair[~who.brain].any()
        assert (who.t1[who.brain] >= 1).all()
        assert who.t1.dtype == who.flair.dtype == np.float32
    assert subject(0, False).lesions == ()
    assert not subject(0, False).lesion_labels.any()
    assert subject(0, False).grid.spacing_mm == (2.0, 2.0, 2.0)
    assert 1.0e6 < np.count_nonzero(subject(0, False).brain) * 8 < 2.6e6  # mm³


def test_different_subjects_differ_in_shape_site_and_signal() -> None:
    first, second = subject(0, False), subject(1, False)
    assert first.site != second.site
    assert first.age != second.age
    overlap = 2 * np.count_nonzero(first.brain & second.brain) / (first.brain.sum() + second.brain.sum())
    assert 0.85 < overlap < 0.995
    both = first.brain & second.brain
    assert 0.3 < np.corrcoef(first.t1[both], second.t1[both])[0, 1] < 0.97


def test_white_matter_is_bright_on_t1_and_dark_on_flair() -> None:
    well = subject(0, False)
    bright = well.t1 > np.percentile(well.t1[well.brain], 85)
    middle = (well.t1 > np.percentile(well.t1[well.brain], 25)) & (well.t1 < np.percentile(well.t1[well.brain], 50))
    assert well.flair[bright].mean() < well.flair[middle].mean()


def test_intensity_alone_does_not_find_the_lesions() -> None:
    people = [subject(index, True) for index in range(4)]
    truth = np.concatenate([(p.lesion_labels > 0)[p.brain] for p in people])
    for scans in ([p.flair for p in people], [-p.t1 for p in people]):
        inside = [scan[p.brain] for scan, p in zip(scans, people, strict=True)]
        ranks = np.concatenate([np.argsort(np.argsort(v, kind="stable")) / len(v) for v in inside])
        assert best_dice(ranks, truth) < 0.6


def test_more_healthy_test_subjects_than_test_subjects_are_refused() -> None:
    with pytest.raises(BadInput, match="n_test_healthy"):
        DemoSettings(n_test=2, n_test_healthy=3)
