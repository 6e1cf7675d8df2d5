"""Volumes that lie about their size, their header or their place: refused in bounded memory and time, or read right."""

import itertools
import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data.cohort import Cohort, Subject
from data.nifti import read_labels, read_scan, write_nifti
from data.nifti_header import BadScan
from data.prepared import Prepared, Preprocessing, to_native
from data.preprocessing import prepare_cohort, prepare_reading
from data.reading import check_cohort, read_subject
from data.template import working_grid
from data.volume import Grid
from tests import mutated_headers

ROOT = Path(__file__).resolve().parents[2]
MUTATIONS = 10_000
SETTINGS = Preprocessing(registration="none", spacing_mm=4.0, intensity="minmax")
UNDER_A_LIMIT = """
import contextlib, io, json, resource, sys, time
import psutil
import cli
import data.layout, data.reading
room = int(psutil.Process().memory_info().vms) + (1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
found = {}
for table in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()) as words, contextlib.redirect_stderr(words):
        code = cli.main(["check", table])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    found[table] = {"code": code, "words": words.getvalue(), "seconds": time.process_time() - began, "kib": grown}
print(json.dumps(found))
"""
"""`check` of each table in a process that may take one more GiB of address space."""


def header_of(shape: tuple[int, int, int], kind: str, spacing_mm: float = 0.2) -> bytes:
    """A NIfTI-1 header that is right in everything but what the test makes of it."""
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    header = nib.Nifti1Header()
    header.set_data_dtype(kind)
    header.set_data_shape(shape)
    header.set_sform(affine, 2)
    header.set_qform(affine, 2)
    header["pixdim"][1:4] = spacing_mm
    header.set_xyzt_units("mm")
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return bytes(header.binaryblock) + b"\0" * 4


def sparse(path: Path, shape: tuple[int, int, int], kind: str) -> Path:
    """A plain NIfTI file of that shape which takes no room on the disk."""
    path.write_bytes(header_of(shape, kind))
    with path.open("r+b") as file:
        file.truncate(352 + int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize)
    return path


def packed(path: Path, shape: tuple[int, int, int], kind: str, rest: bytes) -> Path:
    """A gzip file of a header and what follows it."""
    path.write_bytes(zlib.compress(header_of(shape, kind) + rest, 9, 31))
    return path


TOO_LARGE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "10 MB of zeros claiming 10 GB": (
        lambda folder: packed(folder / "bomb.nii.gz", (2200, 2200, 2200), "u1", bytes(10 << 20)), "E-NII-BOMB"
    ),
    "1.3 GB as likely as not": (
        lambda folder: packed(folder / "gz.nii.gz", (1100, 1100, 1100), "u1", np.random.default_rng(0).bytes(2 << 20)),
        "E-NII-MEMORY",
    ),
    "3.2 GB": (lambda folder: sparse(folder / "large.nii", (1200, 1200, 1200), "i2"), "E-NII-TOO-LARGE"),
    "more than 2^31 voxels": (lambda folder: sparse(folder / "v.nii", (1300, 1300, 1300), "u1"), "E-NII-TOO-LARGE"),
    "2 GB of bytes": (lambda folder: sparse(folder / "bytes.nii", (1280, 1280, 1280), "u1"), "E-NII-MEMORY"),
}  # fmt: skip


