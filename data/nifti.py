"""NIfTI in and out. Nothing is trusted because it parsed: the stream is read to its end, the header is checked first.

A damaged or ambiguous file is refused with a code; what was changed on the way in is said in `notes`.
"""

import contextlib
import gzip
import hashlib
import math
import os
import resource
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import nibabel as nib
import numpy as np
import psutil
from jaxtyping import Float32, Float64, Int32, Shaped

from data import trouble
from data.errors import BadInput, EnvironmentProblem
from data.files import faultpoint, scratch_name
from data.nifti_header import FORM_TOLERANCE_MM, Header, parse_header, refuse
from data.volume import Grid, frozen

MAX_BYTES = 2 << 30
"""Largest uncompressed file that is read; the float32 copy comes on top."""
DEFLATE_LIMIT = 1032
"""Deflate cannot expand a byte into more than this (zlib technical notes)."""
MOST_MASK_VALUES = 8
"""An image of so few values is a mask."""
NEARLY_WHOLE = 1e-4
"""How far a label may lie from a whole number: resampling and compression leave 0.99994."""
LARGEST_ERROR = 0.01
"""How far float32 may move a voxel, in standard deviations of the non-zero voxels."""
_CHUNK = 1 << 20
_POINTERS = (b"version https://git-lfs", b"/annex/objects", b".git/annex", b"../.git/annex")


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
        voxels = _scaled_float32(raw)
        finite = np.isfinite(voxels)
        bad = int(voxels.size - np.count_nonzero(finite))
        if bad:
            notes.append(f"{bad} of {voxels.size} voxels are NaN or infinite.")
        _refuse_lost_digits(raw)
        _refuse_uninformative(raw.path, voxels[finite] if bad else voxels.ravel(order="K"))
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
            values = _rounded(raw, notes, cut)
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


@dataclass(frozen=True, eq=False)
class _Raw:
    path: Path
    voxels: Shaped[np.ndarray, "x y z"]
    slope: float
    inter: float
    affine: Float64[np.ndarray, "4 4"]
    notes: tuple[str, ...]
    sha256: str


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


def _free_memory() -> int:
    """Bytes that this process can still take: what the system has left, or less under a limit of its address space."""
    free = int(psutil.virtual_memory().available)
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        free = min(free, limit - int(psutil.Process().memory_info().vms))
    return max(0, free)


def _read(
    path: Path, volume_index: int | None, max_bytes: int, needed: Callable[[Header], int], form: str = ""
) -> _Raw:
    _check_name(path)
    try:
        header, buffer, sha256 = trouble.patiently(lambda: _read_bytes(path, max_bytes, needed, form))
    except OSError as error:
        refuse_unreadable(path, error)
    voxels = np.frombuffer(buffer, dtype=header.dtype, offset=header.offset).reshape(header.shape, order="F")
    notes = list(header.notes)
    voxels = _three_axes(path, voxels, volume_index, notes)
    return _Raw(path, voxels, header.slope, header.inter, header.affine, tuple(notes), sha256)


def _read_bytes(
    path: Path, max_bytes: int, needed: Callable[[Header], int], form: str
) -> tuple[Header, bytearray, str]:
    """Header, all bytes of the uncompressed file, and the hash of the file as it lies on the disk."""
    faultpoint(f"read.{path.parent.name}/{path.name}")
    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
        _check_start(path, start, size)
        file.seek(0)
        chunks = _chunks(file, digest)
        stream = _inflated(path, chunks) if path.name.lower().endswith(".gz") else chunks
        header, buffer = _fill(path, stream, size, max_bytes, needed, form)
    return header, buffer, digest.hexdigest()


def _check_name(path: Path) -> None:
    name = path.name.lower()
    if name.endswith((".hdr", ".img", ".hdr.gz", ".img.gz")):
        refuse(
            "E-NII-PAIR", path, "is half of an Analyze or NIfTI pair; such pairs lose their orientation easily.",
            "Convert it to one file: nib-convert or dcm2niix to .nii.gz.",
        )  # fmt: skip
    if name.endswith((".mgz", ".mgh")):
        refuse("E-NII-MGZ", path, "is a FreeSurfer volume.", "Convert it: mri_convert in.mgz out.nii.gz.")
    if name.endswith((".zst", ".bz2", ".xz", ".zip")):
        refuse("E-NII-PACKING", path, "is packed in a way that is not read.", "Unpack it, then gzip it to .nii.gz.")
    if not name.endswith((".nii", ".nii.gz")):
        refuse("E-NII-NAME", path, "is not a .nii or .nii.gz file.", "Convert it to NIfTI.")


