"""Onto the working grid and back: places, intensities, and a cache that tells what is in it."""

import gzip
import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data.cohort import Cohort, Subject
from data.errors import BadInput, IntegrityError
from data.hashed import sha256_file
from data.intensity import equalise, normalise, rescale
from data.prepared import Preprocessing, to_native
from data.prepared_cache import load_prepared
from data.preprocessing import prepare_cohort, prepare_reading, prepare_subject
from data.registration import _ras_matrix, overlap, register
from data.template import mni_template, tissue_probability, working_grid, working_template
from data.volume import Grid, Volume, resample

COARSE = Preprocessing(registration="centroid", spacing_mm=4.0, intensity="percentile")
LESION_MM = np.array([30.0, 14.0, 42.0])


def head(folder: Path, name: str = "sub", *, seed: int = 0, flips: tuple[int, ...] = (1, 1, 1)) -> Subject:
    """A stripped ellipsoid brain of 3 mm voxels with smooth texture and a bright lesion, its axes flipped as asked."""
    from scipy.ndimage import gaussian_filter

    shape = (56, 66, 56)
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = (-70.0, -90.0, -40.0)
    mm = np.moveaxis(np.indices(shape), 0, -1) * 3.0 + affine[:3, 3]
    brain = (((mm - (12.0, 6.0, 42.0)) / (62.0, 80.0, 60.0)) ** 2).sum(-1) <= 1.0
    texture = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.5)
    lesion = ((mm - LESION_MM) ** 2).sum(-1) <= 9.0**2
    values = np.where(brain, 500.0 + 60.0 * texture / texture.std() + 400.0 * lesion, 0.0).clip(0)
    paths = {}
    for what, array in (("T1", values.astype(np.float32)), ("brain", brain), ("lesion", lesion)):
        stored, place = array, affine.copy()
        for axis in (a for a in range(3) if flips[a] < 0):
            stored = np.flip(stored, axis)
            place[:3, 3] += place[:3, axis] * (shape[axis] - 1)
            place[:3, axis] *= -1
        kind = np.float32 if what == "T1" else np.uint8
        image = nib.Nifti1Image(np.ascontiguousarray(stored.astype(kind)), place)
        image.header.set_xyzt_units("mm")
        image.set_qform(place, 1)
        image.set_sform(place, 1)
        paths[what] = folder / f"{name}_{what}.nii.gz"
        nib.save(image, paths[what])
    return Subject(name, {"T1": paths["T1"]}, paths["brain"], paths["lesion"], healthy=False)


def centre_mm(mask: np.ndarray, grid: Grid) -> np.ndarray:
    return np.argwhere(mask).mean(0) @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def test_working_grid_at_2_mm_is_a_crop_of_the_template() -> None:
    grid, whole = working_grid(2.0), mni_template(2)
    assert grid.shape == (80, 96, 80)
    assert grid.orientation == "RAS"
    offset = np.linalg.inv(whole.grid.affine) @ grid.affine[:, 3]
    np.testing.assert_allclose(offset, np.round(offset), atol=1e-9)
    i, j, k = np.round(offset[:3]).astype(int)
    assert (i, j, k) == (9, 11, -1)
    np.testing.assert_array_equal(
        working_template(2.0).voxels[0][:, :, 1:], whole.voxels[0][i : i + 80, j : j + 96, : 80 - 1]
    )


@pytest.mark.parametrize("spacing", [1.0, 2.0, 3.0, 4.0])
def test_working_grid_holds_the_whole_template_brain_in_multiples_of_eight(spacing: float) -> None:
    grid, whole = working_grid(spacing), mni_template(2)
    assert all(side % 8 == 0 for side in grid.shape)
    assert grid.spacing_mm == (spacing, spacing, spacing)
    place = np.argwhere(whole.brain_mask) @ whole.grid.affine[:3, :3].T + whole.grid.affine[:3, 3]
    index = (place - grid.affine[:3, 3]) / spacing
    assert index.min() >= -0.5
    assert (index <= np.array(grid.shape) - 0.5).all()


def test_tissues_of_the_template_lie_in_its_brain() -> None:
    brain = working_template(4.0).brain_mask
    for tissue in ("grey", "white"):
        assert (tissue_probability(tissue, 4.0)[brain] > 0.5).mean() > 0.2  # type: ignore[arg-type]


def test_working_grid_refuses_a_spacing_that_cannot_be_meant() -> None:
    with pytest.raises(BadInput, match=r"0\.5 to 8"):
        working_grid(0.0)