@pytest.mark.slow
def test_a_volume_too_large_for_this_machine_is_exit_2_before_its_memory_is_taken(tmp_path: Path) -> None:
    wanted = {}
    for make, code in TOO_LARGE.values():
        scan = make(tmp_path)
        table = tmp_path / f"{scan.name}.csv"
        table.write_text(f"subject_id,t1\na,{scan.name}\n")
        wanted[str(table)] = code
    child = [sys.executable, "-c", UNDER_A_LIMIT, *wanted]
    done = subprocess.run(child, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for table, code in wanted.items():
        one = found[table]
        assert one["code"] == 2
        assert code in one["words"]
        assert "GiB" in one["words"] or "claims" in one["words"]
        assert one["seconds"] < 5
        assert one["kib"] < 100 << 10


def test_a_scan_that_needs_more_memory_than_is_free_names_both_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = stored(tmp_path / "small.nii.gz", ANISOTROPIC)
    large = stored(tmp_path / "large.nii.gz", FINE)
    free = 9 * int(np.prod(FINE.shape))
    monkeypatch.setattr("data.nifti_bytes._free_memory", lambda: free)
    with pytest.raises(BadScan, match=r"E-NII-MEMORY: .*large.* needs 0\.\d+ GiB .* free are 0\.\d+ GiB"):
        read_scan(large)
    cohort = Cohort("c", (Subject("large", {"T1": large}), Subject("small", {"T1": small})))
    check = check_cohort(cohort, ("T1",))
    assert [fact.subject_id for fact in check.facts] == ["small"]
    assert [one.code for one in check.set_aside] == ["E-NII-MEMORY"]
    write_nifti(tmp_path / "mask.nii.gz", np.ones(FINE.shape, np.float32), FINE)
    with pytest.raises(BadScan, match="E-NII-MEMORY"):
        read_labels(tmp_path / "mask.nii.gz")


def test_memory_that_runs_out_while_a_scan_is_read_is_named_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    scan, mask = stored(tmp_path / "a.nii.gz", ANISOTROPIC), tmp_path / "mask.nii.gz"
    write_nifti(mask, anatomy(ANISOTROPIC) > 0, ANISOTROPIC)
    monkeypatch.setattr("data.nifti._canonical", full)
    for read, path in ((read_scan, scan), (read_labels, mask)):
        with pytest.raises(BadScan, match="E-NII-MEMORY"):
            read(path)


@pytest.mark.slow
def test_ten_thousand_mutated_headers_are_refused_by_name_or_read_whole(tmp_path: Path) -> None:
    middle = MUTATIONS // 2
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.mutated_headers", str(tmp_path), str(first), str(last)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for first, last in ((0, middle), (middle, MUTATIONS))
    ]  # fmt: skip
    found = []
    for child in children:
        said, complaint = child.communicate(timeout=400)
        assert child.returncode == 0, complaint
        found.append(json.loads(said))
    assert [problem for one in found for problem in one["bad"]] == []
    assert sum(one["read"] + one["refused"] for one in found) == MUTATIONS
    assert min(sum(one[kind] for one in found) for kind in ("read", "refused")) > MUTATIONS // 4
    assert max(one["slowest"] for one in found) < 2.0


def test_the_mutations_begin_from_files_that_are_right(tmp_path: Path) -> None:
    for number, (block, _) in enumerate(mutated_headers.sources()):
        path = tmp_path / f"{number}.nii"
        path.write_bytes(block)
        assert mutated_headers.broken(read_scan(path)) == ""
        np.testing.assert_allclose(read_scan(path).grid.affine, mutated_headers.AFFINE)


