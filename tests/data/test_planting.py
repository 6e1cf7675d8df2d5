"""Planted lesions: darker inside, nothing changed elsewhere, the same bytes for the same seed."""

from pathlib import Path

import numpy as np
import pytest

from data.cohort import Cohort, Subject
from data.errors import BadInput
from data.hashed import sha256_file
from data.nifti import write_nifti
from data.planted_texture import plant
from data.planting import LesionShape, plant_cohort, read_records, read_shapes
from data.reading import read_subject
from data.table import read_table
from data.volume import Grid, Mask, Volume

GRID = Grid((48, 56, 48), np.array([[3, 0, 0, -70], [0, 3, 0, -95], [0, 0, 3, -60], [0, 0, 0, 1.0]]))


def healthy(seed: int = 0) -> Volume:
    """An ellipsoid brain of tissue 600 with noise of SD 20 and a dark centre of 150, in a bright skull."""
    mm = np.moveaxis(np.indices(GRID.shape), 0, -1) * 3.0 + GRID.affine[:3, 3]
    radius = np.sqrt((((mm - (0.0, -12.0, 8.0)) / (60.0, 75.0, 58.0)) ** 2).sum(-1))
    noise = 20.0 * np.random.default_rng(seed).standard_normal(GRID.shape)
    values = np.where(radius <= 1.0, 600.0, 0.0) - np.where(radius <= 0.3, 450.0, 0.0)
    values = values + np.where(radius <= 1.0, noise, 0.0) + np.where((radius > 1.05) & (radius < 1.15), 1500.0, 0.0)
    return Volume(values[None].astype(np.float32), GRID, radius <= 1.0, f"h{seed}", ("T1",))


def ball(centre: tuple[float, float, float], radius_mm: float = 14.0) -> Mask:
    mm = np.moveaxis(np.indices(GRID.shape), 0, -1) * 3.0 + GRID.affine[:3, 3]
    return Mask(((mm - centre) ** 2).sum(-1) <= radius_mm**2, GRID)


SIDE = (38.0, -12.0, 8.0)


def test_tissue_inside_moves_the_asked_fraction_towards_fluid() -> None:
    from scipy.ndimage import binary_erosion

    volume, lesion = healthy(), ball(SIDE)
    planted = plant(volume, lesion, contrast=0.5, texture_seed=1)
    core = binary_erosion(lesion.voxels, iterations=2)
    fluid = np.percentile(volume.voxels[0][volume.brain_mask], 2)
    step = (planted.voxels[0] - volume.voxels[0])[core].mean()
    assert step == pytest.approx(0.5 * (fluid - 600.0), rel=0.1)


def test_nothing_changes_beyond_the_edge_nor_outside_the_brain() -> None:
    from scipy.ndimage import distance_transform_edt

    volume, lesion = healthy(), ball((55.0, -12.0, 8.0))
    planted = plant(volume, lesion, contrast=0.6, edge_mm=4.0, texture_seed=1)
    changed = planted.voxels[0] != volume.voxels[0]
    distance = distance_transform_edt(~lesion.voxels, sampling=3.0)
    assert changed.any()
    assert distance[changed].max() <= 4.0 + 1.5
    assert not changed[~volume.brain_mask].any()


def test_texture_of_the_tissue_stays() -> None:
    volume, lesion = healthy(), ball(SIDE)
    planted = plant(volume, lesion, contrast=0.3, texture_seed=1)
    before, after = volume.voxels[0][lesion.voxels], planted.voxels[0][lesion.voxels]
    assert np.corrcoef(before, after)[0, 1] > 0.3
    assert after.std() > before.std()


def test_hyper_makes_brighter_and_hypo_never_does() -> None:
    volume, lesion = healthy(), ball((10.0, -12.0, 8.0))
    bright = plant(volume, lesion, contrast=0.5, texture_seed=1, polarity="hyper")
    dark = plant(volume, lesion, contrast=0.5, texture_seed=1)
    assert (bright.voxels >= volume.voxels - 1e-3).all()
    assert (dark.voxels <= volume.voxels + 1e-3).all()


