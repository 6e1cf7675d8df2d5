"""NIfTI in and out. Nothing is trusted because it parsed: the stream is read to its end, the header is checked first.

A damaged or ambiguous file is refused with a code; what was changed on the way in is said in `notes`.
"""

import contextlib
import gzip
import math
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float32, Float64, Int32, Shaped

from data import trouble
from data.errors import BadInput, EnvironmentProblem
from data.nifti_bytes import DEFLATE_LIMIT, check_name, read_bytes, refuse_unreadable
from data.nifti_digits import Raw, refuse_lost_digits, refuse_uninformative, rounded_labels, scaled_float32
from data.nifti_header import FORM_TOLERANCE_MM, Header, parse_header, refuse
from data.volume import Grid, frozen
from data.whole_files import scratch_name

MAX_BYTES = 2 << 30
"""Largest uncompressed file that is read; the float32 copy comes on top."""


@dataclass(frozen=True, eq=False)
class Scan:
    """One contrast in RAS+ order (an oblique rest stays in the affine), what was noticed, and the file's SHA-256.

    Voxels may hold NaN or infinity; then a note gives their number.
    """

    voxels: Float32[np.ndarray, "x y z"]
    grid: Grid
    notes: tuple[str, ...]
    sha256: str
    axes: str = "RAS"
    """Axis codes in which the file stores its voxels."""


@dataclass(frozen=True, eq=False)
class Labels:
    """A label map in RAS+ order."""

    voxels: Int32[np.ndarray, "x y z"]
    grid: Grid
    notes: tuple[str, ...]
    sha256: str


def read_scan(
    path: Path, *, volume_index: int | None = None, max_bytes: int = MAX_BYTES, header_form: str = ""
) -> Scan:
    """The scan in a .nii or .nii.gz file (NIfTI-1 or 2, either byte order), in RAS+ order and mm.

    The gzip stream is read to its end (CRC and length), the header is held against the file before memory is taken,
    scaling is applied once. `volume_index` picks a volume of a 4-D file, `header_form` (sform, qform) the orientation
    that is right where both are given. BadScan for everything that is wrong or
    ambiguous, also for images without information (constant) and for label maps.
    """
    path = Path(path)
    with _memory_named(path):
        raw = _read(path, volume_index, max_bytes, _bytes_for_scan, header_form)
        notes = list(raw.notes)
        voxels = scaled_float32(raw)
        finite = np.isfinite(voxels)
        bad = int(voxels.size - np.count_nonzero(finite))
        if bad:
            notes.append(f"{bad} of {voxels.size} voxels are NaN or infinite.")
        refuse_lost_digits(raw)
        refuse_uninformative(raw.path, voxels[finite] if bad else voxels.ravel(order="K"))
        canonical, grid = _canonical(voxels, raw.affine, raw.path, notes)
    return Scan(frozen(canonical), grid, tuple(notes), raw.sha256, "".join(nib.aff2axcodes(raw.affine)))


def read_labels(path: Path, *, max_bytes: int = MAX_BYTES, cut: float | None = None, header_form: str = "") -> Labels:
    """The label map in a NIfTI file: whole numbers only, in RAS+ order; as strict as `read_scan`.

    Values within 1e-4 of a whole number are rounded, with a note. BadScan E-LAB-SOFT for anything in between, unless
    `cut` says from which probability on a voxel belongs to the mask.
    """
    path = Path(path)
    with _memory_named(path):
        raw = _read(path, None, max_bytes, _bytes_for_labels, header_form)
        notes = list(raw.notes)
        values = raw.voxels
        if values.dtype.kind == "f" or (raw.slope, raw.inter) != (1.0, 0.0):
            values = rounded_labels(raw, notes, cut)
        limits = np.iinfo(np.int32)
        if values.min() < limits.min or values.max() > limits.max:
            refuse("E-LAB-RANGE", raw.path, "labels do not fit into 32 bits.", "A label map is expected; give one.")
        canonical, grid = _canonical(values.astype(np.int32), raw.affine, raw.path, notes)
    return Labels(frozen(canonical), grid, tuple(notes), raw.sha256)


