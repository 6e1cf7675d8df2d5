"""The header of a NIfTI file, believed only where it is consistent: shape, type, scaling, and one affine in mm.

NIfTI-1 and NIfTI-2, https://nifti.nimh.nih.gov. Extensions are never parsed.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import nibabel as nib
import numpy as np
from jaxtyping import Float64

from data.errors import BadInput
from data.volume import Grid

FORM_TOLERANCE_MM = 0.1
"""How far qform and sform may put the same corner apart."""
_QUATERNION_ROUNDING = 2e-7
"""What rounding b, c and d to 32 bits can change of b² + c² + d², with a margin of two."""
_MAX_OFFSET = 64 << 20
_DTYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_REFUSED_DTYPES = {
    1: "one bit per voxel", 32: "complex numbers", 128: "RGB colours", 1536: "128-bit floats",
    1792: "complex numbers", 2048: "complex numbers", 2304: "RGBA colours",
}  # fmt: skip
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


class BadScan(BadInput):
    """A file that cannot be used as a scan or mask: `code` names the fault, `path` the file."""

    def __init__(self, code: str, path: Path, cause: str, remedy: str) -> None:
        super().__init__(f"{code}: {path}: {cause} {remedy}")
        self.code = code
        self.path = path


@dataclass(frozen=True, eq=False)
class Header:
    """What the header says; the affine maps voxel indices of the stored order to RAS+ mm."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    inter: float
    affine: Float64[np.ndarray, "4 4"]
    notes: tuple[str, ...]

    @property
    def file_bytes(self) -> int:
        """Bytes that the uncompressed file must have."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def refuse(code: str, path: Path, cause: str, remedy: str) -> NoReturn:
    """Raise BadScan."""
    raise BadScan(code, path, cause, remedy)


def parse_header(path: Path, block: bytes, form: str = "") -> Header:
    """The header in the first 544 bytes of a file. BadScan when anything in it is impossible or ambiguous.

    `form`: sform or qform, the one that is right where both are given and disagree.
    """
    # Signalling NaN in a damaged header would warn where it is converted; every value is checked afterwards.
    with np.errstate(all="ignore"):
        return _believed(path, _fields(path, block), form)


def _believed(path: Path, fields: Any, form: str) -> Header:
    notes: list[str] = []
    shape = _shape(path, fields)
    dtype = _dtype(path, fields)
    first = 352 if int(fields["sizeof_hdr"]) == 348 else 544
    offset = float(fields["vox_offset"])
    if not (first <= offset <= _MAX_OFFSET and offset == int(offset)):
        refuse(
            "E-NII-OFFSET", path, f"starts its voxels at byte {offset:g}, allowed is {first} to {_MAX_OFFSET}.",
            "Header bytes would be read as voxels; save it again from the original.",
        )  # fmt: skip
    slope, inter = _scaling(path, fields, notes)
    affine = _affine(path, fields, shape, notes, form)
    return Header(shape, dtype, int(offset), slope, inter, affine, tuple(notes))


def _fields(path: Path, block: bytes) -> Any:
    """The header as a structured array of nibabel's dtype, byte order from the first field."""
    sizes = {int.from_bytes(block[:4], order): order for order in ("little", "big")}
    for size, kind in ((348, nib.Nifti1Header), (540, nib.Nifti2Header)):
        if size in sizes and len(block) >= size:
            dtype = kind.template_dtype.newbyteorder(">" if sizes[size] == "big" else "<")
            fields = np.frombuffer(block[:size], dtype=dtype)[0]
            magic = bytes(fields["magic"])[:3]
            if magic in (b"ni1", b"ni2") or (size == 348 and not magic.strip(b"\0")):
                refuse(
                    "E-NII-PAIR", path, "has the header of an Analyze or NIfTI pair.", "Convert it to one .nii.gz file."
                )
            if magic == (b"n+1" if size == 348 else b"n+2"):
                return fields
    refuse("E-NII-MAGIC", path, "does not begin with a NIfTI header.", "Convert it to NIfTI, or get it again.")