def test_minmax_maps_the_brain_to_zero_and_one_whatever_lies_outside() -> None:
    values = np.array([[[2.0, 4.0, 10.0, 999.0]]])
    mask = np.array([[[True, True, True, False]]])
    np.testing.assert_allclose(normalise(values, mask, "minmax"), [[[0.0, 0.25, 1.0, 0.0]]])


def test_percentiles_clip_what_lies_beyond_them() -> None:
    values = np.arange(101.0).reshape(1, 1, 101)
    result = normalise(values, np.ones(values.shape, bool), "percentile").ravel()
    np.testing.assert_allclose(result, np.clip((np.arange(101.0) - 1) / 98, 0, 1), atol=1e-6)


def test_equalisation_gives_ranks_and_ties_share_one() -> None:
    values = np.array([[[5.0, 1.0, 5.0, 9.0, -3.0]]])
    mask = np.array([[[True, True, True, True, False]]])
    np.testing.assert_allclose(equalise(values, mask), [[[0.5, 0.0, 0.5, 1.0, 0.0]]])


@pytest.mark.parametrize("method", ["minmax", "percentile", "histogram"])
def test_intensities_do_not_depend_on_the_scanner_gain(method: str) -> None:
    values = np.random.default_rng(0).gamma(2.0, size=(8, 8, 8))
    mask = values > 0.3
    first, second = (normalise(v, mask, method) for v in (values, 730.0 * values + 12.0))  # type: ignore[arg-type]
    np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.mark.parametrize("method", ["minmax", "percentile", "histogram"])
def test_constant_and_empty_brains_are_refused(method: str) -> None:
    mask = np.ones((3, 3, 3), bool)
    with pytest.raises(BadInput, match="equal 7"):
        normalise(np.full((3, 3, 3), 7.0), mask, method)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="empty"):
        normalise(np.ones((3, 3, 3)), ~mask, method)  # type: ignore[arg-type]


def test_a_brain_with_equal_percentiles_is_refused() -> None:
    values = np.zeros((10, 10, 10))
    values[0, 0, 0] = 1.0
    with pytest.raises(BadInput, match="nearly"):
        rescale(values, np.ones(values.shape, bool), 1.0, 99.0)


def test_prepared_volume_is_normalised_in_the_brain_and_zero_outside(tmp_path: Path) -> None:
    prepared = prepare_subject(head(tmp_path), COARSE, tmp_path / "cache")
    volume = prepared.volume
    assert volume.grid.matches(working_grid(4.0))
    assert (volume.voxels[0][~volume.brain_mask] == 0).all()
    assert volume.voxels.min() == 0.0
    assert volume.voxels.max() == 1.0
    assert not volume.voxels.flags.writeable


def test_rim_of_the_brain_is_not_darkened_by_the_zeros_outside(tmp_path: Path) -> None:
    volume = prepare_subject(head(tmp_path), replace(COARSE, intensity="minmax"), tmp_path / "cache").volume
    from scipy.ndimage import binary_erosion

    rim = volume.brain_mask & ~binary_erosion(volume.brain_mask)
    core = binary_erosion(volume.brain_mask, iterations=3)
    assert abs(np.median(volume.voxels[0][rim]) - np.median(volume.voxels[0][core])) < 0.05


@pytest.mark.parametrize("spacing", [2.0, 4.0])
def test_a_blob_comes_back_to_its_place(tmp_path: Path, spacing: float) -> None:
    prepared = prepare_subject(head(tmp_path), replace(COARSE, spacing_mm=spacing), tmp_path / "cache")
    assert prepared.lesion is not None
    assert prepared.native_lesion is not None
    scores = np.where(prepared.volume.brain_mask, prepared.lesion.voxels.astype(np.float32), np.nan)
    back = to_native(scores, prepared.volume.grid, prepared)
    found = np.nan_to_num(back) >= 0.5
    assert np.abs(centre_mm(found, prepared.native_grid) - LESION_MM).max() < 1.5
    assert overlap(found, prepared.native_lesion.voxels) > 0.7
    np.testing.assert_array_equal(np.isfinite(back), prepared.native_brain.voxels)


def test_constant_scores_come_back_constant_up_to_the_rim(tmp_path: Path) -> None:
    prepared = prepare_subject(head(tmp_path), COARSE, tmp_path / "cache")
    scores = np.where(prepared.volume.brain_mask, np.float32(3.25), np.float32(np.nan))
    back = to_native(scores, prepared.volume.grid, prepared, outside=-1.0)
    np.testing.assert_allclose(back[prepared.native_brain.voxels], 3.25, rtol=1e-5)
    assert (back[~prepared.native_brain.voxels] == -1.0).all()