def test_texture_is_drawn_from_its_seed() -> None:
    volume, lesion = healthy(), ball(SIDE)
    first, again, other = (plant(volume, lesion, contrast=0.4, texture_seed=s).voxels for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_impossible_plantings_are_refused() -> None:
    volume = healthy()
    with pytest.raises(BadInput, match="outside the brain"):
        plant(volume, ball((-68.0, -92.0, -58.0), 5.0), contrast=0.5, texture_seed=1)
    with pytest.raises(BadInput, match="above 0 up to 1"):
        plant(volume, ball(SIDE), contrast=0.0, texture_seed=1)
    other = Mask(np.ones((2, 2, 2), bool), Grid((2, 2, 2), np.eye(4)))
    with pytest.raises(BadInput, match="different grids"):
        plant(volume, other, contrast=0.5, texture_seed=1)


def cohort(folder: Path) -> Cohort:
    subjects = []
    for seed in (0, 1):
        volume = healthy(seed)
        scan, brain = folder / f"h{seed}_T1.nii.gz", folder / f"h{seed}_brain.nii.gz"
        write_nifti(scan, volume.voxels[0], GRID)
        write_nifti(brain, volume.brain_mask.astype(np.uint8), GRID)
        subjects.append(Subject(f"h{seed}", {"T1": scan}, brain, healthy=True, role="test", site="here"))
    return Cohort("healthy", tuple(subjects))


@pytest.fixture
def no_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.planting.register", lambda volume, method: np.eye(4))


@pytest.mark.usefixtures("no_registration")
def test_planted_cohort_is_read_back_through_the_same_door(tmp_path: Path) -> None:
    shapes = (LesionShape("left", ball((-38.0, -12.0, 8.0))), LesionShape("right", ball(SIDE)))
    table = plant_cohort(cohort(tmp_path), shapes, tmp_path / "out", seed=5, workers=1)
    subjects, records = read_table(table).subjects, read_records(tmp_path / "out")
    assert [s.subject_id for s in subjects] == ["h0", "h1"]
    for subject, record, seed in zip(subjects, records, (0, 1), strict=True):
        reading = read_subject(subject, ("T1",))
        assert not subject.healthy
        assert reading.lesion is not None
        assert reading.lesion.volume_ml == pytest.approx(record.volume_ml, abs=1e-3)
        shape = next(s for s in shapes if s.name == record.shape)
        np.testing.assert_array_equal(reading.lesion.voxels, shape.mask.voxels)
        assert np.sign(record.centre_mm[0]) == (-1 if record.shape == "left" else 1)
        change = reading.volume.voxels[0] - healthy(seed).voxels[0]
        assert change[reading.lesion.voxels].mean() < -30.0
        assert 0.15 <= record.contrast <= 0.6


@pytest.mark.usefixtures("no_registration")
def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    shapes, healthy_cohort = (LesionShape("right", ball(SIDE)),), cohort(tmp_path)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        plant_cohort(healthy_cohort, shapes, tmp_path / name, seed=seed, workers=1)
    manifests = [sha256_file(tmp_path / name / "manifest.json") for name in "abc"]
    assert manifests[0] == manifests[1] != manifests[2]


@pytest.mark.usefixtures("no_registration")
def test_no_shape_comes_twice_while_another_one_fits(tmp_path: Path) -> None:
    shapes = (LesionShape("left", ball((-38.0, -12.0, 8.0))), LesionShape("right", ball(SIDE)))
    for seed in range(4):
        plant_cohort(cohort(tmp_path), shapes, tmp_path / f"out{seed}", seed=seed, workers=1)
        assert {r.shape for r in read_records(tmp_path / f"out{seed}")} == {"left", "right"}


@pytest.mark.usefixtures("no_registration")
def test_shapes_that_do_not_fit_are_passed_over_and_a_broken_scan_is_named(tmp_path: Path) -> None:
    shapes = (LesionShape("tiny", ball(SIDE, 3.5)), LesionShape("right", ball(SIDE)))
    people = cohort(tmp_path)
    people.subjects[1].scans["T1"].write_bytes(b"no scan")
    table = plant_cohort(people, shapes, tmp_path / "out", seed=0, min_volume_ml=1.0, workers=1)
    assert [r.shape for r in read_records(table.parent)] == ["right"]
    assert '"subject_id": "h1"' in (table.parent / "lesions.json").read_text().split("set_aside")[1]
    with pytest.raises(BadInput, match="No lesion could be planted"):
        plant_cohort(people, shapes[:1], tmp_path / "none", seed=0, min_volume_ml=1.0, workers=1)
    assert not (tmp_path / "none").exists()


@pytest.mark.usefixtures("no_registration")
def test_a_directory_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match="would be replaced"):
        plant_cohort(cohort(tmp_path), (LesionShape("right", ball(SIDE)),), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_only_healthy_subjects_are_planted_in(tmp_path: Path) -> None:
    ill = Cohort("ill", (Subject("p", {"T1": tmp_path / "x.nii.gz"}, healthy=False),))
    with pytest.raises(BadInput, match="not healthy: p"):
        plant_cohort(ill, (LesionShape("right", ball(SIDE)),), tmp_path / "out")


def test_shapes_are_read_from_a_folder_in_order_of_name(tmp_path: Path) -> None:
    write_nifti(tmp_path / "b.nii.gz", ball(SIDE).voxels.astype(np.uint8), GRID)
    write_nifti(tmp_path / "a.nii.gz", ball((0.0, 0.0, 0.0)).voxels.astype(np.uint8), GRID)
    first, second = read_shapes(tmp_path)
    assert (first.name, second.name) == ("a", "b")
    np.testing.assert_array_equal(second.mask.voxels, ball(SIDE).voxels)
    with pytest.raises(BadInput, match="folder with lesion masks"):
        read_shapes(tmp_path / "nothing")