def _shape(path: Path, fields: Any) -> tuple[int, ...]:
    dim = [int(n) for n in fields["dim"]]
    shape = tuple(dim[1 : dim[0] + 1]) if 1 <= dim[0] <= 7 else ()
    if not shape or min(shape) < 1:
        refuse("E-NII-DIM", path, f"has impossible dimensions {dim}.", "Its header is damaged; get it again.")
    if len(shape) < 3 or min(shape[:3]) < 2:
        refuse("E-NII-2D", path, f"is a slice, not a volume: its shape is {shape}.", "Give a volume.")
    return shape


def _dtype(path: Path, fields: Any) -> np.dtype[Any]:
    code, bits = int(fields["datatype"]), int(fields["bitpix"])
    if code in _REFUSED_DTYPES:
        refuse(
            "E-NII-KIND", path, f"holds {_REFUSED_DTYPES[code]}, not one intensity per voxel.",
            "Export the magnitude or one channel as a scan.",
        )  # fmt: skip
    if code not in _DTYPES or np.dtype(_DTYPES[code]).itemsize * 8 != bits:
        refuse(
            "E-NII-DTYPE", path, f"has data type {code} with {bits} bits, which does not exist.",
            "Its header is damaged; get it again.",
        )  # fmt: skip
    return np.dtype(_DTYPES[code]).newbyteorder(fields.dtype["dim"].base.byteorder)


def _scaling(path: Path, fields: Any, notes: list[str]) -> tuple[float, float]:
    slope, inter = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0.0:
        return 1.0, 0.0
    if not np.isfinite(slope):
        if not (np.isnan(slope) and np.isnan(inter)):
            notes.append(f"The scaling slope is {slope:g}: read unscaled.")
        return 1.0, 0.0
    if not np.isfinite(inter):
        refuse("E-NII-SCALE", path, f"scales by {slope:g} x + {inter:g}.", "Save it again from the original.")
    return slope, inter


def _affine(
    path: Path, fields: Any, shape: tuple[int, ...], notes: list[str], chosen: str
) -> Float64[np.ndarray, "4 4"]:
    scale = _unit(path, fields, notes)
    spacing = np.array(fields["pixdim"][1:4], dtype=np.float64)
    if not np.isfinite(spacing).all() or (spacing <= 0).any():
        refuse("E-NII-PIXDIM", path, f"has voxel sizes {spacing.tolist()}.", "Save it again from the original.")
    given = [name for name in ("sform", "qform") if int(fields[f"{name}_code"]) > 0]
    if not given:
        refuse(
            "E-NII-ORIENT", path, "does not say how it lies in space (qform and sform codes are 0); left and right "
            "are unknown.", "Set the sform from the original DICOM and save it again.",
        )  # fmt: skip
    if chosen not in given:
        chosen = given[0]
        decided = False
    else:
        decided = len(given) == 2

    def grid_of(name: str) -> Grid:
        form = _sform(fields) if name == "sform" else _qform(path, fields, spacing)
        return _believable(path, form, scale, spacing, shape)

    grid = grid_of(chosen)
    for other in given:
        if other == chosen:
            continue
        try:
            apart = float(np.abs(grid.corners_mm() - grid_of(other).corners_mm()).max())
        except BadScan:
            if not decided:
                raise
            apart = math.inf
        if apart <= FORM_TOLERANCE_MM + _qform_doubt_mm(fields, grid):
            continue
        if not decided:
            refuse(
                "E-NII-FORMS", path, f"has a qform and an sform that disagree by {apart:.2f} mm; tools would differ in "
                "where it lies, perhaps in left and right.",
                "Decide which is right and say --header-form sform or --header-form qform.",
            )  # fmt: skip
        notes.append(f"Its {chosen} is taken, as was asked; its {other} lies {apart:.2f} mm apart.")
    return grid.affine


def _unit(path: Path, fields: Any, notes: list[str]) -> float:
    unit = int(fields["xyzt_units"]) & 7
    if unit not in _MM_PER_UNIT:
        refuse("E-NII-UNITS", path, f"has unit code {unit}, which does not exist.", "Set it to mm and save again.")
    if unit in (1, 3):
        notes.append(f"Lengths converted from {'m' if unit == 1 else 'µm'} to mm.")
    elif unit == 0:
        notes.append("The file does not state its unit of length; mm assumed.")
    return _MM_PER_UNIT[unit]


