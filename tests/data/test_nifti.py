"""Damaged, ambiguous and odd NIfTI files: each is refused with its code, or read right with a note."""

import gzip
import itertools
import random
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data.errors import BadInput, EnvironmentProblem
from data.nifti import in_stored_order, read_labels, read_scan, write_nifti
from data.nifti_header import BadScan
from data.volume import Grid

REAL = Path(__file__).parents[2] / ".." / "shared" / "mri"
SHAPE = (9, 10, 11)
AFFINE = np.array([[2.0, 0, 0, -9], [0, 2.0, 0, -7], [0, 0, 3.0, 5], [0, 0, 0, 1]])
# Byte offsets of NIfTI-1 header fields.
DIM, DATATYPE, BITPIX, PIXDIM, VOX_OFFSET, SLOPE, INTER, UNITS = 40, 70, 72, 76, 108, 112, 116, 123
QFORM, SFORM, QUATERN, SROW, MAGIC = 252, 254, 256, 280, 344


def noise(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).normal(100, 20, shape).astype(np.float32)


def plain(tmp_path: Path, values: np.ndarray | None = None) -> bytearray:
    path = tmp_path / "source.nii"
    values = noise() if values is None else values
    write_nifti(path, values, Grid(values.shape, AFFINE))
    return bytearray(path.read_bytes())


def put(block: bytearray, offset: int, form: str, *values: float) -> bytearray:
    block = bytearray(block)
    struct.pack_into("<" + form, block, offset, *values)
    return block


def saved(tmp_path: Path, content: bytes, name: str = "scan.nii") -> Path:
    path = tmp_path / name
    path.write_bytes(bytes(content))
    return path


def code_of(path: Path, **arguments: int) -> str:
    with pytest.raises(BadScan) as caught:
        read_scan(path, **arguments)
    assert caught.value.path == path
    assert str(path) in str(caught.value)
    assert str(caught.value).startswith(caught.value.code + ": ")
    return caught.value.code


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "Ünï “quoted” -x.nii.gz"])
def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    values = noise()
    write_nifti(tmp_path / name, values, Grid(SHAPE, AFFINE), description="test")
    scan = read_scan(tmp_path / name)
    assert (scan.voxels == values).all()
    assert scan.voxels.dtype == np.float32
    np.testing.assert_array_equal(scan.grid.affine, AFFINE)
    assert scan.notes == ()
    seen = nib.load(tmp_path / name)
    assert (np.asarray(seen.dataobj) == values).all()
    assert int(seen.header["qform_code"]) > 0
    assert int(seen.header["sform_code"]) > 0
    np.testing.assert_allclose(seen.get_qform(), AFFINE, atol=1e-5)