def claimed_voxels(path: Path) -> int:
    """How many voxels a volume of a file has by its header, for estimates; 0 when that cannot be read.

    The header is not believed beyond what a file of that size can hold.
    """
    header = _claimed(path)
    if header is None:
        return 0
    packed = path.name.lower().endswith(".gz")
    most = path.stat().st_size * (DEFLATE_LIMIT if packed else 1)
    return min(math.prod(header.shape[:3]), most, MAX_BYTES)


def volumes_of(path: Path) -> int:
    """How many volumes a file has by its header; 1 when that cannot be read."""
    header = _claimed(path)
    return 1 if header is None or len(header.shape) < 4 else int(header.shape[3])


def _claimed(path: Path) -> Header | None:
    """The header by itself; None when it cannot be read. Of two orientations none is judged."""
    packed = path.name.lower().endswith(".gz")
    try:
        with path.open("rb") as file:
            start = gzip.GzipFile("", "rb", fileobj=file).read(1024) if packed else file.read(1024)
        return parse_header(path, start, "sform")
    except (OSError, EOFError, zlib.error, BadInput):
        return None


def write_nifti(path: Path, values: Shaped[np.ndarray, "x y z"], grid: Grid, *, description: str = "") -> None:
    """Write an array on its grid, atomically; equal arrays give equal bytes.

    bool becomes uint8; uint8, int16, int32 and float32 are kept; other floats become float32. sform and qform are
    both set, unless the affine is sheared: a qform cannot hold shears, then only the sform is.
    EnvironmentProblem when it cannot be written.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise BadInput(f"Cannot write {path}: only .nii and .nii.gz are written. Rename it.")
    array = _storable(np.asarray(values), grid)
    block = _header_block(array, grid, description)
    scratch = path.with_name(scratch_name())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("xb") as file:
            packed = gzip.GzipFile("", "wb", 6, file, mtime=0) if path.name.endswith(".gz") else file
            packed.write(block)
            packed.write(array.tobytes(order="F"))
            if packed is not file:
                packed.close()
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise EnvironmentProblem(
            f"Could not write {path}: {error.strerror or error}. "
            f"{trouble.remedy(error, path.parent, f'at most {len(block) + array.nbytes} bytes')} "
            "The file that was there before is intact."
        ) from error
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _memory_named(path: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        refuse("E-NII-MEMORY", path, "does not fit into memory.", "Resample it to a coarser grid first.")


def _bytes_for_scan(header: Header) -> int:
    """Peak of reading a scan: the file, one float32 copy and the same in RAS+ order, and which voxels are finite."""
    return header.file_bytes + 9 * math.prod(header.shape[:3])


def _bytes_for_labels(header: Header) -> int:
    """Peak of reading a label map: the file and two int32 copies, or float64 copies where labels must be rounded."""
    whole = header.dtype.kind != "f" and (header.slope, header.inter) == (1.0, 0.0)
    return header.file_bytes + (8 if whole else 33) * math.prod(header.shape[:3])


def _read(path: Path, volume_index: int | None, max_bytes: int, needed: Callable[[Header], int], form: str = "") -> Raw:
    check_name(path)
    try:
        header, buffer, sha256 = trouble.patiently(lambda: read_bytes(path, max_bytes, needed, form))
    except OSError as error:
        refuse_unreadable(path, error)
    voxels = np.frombuffer(buffer, dtype=header.dtype, offset=header.offset).reshape(header.shape, order="F")
    notes = list(header.notes)
    voxels = _three_axes(path, voxels, volume_index, notes)
    return Raw(path, voxels, header.slope, header.inter, header.affine, tuple(notes), sha256)


def _three_axes(path: Path, voxels: np.ndarray, volume_index: int | None, notes: list[str]) -> np.ndarray:
    extra: tuple[int, ...] = voxels.shape[3:]
    if extra and max(extra) == 1:
        notes.append(f"Trailing axes of length 1 dropped: {voxels.shape}.")
        voxels = voxels.reshape(voxels.shape[:3], order="F")
        extra = ()
    if not extra:
        if volume_index not in (None, 0):
            refuse("E-NII-VOLUME", path, f"holds 1 volume, volume {volume_index} was asked for.", "Ask for volume 0.")
        return voxels
    if max(extra[1:], default=1) > 1:
        refuse("E-NII-5D", path, f"has shape {voxels.shape}: more than a series of volumes.", "Export one volume.")
    if volume_index is None:
        refuse(
            "E-NII-4D", path, f"is a series of {extra[0]} volumes.",
            f"Which one is meant is not guessed: say --volume with a number from 0 to {extra[0] - 1}.",
        )  # fmt: skip
    if not 0 <= volume_index < extra[0]:
        refuse("E-NII-VOLUME", path, f"has volumes 0 to {extra[0] - 1}, not {volume_index}.", "Choose one of them.")
    notes.append(f"Volume {volume_index} of {extra[0]} taken.")
    return voxels.reshape((*voxels.shape[:3], extra[0]), order="F")[..., volume_index]


def in_stored_order(values: np.ndarray, grid: Grid, axes: str) -> tuple[np.ndarray, Grid]:
    """A RAS+ array and its grid with axes permuted and flipped to `axes` (of the scan's file), the world unchanged."""
    have, want = (nib.orientations.axcodes2ornt(tuple(codes)) for codes in (grid.orientation, axes))
    turn = nib.orientations.ornt_transform(have, want)
    turned = np.ascontiguousarray(nib.orientations.apply_orientation(values, turn))
    x, y, z = turned.shape
    return turned, Grid((x, y, z), grid.affine @ nib.orientations.inv_ornt_aff(turn, grid.shape))


def _canonical(
    voxels: np.ndarray, affine: Float64[np.ndarray, "4 4"], path: Path, notes: list[str]
) -> tuple[np.ndarray, Grid]:
    """The array with axes permuted and flipped to the closest RAS+ order, and its grid."""
    turn = nib.orientations.io_orientation(affine)
    if np.isnan(turn).any():
        refuse("E-NII-AFFINE", path, "has an affine without clear axes.", "Save it again from the original.")
    before = Grid(voxels.shape, affine).orientation  # type: ignore[arg-type]
    turned = np.ascontiguousarray(nib.orientations.apply_orientation(voxels, turn))
    after = Grid(turned.shape, affine @ nib.orientations.inv_ornt_aff(turn, voxels.shape))  # type: ignore[arg-type]
    if before != after.orientation:
        notes.append(f"Axes reordered from {before} to {after.orientation}.")
    return turned, after


def _storable(values: np.ndarray, grid: Grid) -> np.ndarray:
    if values.shape != grid.shape:
        raise BadInput(f"An array of shape {values.shape} does not fit the grid {grid.shape}. Give its own grid.")
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype.kind == "f":
        return values.astype("<f4")
    if values.dtype in (np.uint8, np.int16, np.int32):
        return values.astype(values.dtype.newbyteorder("<"))
    raise BadInput(f"Cannot write {values.dtype} voxels. Allowed: bool, uint8, int16, int32 and floats.")


def _header_block(array: np.ndarray, grid: Grid, description: str) -> bytes:
    header = nib.Nifti1Header(endianness="<")
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_xyzt_units("mm")
    header.set_sform(grid.affine, code=2)
    header.set_qform(grid.affine, code=2, strip_shears=True)
    header["pixdim"][1:4] = grid.spacing_mm
    if np.abs(Grid(grid.shape, header.get_qform()).corners_mm() - grid.corners_mm()).max() > FORM_TOLERANCE_MM / 2:
        header["qform_code"] = 0
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    header["vox_offset"], header["magic"] = 352, b"n+1"
    header["descrip"] = description.encode("ascii", "replace")[:79]
    return bytes(header.binaryblock) + b"\0\0\0\0"