def refuse_unreadable(path: Path, error: OSError) -> NoReturn:
    """Raise BadScan for a file that the system does not give; the same words wherever it is noticed."""
    refuse("E-NII-READ", path, f"cannot be read ({error.strerror or error}).", _remedy_for(path, error))


def _remedy_for(path: Path, error: OSError) -> str:
    if error.errno in trouble.UNSTEADY:
        return (
            "It was tried three times: the disk or the network file system is in trouble. Run again when it is well; "
            "the other subjects go on without it."
        )
    with contextlib.suppress(OSError):
        if path.is_symlink() and "annex" in os.readlink(path):
            return "Its content was not downloaded: run datalad get on it."
    return "Check that it exists and may be read; the other subjects go on without it."


def _check_start(path: Path, start: bytes, size: int) -> None:
    packed = path.name.lower().endswith(".gz")
    if size == 0:
        refuse("E-NII-EMPTY", path, "has 0 bytes: a copy or download did not finish.", "Get the file again.")
    if any(mark in start[:200] for mark in _POINTERS):
        refuse(
            "E-NII-POINTER", path, "is a text pointer, the scan itself was not downloaded.",
            "Run datalad get (git-annex) or git lfs pull on it.",
        )  # fmt: skip
    if packed and start[:2] != b"\x1f\x8b":
        refuse("E-NII-NOT-GZIP", path, "is named .gz but is not gzip.", "Rename it to .nii if it is plain NIfTI.")
    if not packed and start[:2] == b"\x1f\x8b":
        refuse("E-NII-IS-GZIP", path, "is named .nii but is gzip.", "Rename it to .nii.gz.")


def _chunks(file: Any, digest: Any) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        yield chunk