def test_equal_arrays_give_equal_bytes_and_names_do_not_matter(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, noise(), Grid(SHAPE, AFFINE))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_mask_is_written_as_uint8_and_a_sheared_affine_survives(tmp_path: Path) -> None:
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.5
    write_nifti(tmp_path / "m.nii.gz", noise() > 100, Grid(SHAPE, sheared))
    labels = read_labels(tmp_path / "m.nii.gz")
    assert nib.load(tmp_path / "m.nii.gz").get_data_dtype() == np.uint8
    assert (labels.voxels == (noise() > 100)).all()
    np.testing.assert_allclose(labels.grid.affine, sheared, atol=1e-6)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(EnvironmentProblem):
        write_nifti(tmp_path / "file" / "x.nii.gz", noise(), Grid(SHAPE, AFFINE))
    with pytest.raises(BadInput, match="does not fit the grid"):
        write_nifti(tmp_path / "x.nii.gz", noise((2, 3, 4)), Grid(SHAPE, AFFINE))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def _flip_middle(packed: bytes) -> bytes:
    return packed[: len(packed) // 2] + bytes([packed[len(packed) // 2] ^ 16]) + packed[len(packed) // 2 + 1 :]


GZIP_FAULTS = {
    "half": (lambda g: g[: len(g) // 2], "E-NII-GZIP-TRUNC"),
    "last 8 missing": (lambda g: g[:-8], "E-NII-GZIP-TRUNC"),
    "last 4 missing": (lambda g: g[:-4], "E-NII-GZIP-TRUNC"),
    "wrong CRC": (lambda g: g[:-8] + bytes([g[-8] ^ 1]) + g[-7:], "E-NII-GZIP-CRC"),
    "wrong ISIZE": (lambda g: g[:-4] + bytes([g[-4] ^ 1]) + g[-3:], "E-NII-GZIP-CRC"),
    "flipped bit": (_flip_middle, "E-NII-GZIP-CRC"),
    "trailing garbage": (lambda g: g + b"garbage", "E-NII-GZIP-TRAILING"),
    "a second whole file": (lambda g: g + g, "E-NII-SIZE"),
    "not gzip": (lambda g: gzip.decompress(g), "E-NII-NOT-GZIP"),
    "empty": (lambda g: b"", "E-NII-EMPTY"),
    "lfs pointer": (lambda g: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "E-NII-POINTER"),
    "annex pointer": (lambda g: b"/annex/objects/MD5E-s1--0.nii.gz\n", "E-NII-POINTER"),
}


@pytest.mark.parametrize("fault", GZIP_FAULTS)
def test_a_damaged_gzip_stream_is_named(tmp_path: Path, fault: str) -> None:
    damage, code = GZIP_FAULTS[fault]
    packed = gzip.compress(plain(tmp_path), mtime=0)
    assert code_of(saved(tmp_path, damage(packed), "scan.nii.gz")) == code


def test_a_gzip_file_of_several_members_is_one_stream(tmp_path: Path) -> None:
    block = plain(tmp_path)
    path = saved(tmp_path, gzip.compress(block[:1000]) + gzip.compress(block[1000:]), "scan.nii.gz")
    assert (read_scan(path).voxels == noise()).all()


@pytest.mark.parametrize(
    ("name", "code"),
    [("a.hdr", "E-NII-PAIR"), ("a.img", "E-NII-PAIR"), ("a.mgz", "E-NII-MGZ"), ("a.nii.zst", "E-NII-PACKING"),
     ("a.txt", "E-NII-NAME")],
)  # fmt: skip
def test_other_formats_are_refused_by_name(tmp_path: Path, name: str, code: str) -> None:
    assert code_of(saved(tmp_path, plain(tmp_path), name)) == code


def test_gzip_named_nii_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert code_of(saved(tmp_path, gzip.compress(plain(tmp_path)))) == "E-NII-IS-GZIP"
    assert code_of(tmp_path / "gone.nii.gz") == "E-NII-READ"
    (tmp_path / "folder.nii").mkdir()
    assert code_of(tmp_path / "folder.nii") == "E-NII-READ"
    (tmp_path / "annexed.nii.gz").symlink_to(".git/annex/objects/zz")
    with pytest.raises(BadScan, match="datalad get"):
        read_scan(tmp_path / "annexed.nii.gz")


NAN, INF = float("nan"), float("inf")
HEADER_FAULTS = {
    "larger dim": ((DIM, "8h", 3, 9, 10, 12, 1, 1, 1, 1), "E-NII-SIZE"),
    "smaller dim": ((DIM, "8h", 3, 9, 10, 10, 1, 1, 1, 1), "E-NII-SIZE"),
    "negative dim": ((DIM, "8h", 3, -9, 10, 11, 1, 1, 1, 1), "E-NII-DIM"),
    "huge dim": ((DIM, "8h", 3, 32767, 32767, 32767, 1, 1, 1, 1), "E-NII-SIZE"),
    "zero dim": ((DIM, "8h", 3, 0, 10, 11, 1, 1, 1, 1), "E-NII-DIM"),
    "no dims": ((DIM, "h", 0), "E-NII-DIM"),
    "eight dims": ((DIM, "h", 8), "E-NII-DIM"),
    "2-D": ((DIM, "8h", 2, 90, 11, 1, 1, 1, 1, 1), "E-NII-2D"),
    "one slice": ((DIM, "8h", 3, 90, 11, 1, 1, 1, 1, 1), "E-NII-2D"),
    "vox_offset 0": ((VOX_OFFSET, "f", 0.0), "E-NII-OFFSET"),
    "vox_offset NaN": ((VOX_OFFSET, "f", NAN), "E-NII-OFFSET"),
    "vox_offset huge": ((VOX_OFFSET, "f", 1e30), "E-NII-OFFSET"),
    "scale to infinity": ((SLOPE, "2f", 1.0, INF), "E-NII-SCALE"),
    "beyond float32": ((SLOPE, "2f", 3e38, 0.0), "E-NII-OVERFLOW"),
    "pixdim 0": ((PIXDIM + 4, "f", 0.0), "E-NII-PIXDIM"),
    "pixdim NaN": ((PIXDIM + 4, "f", NAN), "E-NII-PIXDIM"),
    "pixdim other than the affine": ((PIXDIM + 4, "3f", 1.0, 1.0, 1.0), "E-NII-PIXDIM"),
    "sform NaN": ((SROW, "f", NAN), "E-NII-AFFINE"),
    "sform singular": ((SROW, "12f", *([2.0, 0, 0, 0] * 2), 0, 0, 3.0, 0), "E-NII-AFFINE"),
    "left and right differ": ((SROW, "4f", -2.0, 0, 0, 9), "E-NII-FORMS"),
    "forms apart by 0.2 mm": ((SROW + 12, "f", -8.8), "E-NII-FORMS"),
    "no rotation": ((QUATERN, "f", 1.7), "E-NII-AFFINE"),
    "codes 0": ((QFORM, "2h", 0, 0), "E-NII-ORIENT"),
    "metres": ((UNITS, "B", 1), "E-NII-SPACING"),
    "no such unit": ((UNITS, "B", 7), "E-NII-UNITS"),
    "complex": ((DATATYPE, "2h", 32, 64), "E-NII-KIND"),
    "RGB": ((DATATYPE, "2h", 128, 24), "E-NII-KIND"),
    "128-bit floats": ((DATATYPE, "2h", 1536, 128), "E-NII-KIND"),
    "no such type": ((DATATYPE, "2h", 999, 32), "E-NII-DTYPE"),
    "bits disagree": ((BITPIX, "h", 16), "E-NII-DTYPE"),
    "pair": ((MAGIC, "4s", b"ni1\0"), "E-NII-PAIR"),
    "Analyze": ((MAGIC, "4s", b"\0\0\0\0"), "E-NII-PAIR"),
    "no magic": ((MAGIC, "4s", b"abc\0"), "E-NII-MAGIC"),
    "header size": ((0, "i", 347), "E-NII-MAGIC"),
}


@pytest.mark.parametrize("fault", HEADER_FAULTS)
def test_a_header_that_is_impossible_or_ambiguous_is_refused(tmp_path: Path, fault: str) -> None:
    (offset, form, *values), code = HEADER_FAULTS[fault]
    assert code_of(saved(tmp_path, put(plain(tmp_path), offset, form, *values))) == code


def test_a_gzip_bomb_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    import tracemalloc

    block = put(plain(tmp_path), DIM, "8h", 3, 1500, 1500, 1100, 1, 1, 1, 1)
    path = saved(tmp_path, gzip.compress(block[:352] + bytes(1 << 20)), "bomb.nii.gz")
    tracemalloc.start()
    assert code_of(path) == "E-NII-BOMB"
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


def test_a_stream_longer_than_its_header_says_is_dropped_early(tmp_path: Path) -> None:
    path = saved(tmp_path, gzip.compress(plain(tmp_path) + bytes(64 << 20), 9), "long.nii.gz")
    assert code_of(path) == "E-NII-SIZE"


def test_a_file_over_the_limit_is_refused_with_an_estimate(tmp_path: Path) -> None:
    path = tmp_path / "huge.nii"
    path.write_bytes(put(plain(tmp_path), DIM, "8h", 3, 1300, 1300, 1300, 1, 1, 1, 1)[:352])
    with path.open("r+b") as file:
        file.truncate(352 + 4 * 1300**3)
    with pytest.raises(BadScan, match=r"E-NII-TOO-LARGE.*8\.2 GiB"):
        read_scan(path)
    assert code_of(saved(tmp_path, plain(tmp_path)), max_bytes=1000) == "E-NII-TOO-LARGE"


@pytest.mark.parametrize(("value", "code"), [(0.0, "E-SCAN-CONSTANT"), (7.5, "E-SCAN-CONSTANT"), (NAN, "E-SCAN-NAN")])
def test_a_scan_without_information_is_refused(tmp_path: Path, value: float, code: str) -> None:
    assert code_of(saved(tmp_path, plain(tmp_path, np.full(SHAPE, value, dtype=np.float32)))) == code


def test_a_mask_given_as_a_scan_is_refused(tmp_path: Path) -> None:
    assert code_of(saved(tmp_path, plain(tmp_path, (noise() > 100).astype(np.uint8)))) == "E-SCAN-LABELS"


def test_voxels_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    values = noise()
    values[0, 0, :3] = [NAN, INF, -INF]
    scan = read_scan(saved(tmp_path, plain(tmp_path, values)))
    assert scan.notes == ("3 of 990 voxels are NaN or infinite.",)
    np.testing.assert_array_equal(scan.voxels, values)


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("image", [nib.Nifti1Image, nib.Nifti2Image])
def test_scaling_is_applied_once_for_every_type_byte_order_and_version(
    tmp_path: Path, kind: str, order: str, image: type
) -> None:
    dtype = np.dtype(order + kind)
    top = 60000 if kind == "u2" else 100
    stored = np.random.Generator(np.random.Philox(1)).integers(0, top, SHAPE).astype(dtype)
    header = image.header_class(endianness=order)
    header.set_data_dtype(dtype)
    made = image(stored, AFFINE, header)
    made.header.set_slope_inter(0.5, -3.0)
    made.set_qform(AFFINE, 1)
    made.header.set_xyzt_units("mm")
    made.header["vox_offset"] = 352 if image is nib.Nifti1Image else 544
    made.header["magic"] = b"n+1" if image is nib.Nifti1Image else b"n+2"
    start = made.header.binaryblock + b"\0" * 4
    path = saved(tmp_path, start + stored.tobytes(order="F"))
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.voxels, (stored.astype(np.float64) * 0.5 - 3.0).astype(np.float32))
    np.testing.assert_allclose(scan.grid.affine, AFFINE)


@pytest.mark.parametrize(("slope", "inter", "noted"), [(0.0, 5.0, False), (NAN, NAN, False), (INF, 0.0, True)])
def test_a_slope_that_scales_nothing_is_read_unscaled(tmp_path: Path, slope: float, inter: float, noted: bool) -> None:
    scan = read_scan(saved(tmp_path, put(plain(tmp_path), SLOPE, "2f", slope, inter)))
    assert (scan.voxels == noise()).all()
    assert bool(scan.notes) is noted


def test_units_are_converted_and_missing_ones_are_noted(tmp_path: Path) -> None:
    block = plain(tmp_path)
    for unit, scale, word in ((1, 1000.0, "from m "), (3, 0.001, "µm"), (0, 1.0, "mm assumed")):
        scaled = put(block, UNITS, "B", unit)
        for offset, values in ((PIXDIM + 4, (2, 2, 3)), (SROW, AFFINE[:3].ravel()), (QUATERN + 12, AFFINE[:3, 3])):
            scaled = put(scaled, offset, f"{len(values)}f", *[v / scale for v in values])
        scan = read_scan(saved(tmp_path, scaled))
        np.testing.assert_allclose(scan.grid.affine, AFFINE, rtol=1e-6)
        assert word in scan.notes[0]


def test_a_qform_alone_is_read_as_nibabel_reads_it(tmp_path: Path) -> None:
    angle = 0.3
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, -1.0]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * [2.0, 2.0, 3.0], [5.0, 6, 7]
    made = nib.Nifti1Image(noise(), None)
    made.set_qform(affine, 1)
    made.set_sform(None, 0)
    nib.save(made, tmp_path / "q.nii")
    want = nib.as_closest_canonical(nib.load(tmp_path / "q.nii"))
    scan = read_scan(tmp_path / "q.nii")
    np.testing.assert_allclose(scan.grid.affine, want.affine, atol=1e-5)
    np.testing.assert_array_equal(scan.voxels, want.get_fdata(dtype=np.float32))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", list(itertools.product((1, -1), repeat=3)))
def test_storage_orientation_does_not_matter(tmp_path: Path, order: tuple[int, ...], flips: tuple[int, ...]) -> None:
    turned = np.transpose(noise(), order)[:: flips[0], :: flips[1], :: flips[2]]
    move = np.zeros((4, 4))
    move[3, 3] = 1
    for new, old in enumerate(order):
        move[old, new] = flips[new]
        move[old, 3] = 0 if flips[new] > 0 else SHAPE[old] - 1
    path = tmp_path / "turned.nii"
    write_nifti(path, turned, Grid(turned.shape, AFFINE @ move))
    scan = read_scan(path)
    assert (scan.voxels == noise()).all()
    np.testing.assert_allclose(scan.grid.affine, AFFINE, atol=1e-5)
    assert scan.grid.orientation == "RAS"


def test_a_series_needs_a_choice_and_trailing_ones_do_not(tmp_path: Path) -> None:
    series = noise((*SHAPE, 3))
    nib.save(nib.Nifti1Image(series, AFFINE), tmp_path / "t.nii.gz")
    assert code_of(tmp_path / "t.nii.gz") == "E-NII-4D"
    assert code_of(tmp_path / "t.nii.gz", volume_index=3) == "E-NII-VOLUME"
    assert (read_scan(tmp_path / "t.nii.gz", volume_index=2).voxels == series[..., 2]).all()
    nib.save(nib.Nifti1Image(noise((*SHAPE, 1, 3)), AFFINE), tmp_path / "v.nii.gz")
    assert code_of(tmp_path / "v.nii.gz") == "E-NII-5D"
    block = put(plain(tmp_path), DIM, "8h", 5, *SHAPE, 1, 1, 1, 1)
    scan = read_scan(saved(tmp_path, block))
    assert (scan.voxels == noise()).all()
    assert "Trailing axes" in scan.notes[0]


@pytest.mark.parametrize("size", [-1, 0, 7, 1 << 30])
def test_a_hostile_extension_is_never_parsed(tmp_path: Path, size: int) -> None:
    block = plain(tmp_path)
    extension = bytearray(b"\1\0\0\0") + struct.pack("<2i", size, 4) + b"x" * 24
    block = put(block[:348] + extension + block[352:], VOX_OFFSET, "f", 348 + len(extension))
    assert (read_scan(saved(tmp_path, block)).voxels == noise()).all()


def test_labels_are_whole_numbers(tmp_path: Path) -> None:
    values = np.zeros(SHAPE, dtype=np.float32)
    values[2:4] = 4
    path = tmp_path / "l.nii.gz"
    write_nifti(path, values, Grid(SHAPE, AFFINE))
    labels = read_labels(path)
    assert labels.voxels.dtype == np.int32
    assert (labels.voxels == values).all()
    for value, code in ((0.5, "E-LAB-SOFT"), (0.9999, "E-LAB-SOFT"), (NAN, "E-LAB-NAN"), (1e12, "E-LAB-RANGE")):
        values[0, 0, 0] = value
        write_nifti(path, values, Grid(SHAPE, AFFINE))
        with pytest.raises(BadScan, match=code):
            read_labels(path)


def test_no_header_however_mutated_gives_another_error_or_a_broken_scan(tmp_path: Path) -> None:
    draw = random.Random(20)
    block = plain(tmp_path)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(400):
        mutated = bytearray(block)
        for _ in range(draw.choice((1, 1, 2, 8, 40))):
            mutated[draw.randrange(352)] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
        packed = draw.random() < 0.3
        content = zlib.compress(bytes(mutated), 1, 31) if packed else bytes(mutated)
        path = saved(tmp_path, content, "m.nii.gz" if packed else "m.nii")
        try:
            scan = read_scan(path)
        except BadInput:
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        assert scan.voxels.shape == scan.grid.shape
        assert scan.voxels.dtype == np.float32
        assert scan.voxels.flags.c_contiguous
        assert np.isfinite(scan.grid.affine).all()
        assert 0.01 <= min(scan.grid.spacing_mm) <= max(scan.grid.spacing_mm) <= 100
    assert min(outcomes.values()) > 40


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no real scans beside the project")
def test_real_scans_read_as_nibabel_reads_them() -> None:
    for path in sorted(REAL.glob("lesions/*/t1.nii.gz")):
        want = nib.as_closest_canonical(nib.load(path))
        scan = read_scan(path)
        np.testing.assert_allclose(scan.voxels, want.get_fdata(dtype=np.float32), atol=1e-3)
        np.testing.assert_allclose(scan.grid.affine, want.affine)


@pytest.mark.parametrize("axes", ["RAS", "PSR", "LPI", "SAL"])
def test_an_array_in_ras_order_goes_back_to_the_order_of_its_file(tmp_path: Path, axes: str) -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    grid = Grid((2, 3, 4), np.array([[2.0, 0, 0, -5], [0, 3, 0, 7], [0, 0, 4, 1], [0, 0, 0, 1]]))
    stored, stored_grid = in_stored_order(values, grid, axes)
    assert stored_grid.orientation == axes
    write_nifti(tmp_path / "stored.nii.gz", stored, stored_grid)
    again = read_scan(tmp_path / "stored.nii.gz")
    assert again.axes == axes
    assert again.grid.matches(grid)
    np.testing.assert_array_equal(again.voxels, values)
