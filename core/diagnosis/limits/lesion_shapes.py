"""Planted lesions on the grid: their ellipsoids, how much of each voxel they fill, and what they change."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from core.randomness import stream
from data.volume import Grid, Volume

NEIGHBOURHOOD_MM = 8.0
_AXIS_SPREAD = 0.2
LONGEST = float(np.exp(4 / 3 * _AXIS_SPREAD))
"""Longest half axis there can be, in radii."""
_SUBSAMPLES = 4


@dataclass(frozen=True)
class Lesion:
    """One lesion of the design."""

    number: int
    """Place in the shuffled design; its shape and position are drawn from the seed and this."""
    diameter_mm: float
    """Of the ball of the same volume."""
    contrast_sd: float
    """Shift in healthy standard deviations, negative: darker."""
    site: str


@dataclass(frozen=True)
class Placed:
    """A lesion and its centre, in mm of the working world (MNI152)."""

    lesion: Lesion
    centre_mm: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Footprint:
    """What a planted lesion changed in its scan."""

    inside: Int64[np.ndarray, " voxels"]
    """Flat indices of the voxels that are lesion: at least half filled, else the fullest one."""
    around: Int64[np.ndarray, " voxels"]
    """Flat indices of the brain within NEIGHBOURHOOD_MM of it, the lesion included."""
    contrast_sd: float
    """Mean shift over `inside` in healthy SDs, after partial volume and clipping to the intensity range."""


def plant_lesions(
    volume: Volume, lesions: Sequence[Placed], deviation: Float32[np.ndarray, "contrasts x y z"], seed: int
) -> tuple[Volume, list[Footprint]]:
    """The scan with all the lesions in it, and what each changed. Nothing changes outside brain and ellipsoids.

    v' = v + w · c · σ: w is the part of the voxel that the ellipsoid fills (4³ samples), σ one number per lesion, the
    median over it of `deviation`. The result is clipped to 0..1 (or to the scan's own range when that is wider),
    which is where every intensity method of the preparation puts a brain: a lesion cannot be brighter than white.
    """
    voxels = np.array(volume.voxels)
    low, high = min(0.0, float(voxels.min())), max(1.0, float(voxels.max()))
    footprints = []
    for placed in lesions:
        box, filled, near = _rendered(volume.grid, placed, seed)
        brain = volume.brain_mask[box]
        filled = np.where(brain, filled, 0.0)
        inside = filled >= 0.5
        if not inside.any():
            inside = filled == filled.max()
        unit = np.array([np.median(one[box][inside]) for one in deviation])[:, None, None, None]
        healthy = voxels[(slice(None), *box)].astype(np.float64)
        moved = np.clip(healthy + filled * (placed.lesion.contrast_sd * unit), low, high)
        voxels[(slice(None), *box)] = moved
        footprints.append(
            Footprint(
                _flat(volume.grid, box, inside),
                _flat(volume.grid, box, near & brain),
                float(((moved - healthy) / unit)[:, inside].mean()),
            )
        )
    return Volume(voxels, volume.grid, volume.brain_mask, volume.subject_id, volume.contrasts), footprints


def ball_mask(grid: Grid, diameter_mm: float) -> Float32[np.ndarray, "i j k"]:
    """The filled part of each voxel of a ball at the centre of a box, to a sum of one."""
    sides = [np.arange(-n, n + 1) for n in np.ceil(diameter_mm / 2 / np.array(grid.spacing_mm) + 0.5).astype(int)]
    away = np.stack(np.meshgrid(*sides, indexing="ij"), -1) @ grid.affine[:3, :3].T
    filled = _filled_part(away, grid, np.full(3, diameter_mm / 2), np.eye(3))
    return np.asarray(filled / filled.sum(), dtype=np.float32)


def _rendered(
    grid: Grid, placed: Placed, seed: int
) -> tuple[tuple[slice, slice, slice], Float64[np.ndarray, "i j k"], Bool[np.ndarray, "i j k"]]:
    """Box around the lesion, the filled part of each voxel, and which voxel centres lie near it."""
    axes, turn = _shape(placed.lesion, seed)
    centre = np.array(placed.centre_mm)
    to_voxel = np.linalg.inv(grid.affine)
    middle = to_voxel[:3, :3] @ centre + to_voxel[:3, 3]
    reach = (axes.max() + NEIGHBOURHOOD_MM) / np.array(grid.spacing_mm) + 1
    low = np.clip(np.floor(middle - reach).astype(int), 0, None)
    high = np.minimum(np.ceil(middle + reach).astype(int) + 1, grid.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    indices = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), -1)
    away = indices @ grid.affine[:3, :3].T + grid.affine[:3, 3] - centre
    near = np.linalg.norm(away, axis=-1) <= axes.max() + NEIGHBOURHOOD_MM
    return (box[0], box[1], box[2]), _filled_part(away, grid, axes, turn), near


def _filled_part(
    away: Float64[np.ndarray, "i j k 3"],
    grid: Grid,
    axes: Float64[np.ndarray, " 3"],
    turn: Float64[np.ndarray, "3 3"],
) -> Float64[np.ndarray, "i j k"]:
    """Part of each voxel inside an ellipsoid, from 4³ samples; `away` is from its centre to the voxels' own, in mm."""
    steps = (np.arange(_SUBSAMPLES) + 0.5) / _SUBSAMPLES - 0.5
    within = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3) @ grid.affine[:3, :3].T
    at, parts = (away.reshape(-1, 3) @ turn) / axes, (within @ turn) / axes  # in half axes: the ellipsoid is |.| <= 1
    squared = (at**2).sum(axis=1)[:, None] + 2 * at @ parts.T + (parts**2).sum(axis=1)
    filled: np.ndarray = (squared <= 1).mean(axis=1).reshape(away.shape[:3])
    return filled


def _shape(lesion: Lesion, seed: int) -> tuple[Float64[np.ndarray, " 3"], Float64[np.ndarray, "3 3"]]:
    """Half axes in mm, whose product is that of the ball, and a rotation."""
    generator = stream(seed, "detection limits shape", lesion.number)
    spread = generator.uniform(-_AXIS_SPREAD, _AXIS_SPREAD, size=3)
    turn, triangular = np.linalg.qr(generator.standard_normal((3, 3)))
    return lesion.diameter_mm / 2 * np.exp(spread - spread.mean()), turn * np.sign(np.diag(triangular))


def _flat(grid: Grid, box: tuple[slice, slice, slice], chosen: Bool[np.ndarray, "i j k"]) -> Int64[np.ndarray, " n"]:
    at = np.argwhere(chosen) + np.array([s.start for s in box])
    return np.asarray(np.ravel_multi_index(tuple(at.T), grid.shape), dtype=np.int64)