def _inflated(path: Path, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The decompressed stream in bounded pieces; zlib checks CRC and length at the end of every member."""
    member = zlib.decompressobj(wbits=31)
    pending = b""
    for chunk in chunks:
        pending += chunk
        while pending:
            if member.eof:
                if pending[0] != 0x1F:
                    refuse(
                        "E-NII-GZIP-TRAILING", path, "has bytes after the end of its gzip stream.",
                        "Two files may have been joined; get it again.",
                    )  # fmt: skip
                member = zlib.decompressobj(wbits=31)
            try:
                piece = member.decompress(pending, _CHUNK)
            except zlib.error as error:
                refuse(
                    "E-NII-GZIP-CRC", path, f"is damaged: its gzip check failed ({error}); voxels may be wrong.",
                    "Get the file again; libraries that skip this check would show a wrong scan.",
                )  # fmt: skip
            pending = member.unused_data if member.eof else member.unconsumed_tail
            if piece:
                yield piece
    if not member.eof:
        # A piece cut at _CHUNK may leave output inside zlib although no input is left.
        try:
            while piece := member.decompress(b"", _CHUNK):
                yield piece
        except zlib.error as error:
            refuse("E-NII-GZIP-CRC", path, f"is damaged: its gzip check failed ({error}).", "Get the file again.")
    if not member.eof:
        refuse(
            "E-NII-GZIP-TRUNC", path, "ends before its gzip stream does: a copy or download was cut.",
            "Get the file again.",
        )  # fmt: skip


def _fill(
    path: Path, stream: Iterator[bytes], size: int, max_bytes: int, needed: Callable[[Header], int], form: str
) -> tuple[Header, bytearray]:
    """Header and all bytes of the uncompressed file; memory is taken after the header was believed."""
    head = bytearray()
    for piece in stream:
        head += piece
        if len(head) >= 544:
            break
    header = parse_header(path, bytes(head[:544]), form)
    total = header.file_bytes
    _check_size(path, total, size, max_bytes)
    free = _free_memory()
    if needed(header) > free:
        refuse(
            "E-NII-MEMORY", path, f"needs {needed(header) / 2**30:.2f} GiB of memory to be read, free are "
            f"{free / 2**30:.2f} GiB.", "End other work, use fewer workers, or resample it to a coarser grid first.",
        )  # fmt: skip
    buffer = bytearray(total)
    filled = 0

    def put(piece: bytes | bytearray) -> int:
        if filled + len(piece) > total:
            refuse(
                "E-NII-SIZE", path, f"holds more than the {total} bytes that its header speaks of.",
                "Header and data do not belong together; get the file again.",
            )  # fmt: skip
        buffer[filled : filled + len(piece)] = piece
        return filled + len(piece)

    filled = put(head)
    for piece in stream:
        filled = put(piece)
    if filled < total:
        refuse(
            "E-NII-SIZE", path, f"holds {filled} bytes, its header speaks of {total}.",
            "The file was cut or its header is wrong; get it again.",
        )  # fmt: skip
    return header, buffer


def _check_size(path: Path, total: int, size: int, max_bytes: int) -> None:
    packed = path.name.lower().endswith(".gz")
    if packed and total > DEFLATE_LIMIT * size:
        refuse(
            "E-NII-BOMB", path, f"claims {total} bytes in a gzip file of {size}: impossible.",
            "The header lies or the file is damaged; get it again.",
        )  # fmt: skip
    if not packed and total != size:
        refuse(
            "E-NII-SIZE", path, f"has {size} bytes, its header speaks of {total}.",
            "The file was cut or its header is wrong; get it again.",
        )  # fmt: skip
    if total > max_bytes:
        refuse(
            "E-NII-TOO-LARGE", path, f"needs {total / 2**30:.1f} GiB, the limit is {max_bytes / 2**30:.1f} GiB.",
            "Resample it to a coarser grid first.",
        )  # fmt: skip


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


def _scaled_float32(raw: _Raw) -> Float32[np.ndarray, "x y z"]:
    """slope * stored + inter, computed in float64 slice by slice, kept in float32."""
    out: np.ndarray = np.empty(raw.voxels.shape, dtype=np.float32, order="F")
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(out.shape[2]):
            stored = raw.voxels[..., k].astype(np.float64)
            out[..., k] = stored if (raw.slope, raw.inter) == (1.0, 0.0) else stored * raw.slope + raw.inter
            if (np.isinf(out[..., k]) & np.isfinite(stored)).any():
                refuse(
                    "E-NII-OVERFLOW", raw.path, "holds values beyond the range of float32.",
                    "Its scaling is wrong; save it again from the original.",
                )  # fmt: skip
    return out


def _refuse_lost_digits(raw: _Raw) -> None:
    """Refuse a scan whose contrast is lost in float32: values of many digits under a large offset, or near zero."""
    if raw.voxels.dtype.itemsize < 4 and raw.inter == 0.0:
        return
    step = max(1, raw.voxels.size >> 20)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        exact = raw.voxels.ravel(order="K")[::step].astype(np.float64) * raw.slope + raw.inter
        exact = exact[np.isfinite(exact) & (exact != 0)]
        if exact.size < 2 or exact.min() == exact.max():
            return
        unit = float(np.abs(exact).max())
        moved = float(np.abs(exact.astype(np.float32).astype(np.float64) / unit - exact / unit).max())
        spread = float((exact / unit).std())
    if moved > LARGEST_ERROR * spread:
        refuse(
            "E-NII-DIGITS", raw.path, f"holds values around {float(np.median(exact)):.4g} whose differences do not "
            "survive in float32.", "Subtract the offset or rescale it, in float64, and save it again.",
        )  # fmt: skip


def _rounded(raw: _Raw, notes: list[str], cut: float | None) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        values = raw.voxels.astype(np.float64) * raw.slope + raw.inter
    if not np.isfinite(values).all():
        refuse("E-LAB-NAN", raw.path, "holds NaN or infinite labels.", "Give every voxel a label; 0 is none.")
    whole: np.ndarray = np.rint(values)
    away = float(np.abs(values - whole).max())
    if away >= NEARLY_WHOLE:
        low, high = float(values.min()), float(values.max())
        if cut is not None and low >= -NEARLY_WHOLE and high <= 1 + NEARLY_WHOLE:
            notes.append(f"Probabilities from {cut:g} on are the mask, as was asked.")
            return np.asarray(values >= cut, dtype=np.float64)
        refuse(
            "E-LAB-SOFT", raw.path, f"holds fractions ({low:.3g} to {high:.3g}): a soft mask and no label map.",
            "Say from which probability on a voxel belongs to it, such as --mask-cut 0.5, or save 0 and 1.",
        )  # fmt: skip
    if away > 0:
        notes.append(f"Labels rounded to whole numbers (by at most {away:.1g}).")
    return whole


def _refuse_uninformative(path: Path, values: np.ndarray) -> None:
    if values.size == 0:
        refuse("E-SCAN-NAN", path, "holds no finite voxel.", "Save it again from the original.")
    low, high = float(values.min()), float(values.max())
    if low == high:
        kind = "only zeros" if low == 0 else f"one value, {low:g}, everywhere"
        refuse(
            "E-SCAN-CONSTANT", path, f"holds {kind}; a spread of zero would poison every statistic.",
            "Get the scan again.",
        )  # fmt: skip
    few = np.unique(values[:: max(1, values.size // 4096)])
    if few.size > MOST_MASK_VALUES:
        return
    few = np.unique(values)
    if few.size <= MOST_MASK_VALUES:
        refuse(
            "E-SCAN-LABELS", path, f"holds only the values {', '.join(f'{v:g}' for v in few)}: this looks like a mask.",
            "Give the scan, and this file as brain_mask or lesion_mask.",
        )  # fmt: skip


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