def test_native_brain_beyond_the_scores_takes_the_nearest_one(tmp_path: Path) -> None:
    prepared = prepare_subject(head(tmp_path), COARSE, tmp_path / "cache")
    scores = np.full(prepared.volume.grid.shape, np.nan, np.float32)
    first, second = np.argwhere(prepared.volume.brain_mask)[[0, -1]]
    scores[tuple(first)], scores[tuple(second)] = 1.0, 2.0
    back = to_native(scores, prepared.volume.grid, prepared)
    inside = back[prepared.native_brain.voxels]
    assert set(np.unique(np.round(inside, 4))) == {1.0, 2.0}
    with pytest.raises(BadInput, match="Not one finite"):
        to_native(np.full_like(scores, np.nan), prepared.volume.grid, prepared)


@pytest.mark.parametrize("flips", [(-1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_axis_order_of_the_file_does_not_matter(tmp_path: Path, flips: tuple[int, int, int]) -> None:
    plain = prepare_reading(head(tmp_path, "plain"), COARSE)
    flipped = prepare_reading(head(tmp_path, "flipped", flips=flips), COARSE)
    np.testing.assert_allclose(flipped.volume.voxels, plain.volume.voxels, atol=1e-3)
    np.testing.assert_array_equal(flipped.volume.brain_mask, plain.volume.brain_mask)


def test_fine_scans_are_averaged_not_sampled(tmp_path: Path) -> None:
    from data.preprocessing import pull

    fine = Grid((64, 64, 64), np.diag([1.0, 1.0, 1.0, 1.0]))
    coarse = Grid((14, 14, 14), np.array([[4, 0, 0, 6], [0, 4, 0, 6], [0, 0, 4, 6], [0, 0, 0, 1.0]]))
    noise = np.random.default_rng(1).standard_normal(fine.shape).astype(np.float32)
    assert pull(noise, fine, coarse, np.eye(4)).std() < 0.25 * resample(noise, fine, coarse).std()
    np.testing.assert_allclose(
        pull(np.full_like(noise, 5.0), fine, coarse, np.eye(4))[3:-3, 3:-3, 3:-3], 5.0, rtol=1e-4
    )


def test_the_second_time_nothing_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = head(tmp_path)
    first = prepare_subject(subject, COARSE, tmp_path / "cache")

    def never(*_: object) -> None:
        raise AssertionError("computed although cached")

    monkeypatch.setattr("data.preprocessing.prepare_reading", never)
    second = prepare_subject(subject, COARSE, tmp_path / "cache")
    np.testing.assert_array_equal(first.volume.voxels, second.volume.voxels)
    assert first.key == second.key


def test_key_changes_with_settings_with_content_and_with_labels(tmp_path: Path) -> None:
    subject, cache = head(tmp_path), tmp_path / "cache"
    keys = [prepare_subject(subject, COARSE, cache).key]
    keys.append(prepare_subject(subject, replace(COARSE, intensity="histogram"), cache).key)
    keys.append(prepare_subject(replace(subject, lesion_labels=(1,)), COARSE, cache).key)
    head(tmp_path, seed=1)
    keys.append(prepare_subject(subject, COARSE, cache).key)
    assert len(set(keys)) == 4


def test_a_damaged_cache_is_named_and_computed_anew(tmp_path: Path) -> None:
    subject, cache = head(tmp_path), tmp_path / "cache"
    first = prepare_cohort(Cohort("one", (subject,)), COARSE, cache, workers=1)
    key = first.keys["sub"]
    file = cache / key / "voxels.npy"
    digest = sha256_file(file)
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(IntegrityError, match=r"voxels\.npy is damaged"):
        load_prepared(cache, key)
    prepare_cohort(Cohort("one", (subject,)), COARSE, cache, workers=1)
    assert sha256_file(file) == digest
    assert load_prepared(cache, key).key == key


@pytest.mark.parametrize("what", ["T1", "brain", "lesion"])
def test_a_file_that_changes_between_hash_and_reading_sets_its_subject_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    from data import preprocessing

    good, bad = head(tmp_path, "good"), head(tmp_path, "bad", seed=1)
    other = head(tmp_path, "other", seed=2)
    read = preprocessing.read_subject

    def late(subject: Subject, *args: object, **keywords: bool):  # type: ignore[no-untyped-def]
        if subject is bad:
            (tmp_path / f"bad_{what}.nii.gz").write_bytes(source[what])
        return read(subject, *args, **keywords)  # type: ignore[arg-type]

    # The other scan's own bytes, and masks that say the same in other bytes.
    source = {"T1": other.scans["T1"].read_bytes()}
    for mask in ("brain", "lesion"):
        plain = gzip.decompress((tmp_path / f"bad_{mask}.nii.gz").read_bytes())
        source[mask] = gzip.compress(plain, 1, mtime=7)
    monkeypatch.setattr(preprocessing, "read_subject", late)
    cache = tmp_path / "cache"
    prepared = prepare_cohort(Cohort("c", (bad, good)), COARSE, cache, workers=1)
    assert list(prepared.keys) == ["good"]
    assert [(one.subject_id, one.code) for one in prepared.set_aside] == [("bad", "E-SCAN-CHANGED")]
    assert "Run again" in prepared.set_aside[0].reason
    assert [entry.name for entry in cache.iterdir() if entry.is_dir()] == [prepared.keys["good"]]
    again = prepare_cohort(Cohort("c", (bad, good)), COARSE, cache, workers=1)
    assert set(again.keys) == {"bad", "good"}


def test_a_file_that_vanishes_between_hash_and_reading_sets_its_subject_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data import preprocessing

    good, bad = head(tmp_path, "good"), head(tmp_path, "bad", seed=1)
    read = preprocessing.read_subject

    def late(subject: Subject, *args: object, **keywords: bool):  # type: ignore[no-untyped-def]
        if subject is bad:
            subject.scans["T1"].unlink()
        return read(subject, *args, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(preprocessing, "read_subject", late)
    prepared = prepare_cohort(Cohort("c", (bad, good)), COARSE, tmp_path / "cache", workers=1)
    assert [(one.subject_id, one.code) for one in prepared.set_aside] == [("bad", "E-NII-READ")]
    assert list(prepared.keys) == ["good"]


def test_a_scan_that_kept_size_and_time_of_writing_is_still_seen_to_have_changed(tmp_path: Path) -> None:
    subject, cache = head(tmp_path), tmp_path / "cache"
    path = subject.scans["T1"]
    path.write_bytes(gzip.decompress(path.read_bytes()))
    path = path.rename(tmp_path / "plain.nii")
    subject = replace(subject, scans={"T1": path})
    keys = [prepare_cohort(Cohort("c", (subject,)), COARSE, cache, workers=1).keys["sub"]]
    state, content = path.stat(), path.read_bytes()
    voxels = np.frombuffer(content[352:], "<f4")
    for factor, over in ((2, path), (3, tmp_path / "new.nii")):
        over.write_bytes(content[:352] + (factor * voxels).tobytes())
        over.replace(path)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)
        keys.append(prepare_cohort(Cohort("c", (subject,)), COARSE, cache, workers=1).keys["sub"])
    assert len(set(keys)) == 3


def test_a_cache_that_lacks_a_subject_says_so(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"copied without their cache.*python cli\.py prepare COHORT"):
        load_prepared(tmp_path, "0" * 32)


def test_one_bad_subject_is_set_aside_and_the_others_go_on(tmp_path: Path) -> None:
    good, broken = head(tmp_path, "good"), head(tmp_path, "broken", seed=2)
    data = broken.scans["T1"].read_bytes()
    broken.scans["T1"].write_bytes(data[: len(data) // 2])
    gone = Subject("gone", {"T1": tmp_path / "nowhere.nii.gz"})
    seen: list[tuple[int, int]] = []
    prepared = prepare_cohort(
        Cohort("three", (broken, good, gone)),
        COARSE,
        tmp_path / "cache",
        workers=1,
        monitor=lambda done, total, _: seen.append((done, total)),
    )
    assert list(prepared.keys) == ["good"]
    assert [one.subject_id for one in prepared.set_aside] == ["broken", "gone"]
    assert seen[-1] == (3, 3)
    assert prepared.load("good").volume.subject_id == "good"
    with pytest.raises(BadInput, match="set aside"):
        prepared.load("broken")


def test_two_processes_give_the_bytes_of_one(tmp_path: Path) -> None:
    cohort = Cohort("two", (head(tmp_path, "a"), head(tmp_path, "b", seed=1)))
    one = prepare_cohort(cohort, COARSE, tmp_path / "one", workers=1)
    two = prepare_cohort(cohort, COARSE, tmp_path / "two", workers=2)
    assert dict(one.keys) == dict(two.keys)
    assert dict(one.voxel_hashes) == dict(two.voxel_hashes)
    for key in one.keys.values():
        assert sha256_file(tmp_path / "one" / key / "voxels.npy") == sha256_file(tmp_path / "two" / key / "voxels.npy")


def test_a_scan_under_two_names_has_one_voxel_hash(tmp_path: Path) -> None:
    cohort = Cohort("twins", (head(tmp_path, "a"), head(tmp_path, "b"), head(tmp_path, "c", seed=1)))
    hashes = prepare_cohort(cohort, COARSE, tmp_path / "cache", workers=1).voxel_hashes
    assert hashes["a"] == hashes["b"] != hashes["c"]


def test_a_brain_far_from_the_template_is_noted_or_refused(tmp_path: Path) -> None:
    subject = head(tmp_path)
    assert any("outside the working grid" in note for note in moved(subject, tmp_path, 60.0).notes)
    with pytest.raises(BadInput, match="lies outside the working grid"):
        moved(subject, tmp_path, 900.0)


def moved(subject: Subject, folder: Path, shift_mm: float):  # type: ignore[no-untyped-def]
    paths = {}
    for what, path in (("T1", subject.scans["T1"]), ("brain", subject.brain_mask)):
        image = nib.load(path)
        affine = image.affine.copy()
        affine[0, 3] += shift_mm
        out = nib.Nifti1Image(np.asarray(image.dataobj), affine)
        out.header.set_xyzt_units("mm")
        paths[what] = folder / f"moved_{shift_mm:.0f}_{what}.nii.gz"
        nib.save(out, paths[what])
    return prepare_reading(Subject("moved", {"T1": paths["T1"]}, paths["brain"]), replace(COARSE, registration="none"))


def test_settings_without_contrasts_are_refused() -> None:
    with pytest.raises(BadInput, match="at least one"):
        Preprocessing(contrasts=())


def test_centroid_matches_the_centres_of_the_brains(tmp_path: Path) -> None:
    prepared = prepare_reading(head(tmp_path), COARSE)
    template = working_template(4.0)
    distance = centre_mm(prepared.volume.brain_mask, prepared.volume.grid) - centre_mm(
        template.brain_mask, template.grid
    )
    assert np.abs(distance).max() < 1.5
    np.testing.assert_array_equal(prepared.world_to_native[:3, :3], np.eye(3))


def test_itk_parameters_become_a_ras_matrix_about_their_centre() -> None:
    angle = 0.3
    linear = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0.1, 0, 1.2]])
    centre, shift = np.array([5.0, -7.0, 11.0]), np.array([1.0, 2.0, 3.0])
    matrix = _ras_matrix([*linear.ravel(), *shift], centre)
    ras = np.array([20.0, -30.0, 40.0])
    lps = ras * (-1, -1, 1)
    expected = (linear @ (lps - centre) + shift + centre) * (-1, -1, 1)
    np.testing.assert_allclose((matrix @ [*ras, 1.0])[:3], expected)


@pytest.mark.slow
def test_registration_recovers_a_known_affine_and_repeats_itself() -> None:
    template = working_template(2.0)
    angle = 0.12
    truth = np.array(
        [[0.92 * np.cos(angle), -np.sin(angle), 0.02, 9.0], [np.sin(angle), 0.95, 0.0, -14.0], [0.0, 0.05, 0.9, 12.0]]
    )
    world_to_native = np.vstack([truth, [0, 0, 0, 1.0]])
    affine = np.diag([-3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = (110.0, -130.0, -90.0)
    native = Grid((72, 76, 72), affine)
    pulled = np.linalg.inv(world_to_native)
    values = resample(template.voxels[0], template.grid, native, world_to_source=pulled)
    brain = resample(template.brain_mask.astype(np.float32), template.grid, native, world_to_source=pulled) >= 0.5
    volume = Volume(900.0 * values[None], native, brain, "phantom", ("T1",))
    found = register(volume, "affine")
    where = np.argwhere(template.brain_mask)
    ends = np.array([[x, y, z, 0] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float)[:, :3]
    corners = (where.min(0) + ends * (where.max(0) - where.min(0))) @ template.grid.affine[:3, :3].T
    corners = np.c_[corners + template.grid.affine[:3, 3], np.ones(8)]
    error = np.linalg.norm((corners @ (found - world_to_native).T)[:, :3], axis=1)
    assert error.max() < 1.5
    np.testing.assert_array_equal(register(volume, "affine"), found)