def test_a_broken_promise_of_a_volume_is_seen(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.nii.gz", ANISOTROPIC)
    scan = read_scan(path)
    object.__setattr__(scan, "voxels", np.asfortranarray(scan.voxels[1:].astype(np.float64)))
    assert mutated_headers.broken(scan) == "shape, type, order"


# One head, stored in many ways. `anatomy` is a function of the world, so no interpolation stands between two grids.

BLOB_MM = np.array([24.0, -18.0, 30.0])


def placed(spacing_mm: tuple[float, float, float], turn: np.ndarray | None = None) -> Grid:
    """A grid of that spacing over the whole head, about the middle of the working grid."""
    matrix = (np.eye(3) if turn is None else turn) * np.array(spacing_mm)
    shape = tuple(int(np.ceil(220 / s)) for s in spacing_mm)
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = np.array([0.0, -18.0, 10.0]) - matrix @ ((np.array(shape) - 1) / 2)
    return Grid((shape[0], shape[1], shape[2]), affine)


def turned(degrees: float) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


ANISOTROPIC = placed((2.0, 2.0, 5.0))
FINE = placed((2.0, 2.0, 2.0))
OBLIQUE = placed((2.0, 2.0, 2.0), turned(25.0))


def anatomy(grid: Grid) -> np.ndarray:
    """A head that is symmetric in no axis, with one bright blob; zero outside the brain."""
    mm = np.moveaxis(np.indices(grid.shape), 0, -1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    inside = (((mm - (2.0, -18.0, 10.0)) / (58.0, 74.0, 56.0)) ** 2).sum(-1) <= 1
    slow = mm / (90.0, 70.0, 80.0) + (0.3, 0.7, 0.1)
    texture = 100 + 20 * np.sin(slow[..., 0]) + 15 * np.cos(slow[..., 1]) + 10 * slow[..., 2]
    blob = 60 * np.exp(-(((mm - BLOB_MM) / 9.0) ** 2).sum(-1))
    return np.where(inside, texture + blob, 0).astype(np.float32)


def stored(path: Path, grid: Grid) -> Path:
    write_nifti(path, anatomy(grid), grid)
    return path


def in_order(values: np.ndarray, grid: Grid, axes: str) -> tuple[np.ndarray, Grid]:
    """The array with its axes permuted and flipped as the codes say, and the grid that keeps every voxel in place."""
    move = np.zeros((4, 4))
    move[3, 3] = 1
    order = [next(i for i, pair in enumerate(("RL", "AP", "SI")) if code in pair) for code in axes]
    flips = [1 if code in "RAS" else -1 for code in axes]
    for new, (old, flip) in enumerate(zip(order, flips, strict=True)):
        move[old, new] = flip
        move[old, 3] = 0 if flip > 0 else grid.shape[old] - 1
    new_values = np.ascontiguousarray(np.transpose(values, order)[:: flips[0], :: flips[1], :: flips[2]])
    return new_values, Grid(new_values.shape, grid.affine @ move)


def blob_of(prepared: Prepared) -> np.ndarray:
    """Where the blob lies, mm of the working world: the middle of what is brighter than 0.8."""
    bright = np.argwhere(prepared.volume.voxels[0] > 0.8)
    affine = prepared.volume.grid.affine
    return np.asarray(bright.mean(0) @ affine[:3, :3].T + affine[:3, 3])


@pytest.mark.parametrize("axes", ["LPS", "LAS", "RPI", "ASR", "SPL", "IRA", "PIR"])
def test_a_head_stored_in_any_order_is_prepared_to_the_same_bits_and_its_scores_return_to_the_same_places(
    tmp_path: Path, axes: str
) -> None:
    plain = prepare_reading(Subject("a", {"T1": stored(tmp_path / "ras.nii.gz", ANISOTROPIC)}), SETTINGS)
    values, grid = in_order(anatomy(ANISOTROPIC), ANISOTROPIC, axes)
    assert grid.orientation == axes
    write_nifti(tmp_path / "other.nii.gz", values, grid)
    other = prepare_reading(Subject("a", {"T1": tmp_path / "other.nii.gz"}), SETTINGS)
    assert other.axes == axes
    np.testing.assert_array_equal(other.volume.brain_mask, plain.volume.brain_mask)
    np.testing.assert_array_equal(other.volume.voxels, plain.volume.voxels)
    scores = np.where(plain.volume.brain_mask, plain.volume.voxels[0], np.float32(np.nan))
    home = [to_native(scores, one.volume.grid, one, outside=-1.0) for one in (plain, other)]
    np.testing.assert_allclose(home[1], home[0], atol=1e-5)


def rotations() -> list[np.ndarray]:
    """Every way of naming axes with both hands, and turns near half a turn, where a quaternion loses its digits."""
    found = [
        np.diag(signs)[:, list(order)].astype(float)
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)
    ]
    draw = np.random.Generator(np.random.Philox(3))
    for _ in range(60):
        axis = draw.normal(size=3)
        angle = np.pi - draw.choice([0.0, 1e-4, 3e-4, 6e-4, 1e-3, 1e-2])
        found.append(Rotation.from_rotvec(axis / np.linalg.norm(axis) * angle).as_matrix())
    return found


def test_forms_that_differ_only_by_the_rounding_of_a_quaternion_agree(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    for rotation in rotations():
        affine = np.eye(4)
        affine[:3, :3] = rotation * (80.0, 85.0, 90.0)
        image = nib.Nifti1Image(np.arange(27, dtype=np.float32).reshape(3, 3, 3), affine)
        image.set_qform(affine, 1)
        image.set_sform(affine, 1)
        image.header.set_xyzt_units("mm")
        nib.save(image, path)
        assert int(nib.load(path).header["qform_code"]) == 1
        np.testing.assert_allclose(np.sort(read_scan(path).voxels.ravel()), np.arange(27))
        affine[:3, 3] = (0.0, 0.0, 1.0)
        image.set_sform(affine, 1)
        nib.save(image, path)
        with pytest.raises(BadScan, match=r"E-NII-FORMS.*1\.[01]. mm"):
            read_scan(path)


@pytest.mark.parametrize("grid", [OBLIQUE, ANISOTROPIC, placed((1.0, 3.0, 4.0), turned(-15.0))])
def test_an_oblique_or_anisotropic_head_comes_to_the_place_of_a_straight_one(tmp_path: Path, grid: Grid) -> None:
    straight = prepare_reading(Subject("a", {"T1": stored(tmp_path / "straight.nii.gz", FINE)}), SETTINGS)
    other = prepare_reading(Subject("a", {"T1": stored(tmp_path / "other.nii.gz", grid)}), SETTINGS)
    assert np.abs(blob_of(straight) - BLOB_MM).max() < 1.0
    assert np.abs(blob_of(other) - blob_of(straight)).max() < 1.0
    both = straight.volume.brain_mask & other.volume.brain_mask
    assert both.sum() > 0.95 * (straight.volume.brain_mask | other.volume.brain_mask).sum()
    apart = np.abs(straight.volume.voxels[0] - other.volume.voxels[0])[both]
    assert np.median(apart) < 0.01
    assert np.quantile(apart, 0.99) < 0.06
    assert straight.volume.grid.matches(working_grid(4.0))


def test_scaled_to_huge_or_tiny_numbers_a_head_is_prepared_the_same(tmp_path: Path) -> None:
    values = anatomy(ANISOTROPIC).astype(np.float64)
    want = prepare_reading(Subject("a", {"T1": stored(tmp_path / "one.nii.gz", ANISOTROPIC)}), SETTINGS)
    for factor in (1e30, 1e-30):
        path = tmp_path / f"{factor:g}.nii.gz"
        image = nib.Nifti1Image(values * factor, ANISOTROPIC.affine)
        image.header.set_xyzt_units("mm")
        nib.save(image, path)
        got = prepare_reading(Subject("a", {"T1": path}), SETTINGS)
        np.testing.assert_allclose(got.volume.voxels, want.volume.voxels, atol=1e-5)


@pytest.mark.parametrize(
    ("offset", "factor"), [(1e9, 1.0), (-1e12, 1.0), (0.0, 1e-45)], ids=["1e9", "-1e12", "below float32"]
)
def test_contrast_that_float32_cannot_hold_is_refused_and_not_lost(
    tmp_path: Path, offset: float, factor: float
) -> None:
    values = anatomy(ANISOTROPIC).astype(np.float64)
    image = nib.Nifti1Image(np.where(values > 0, values * factor + offset, 0.0), ANISOTROPIC.affine)
    nib.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(BadScan, match="E-NII-DIGITS"):
        read_scan(tmp_path / "a.nii.gz")
    stored_whole = np.where(values > 0, values, 0).astype(np.int16)
    image = nib.Nifti1Image(stored_whole, ANISOTROPIC.affine)
    image.header.set_slope_inter(1.0, 1e10)
    nib.save(image, tmp_path / "b.nii.gz")
    with pytest.raises(BadScan, match="E-NII-DIGITS"):
        read_scan(tmp_path / "b.nii.gz")


# Volumes without information


def degenerate() -> dict[str, np.ndarray]:
    """Scans that would poison a fit: each has finite voxels and a right header."""
    brain = anatomy(ANISOTROPIC) > 0
    one_voxel = np.zeros(ANISOTROPIC.shape, np.float32)
    one_voxel[40, 40, 20] = 123.4
    nearly = np.where(brain, np.float32(50.5), 0).astype(np.float32)
    nearly[tuple(np.argwhere(brain)[::20000].T)] += np.arange(1, 1 + len(np.argwhere(brain)[::20000]))
    mostly_zero = np.zeros(ANISOTROPIC.shape, np.float32)
    corner = np.argwhere(brain)[:30]
    mostly_zero[tuple(corner.T)] = np.linspace(1.5, 9.5, 30)
    return {
        "all zero": np.zeros(ANISOTROPIC.shape, np.float32),
        "constant": np.full(ANISOTROPIC.shape, 7.25, np.float32),
        "constant brain": np.where(brain, np.float32(50.5), 0).astype(np.float32),
        "nearly constant": nearly,
        "single voxel": one_voxel,
        "99.9 percent zero": mostly_zero,
        "label-like": np.where(brain, np.round(anatomy(ANISOTROPIC) / 60) / 3, 0).astype(np.float32),
        "NaN in the brain": np.where(brain & (anatomy(ANISOTROPIC) > 170), np.nan, anatomy(ANISOTROPIC)),
    }


def test_scans_without_information_are_set_aside_by_name_and_change_nothing_of_the_others(tmp_path: Path) -> None:
    good = [
        Subject(f"good{n}", {"T1": stored(tmp_path / f"good{n}.nii.gz", grid)})
        for n, grid in enumerate((ANISOTROPIC, OBLIQUE))
    ]
    mask = tmp_path / "brain.nii.gz"
    write_nifti(mask, anatomy(ANISOTROPIC) > 0, ANISOTROPIC)
    bad = []
    for name, values in degenerate().items():
        write_nifti(tmp_path / f"{name}.nii.gz", values.astype(np.float32), ANISOTROPIC)
        bad.append(Subject(name, {"T1": tmp_path / f"{name}.nii.gz"}, mask))
    settings = Preprocessing(registration="none", spacing_mm=4.0)
    alone = prepare_cohort(Cohort("c", tuple(good)), settings, tmp_path / "alone", workers=1)
    among = prepare_cohort(Cohort("c", (*bad, *good)), settings, tmp_path / "among", workers=1)
    assert {one.subject_id for one in among.set_aside} == set(degenerate())
    assert all(len(one.cause) > 20 for one in among.set_aside)
    assert dict(among.keys) == dict(alone.keys)
    for subject_id in alone.keys:
        one, two = alone.load(subject_id), among.load(subject_id)
        np.testing.assert_array_equal(one.volume.voxels, two.volume.voxels)


def test_a_mask_of_few_values_is_no_scan_whatever_its_numbers(tmp_path: Path) -> None:
    brain = anatomy(ANISOTROPIC) > 0
    for values in ((0, 1), (0, 0.9999), (0.0, 0.25, 0.5, 0.75), (-1.5, 2.5)):
        choice = np.asarray(values, np.float32)[(np.cumsum(brain).reshape(brain.shape) // 500) % len(values)]
        write_nifti(tmp_path / "a.nii.gz", choice, ANISOTROPIC)
        with pytest.raises(BadScan, match=r"E-SCAN-LABELS.*looks like a mask"):
            read_scan(tmp_path / "a.nii.gz")


def test_a_scan_given_as_brain_mask_is_refused_and_an_atlas_is_a_brain_mask(tmp_path: Path) -> None:
    scan = stored(tmp_path / "scan.nii.gz", ANISOTROPIC)
    whole = np.round(anatomy(ANISOTROPIC) * 40).astype(np.int16)
    write_nifti(tmp_path / "as-mask.nii.gz", whole, ANISOTROPIC)
    with pytest.raises(BadScan, match=r"E-MASK-SCAN.*looks like a scan"):
        read_subject(Subject("a", {"T1": scan}, tmp_path / "as-mask.nii.gz"), ("T1",))
    regions = np.where(whole > 0, 1 + whole % 400, 0).astype(np.int16)
    write_nifti(tmp_path / "atlas.nii.gz", regions, ANISOTROPIC)
    reading = read_subject(Subject("a", {"T1": scan}, tmp_path / "atlas.nii.gz"), ("T1",))
    np.testing.assert_array_equal(reading.volume.brain_mask, whole > 0)
    write_nifti(tmp_path / "negative.nii.gz", np.where(whole > 0, -1, 0).astype(np.int16), ANISOTROPIC)
    with pytest.raises(BadScan, match="E-MASK-NEGATIVE"):
        read_subject(Subject("a", {"T1": scan}, tmp_path / "negative.nii.gz"), ("T1",))
