"""Whole numbers and lost digits: what a mask may hold, and what float32 can keep of a scan."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Shaped

from data.nifti_header import refuse

MOST_MASK_VALUES = 8
"""An image of so few values is a mask."""
NEARLY_WHOLE = 1e-4
"""How far a label may lie from a whole number: resampling and compression leave 0.99994."""
LARGEST_ERROR = 0.01
"""How far float32 may move a voxel, in standard deviations of the non-zero voxels."""


@dataclass(frozen=True, eq=False)
class Raw:
    """Stored numbers of a file with their scaling, before either is believed."""

    path: Path
    voxels: Shaped[np.ndarray, "x y z"]
    slope: float
    inter: float
    affine: Float64[np.ndarray, "4 4"]
    notes: tuple[str, ...]
    sha256: str


def scaled_float32(raw: Raw) -> Float32[np.ndarray, "x y z"]:
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


def refuse_lost_digits(raw: Raw) -> None:
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


def rounded_labels(raw: Raw, notes: list[str], cut: float | None) -> np.ndarray:
    """Whole numbers of a mask: exact, nearly whole, or cut where probabilities were declared. BadScan otherwise."""
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


def refuse_uninformative(path: Path, values: np.ndarray) -> None:
    """BadScan for a scan that is constant, or that holds labels."""
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