def _sform(fields: Any) -> Float64[np.ndarray, "4 4"]:
    rows = [np.array(fields[name], dtype=np.float64) for name in ("srow_x", "srow_y", "srow_z")]
    return np.vstack([*rows, [0.0, 0.0, 0.0, 1.0]])


def _qform_doubt_mm(fields: Any, grid: Grid) -> float:
    """How far rounding the quaternion to 32 bits can move a corner, mm.

    a = √(1 − b² − c² − d²) is not stored. Near half turns it is near 0, where it loses half of its digits: a
    third of a milliradian, a tenth of a millimetre across a head.
    """
    if fields["quatern_b"].dtype.itemsize > 4:
        return 0.0
    a2 = 1.0 - sum(float(fields[name]) ** 2 for name in ("quatern_b", "quatern_c", "quatern_d"))
    doubt = np.sqrt(max(0.0, a2 + _QUATERNION_ROUNDING)) - np.sqrt(max(0.0, a2 - _QUATERNION_ROUNDING))
    corners = grid.corners_mm()
    return float(2.0 * doubt * np.linalg.norm(corners - corners[0], axis=1).max())


def _qform(path: Path, fields: Any, spacing: Float64[np.ndarray, " 3"]) -> Float64[np.ndarray, "4 4"]:
    """Rotation of the unit quaternion (a, b, c, d) times voxel sizes, third axis flipped when qfac is -1 (nifti1.h)."""
    b, c, d = (float(fields[name]) for name in ("quatern_b", "quatern_c", "quatern_d"))
    length2 = b * b + c * c + d * d
    if not length2 <= 1.0 + 1e-5:
        refuse("E-NII-AFFINE", path, "has a qform that is no rotation.", "Save it again from the original.")
    norm = max(1.0, float(np.sqrt(length2)))
    b, c, d = b / norm, c / norm, d / norm
    a = float(np.sqrt(max(0.0, 1.0 - b * b - c * c - d * d)))
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing * np.array([1.0, 1.0, -1.0 if float(fields["pixdim"][0]) < 0 else 1.0])
    affine[:3, 3] = [float(fields[name]) for name in ("qoffset_x", "qoffset_y", "qoffset_z")]
    return affine


def _believable(
    path: Path, form: Float64[np.ndarray, "4 4"], scale: float, spacing: Float64[np.ndarray, " 3"],
    shape: tuple[int, ...],
) -> Grid:  # fmt: skip
    """The grid of a form in mm, when its voxels have a volume, a sane size, and the size that pixdim says."""
    remedy = "Save it again from the original."
    if not np.isfinite(form).all() or np.abs(form).max() > 1e9:
        refuse("E-NII-AFFINE", path, "has an affine that is not finite.", remedy)
    lengths = np.linalg.norm(form[:3, :3], axis=0)
    if lengths.min() <= 0 or abs(np.linalg.det(form[:3, :3] / lengths)) < 1e-2:
        refuse("E-NII-AFFINE", path, "has a singular affine: voxels without volume.", remedy)
    if (np.abs(lengths / spacing - 1.0) > 0.01).any():
        refuse(
            "E-NII-PIXDIM", path, f"says two voxel sizes: {spacing.tolist()} and, by its affine, "
            f"{[round(float(x), 4) for x in lengths]}.", "Volumes in ml would be wrong; correct the header.",
        )  # fmt: skip
    affine = np.diag([scale, scale, scale, 1.0]) @ form
    if (lengths * scale < 0.01).any() or (lengths * scale > 100).any() or np.abs(affine[:3, 3]).max() > 1e5:
        refuse(
            "E-NII-SPACING", path, f"has voxels of {[float(f'{x * scale:.4g}') for x in lengths]} mm; allowed are "
            "0.01 to 100.", "Check the unit of length in its header.",
        )  # fmt: skip
    return Grid((shape[0], shape[1], shape[2]), affine)
