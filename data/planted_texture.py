"""What a planted lesion looks like: its edge, its texture, and how far its brightness moves."""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64

from data.errors import BadInput
from data.volume import Mask, Volume

_DARK_PERCENT, _BRIGHT_PERCENT = 2.0, 99.0
Polarity = Literal["hypo", "hyper"]
_NEIGHBOURHOOD_MM = 3.0
_TEXTURE_MM = 3.0
_TEXTURE_SD = 0.15


def plant(
    volume: Volume,
    lesion: Mask,
    *,
    contrast: float,
    edge_mm: float = 2.0,
    texture_seed: int,
    polarity: Polarity = "hypo",
) -> Volume:
    """The volume with its intensities moved inside the lesion, every contrast alike; nothing changes elsewhere.

    v' = v + w · c · (1 + t) · (target - local): `local` is the mean of brain voxels around (Gaussian, 3 mm), so the
    tissue's texture stays; `target` is the brain's 2nd percentile (fluid on T1; hypo) or 99th (hyper), and tissue
    beyond it already is left alone; t is a smooth random field of SD 0.15; w falls linearly from 1 at `edge_mm`
    inside the outline to 0 at `edge_mm` outside it (partial volume), and is 0 outside the brain.
    """
    if not 0.0 < contrast <= 1.0 or edge_mm < 0.0:
        raise BadInput(f"Contrast {contrast} and edge {edge_mm} mm. Allowed: contrast above 0 up to 1, edge 0 or more.")
    if not lesion.grid.matches(volume.grid):
        raise BadInput("Lesion mask and volume are on different grids. Resample the mask first.")
    inside = lesion.voxels & volume.brain_mask
    if not inside.any():
        raise BadInput(f"The lesion lies outside the brain of {volume.subject_id!r}; nothing to plant.")
    strength = contrast * _edge_weight(inside, volume, edge_mm) * (1.0 + _texture(volume, texture_seed))
    strength = np.where(volume.brain_mask, np.clip(strength, 0.0, 1.0), 0.0)
    planted = np.stack([_moved(one, volume, strength, polarity) for one in volume.voxels])
    return Volume(planted, volume.grid, volume.brain_mask, volume.subject_id, volume.contrasts)


def _edge_weight(inside: Bool[np.ndarray, "x y z"], volume: Volume, edge_mm: float) -> Float64[np.ndarray, "x y z"]:
    # Distance from the outline, which runs halfway between voxel centres; negative inside.
    from scipy.ndimage import distance_transform_edt

    if edge_mm == 0.0:
        return inside.astype(np.float64)
    spacing = volume.grid.spacing_mm
    half = min(spacing) / 2.0
    outwards = distance_transform_edt(~inside, sampling=spacing) - half
    inwards = distance_transform_edt(inside, sampling=spacing) - half
    distance = np.where(inside, -inwards, outwards)
    return np.asarray(np.clip(0.5 - distance / (2.0 * edge_mm), 0.0, 1.0), dtype=np.float64)


def _texture(volume: Volume, seed: int) -> Float64[np.ndarray, "x y z"]:
    from scipy.ndimage import gaussian_filter

    generator = np.random.Generator(np.random.Philox(key=np.array([seed, 0x7E87], dtype=np.uint64)))
    field = gaussian_filter(
        generator.standard_normal(volume.grid.shape), _TEXTURE_MM / np.array(volume.grid.spacing_mm)
    )
    return np.asarray(_TEXTURE_SD * field / field.std(), dtype=np.float64)


def _moved(
    values: np.ndarray, volume: Volume, strength: Float64[np.ndarray, "x y z"], polarity: Polarity
) -> Float64[np.ndarray, "x y z"]:
    from scipy.ndimage import gaussian_filter

    brain = volume.brain_mask
    sigma = _NEIGHBOURHOOD_MM / np.array(volume.grid.spacing_mm)
    weight = gaussian_filter(brain.astype(np.float64), sigma)
    local = gaussian_filter(np.where(brain, values, 0.0).astype(np.float64), sigma) / np.maximum(weight, 1e-6)
    if polarity == "hypo":
        step = np.minimum(np.percentile(values[brain], _DARK_PERCENT) - local, 0.0)
    else:
        step = np.maximum(np.percentile(values[brain], _BRIGHT_PERCENT) - local, 0.0)
    moved = np.where(strength > 0.0, values + strength * step, values)
    # Darkened texture may not fall below what the scan holds already.
    return np.asarray(np.maximum(moved, min(float(values.min()), 0.0)), dtype=np.float64)
