"""Intensities made comparable between scanners: each method maps the brain to 0..1 and everything else to 0."""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32

from data.errors import BadInput

IntensityMethod = Literal["minmax", "percentile", "histogram"]
_LOW_PERCENT, _HIGH_PERCENT = 1.0, 99.0


def normalise(
    values: Float[np.ndarray, "x y z"], brain_mask: Bool[np.ndarray, "x y z"], method: IntensityMethod
) -> Float32[np.ndarray, "x y z"]:
    """Intensities by `method`, computed from brain voxels alone. BadInput when the brain is empty or constant."""
    if method == "minmax":
        return rescale(values, brain_mask, 0.0, 100.0)
    if method == "percentile":
        return rescale(values, brain_mask, _LOW_PERCENT, _HIGH_PERCENT)
    if method == "histogram":
        return equalise(values, brain_mask)
    raise BadInput(f"Intensity method {method!r} is unknown. Allowed: minmax, percentile, histogram.")


def rescale(
    values: Float[np.ndarray, "x y z"], brain_mask: Bool[np.ndarray, "x y z"], low_percent: float, high_percent: float
) -> Float32[np.ndarray, "x y z"]:
    """(v - low) / (high - low) with low and high the brain's percentiles, clipped to 0..1.

    Clipping loses what lies beyond: at percentiles 1 and 99 the darkest and brightest 1 % of the brain are flat, so
    a lesion brighter than that saturates at 1 (and still is the brightest thing there).
    """
    inside = _brain_values(values, brain_mask)
    low, high = (float(edge) for edge in np.percentile(inside, (low_percent, high_percent)))
    if high <= low:
        raise BadInput(
            f"Percentiles {low_percent:g} and {high_percent:g} of the brain are both {low:g}. The scan is nearly "
            "constant inside its mask. Check the scan and the mask, or use another intensity method."
        )
    result = np.zeros(values.shape, dtype=np.float32)
    result[brain_mask] = np.clip((inside - low) / (high - low), 0.0, 1.0)
    return result


def equalise(values: Float[np.ndarray, "x y z"], brain_mask: Bool[np.ndarray, "x y z"]) -> Float32[np.ndarray, "x y z"]:
    """Histogram equalisation: each voxel's rank among the brain's voxels, 0 (lowest) to 1 (highest); ties share one.

    Zero outside the brain. Meissen et al. 2021, arXiv:2109.06540, threshold such an image and beat many networks.
    """
    inside = _brain_values(values, brain_mask)
    _, which, counts = np.unique(inside, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - counts + (counts - 1) / 2.0
    result = np.zeros(values.shape, dtype=np.float32)
    result[brain_mask] = (ranks / (inside.size - 1))[which.reshape(-1)]
    return result


def _brain_values(values: np.ndarray, brain_mask: np.ndarray) -> Float[np.ndarray, " voxels"]:
    inside = np.asarray(values[brain_mask], dtype=np.float64)
    if inside.size == 0:
        raise BadInput("The brain mask is empty here, so intensities cannot be normalised. Check the mask.")
    if not np.isfinite(inside).all():
        raise BadInput(f"{np.count_nonzero(~np.isfinite(inside))} voxels in the brain are not finite numbers.")
    if inside.min() == inside.max():
        raise BadInput(f"All {inside.size} voxels of the brain equal {inside[0]:g}: nothing to see. Check the scan.")
    return inside
