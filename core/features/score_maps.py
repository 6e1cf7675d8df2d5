"""From distances at feature positions to a score map on the working grid: interpolate, smooth, mask."""

import functools
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from scipy.ndimage import distance_transform_edt, median_filter
from scipy.spatial import cKDTree

from core.types import FeatureLayout, ScoreMap
from data.errors import BadInput
from data.volume import Grid, Volume

_COVERED = 1e-6
"""Interpolation weight below which a voxel counts as having no feature position near it."""
_TRUNCATE = 4.0
"""The Gaussian ends at this many standard deviations, as in scipy.ndimage."""


def to_score_map(
    distances: Float32[np.ndarray, " positions"],
    layout: FeatureLayout,
    volume: Volume,
    unit: str,
    *,
    smoothing_mm: float = 0.0,
    median_voxels: int = 0,
) -> ScoreMap:
    """Distances at `layout.positions` as a score map: finite in the brain, NaN outside.

    Linear interpolation in world coordinates, normalised by what is covered: a voxel is the weighted mean of the
    positions around it, and a brain voxel with none around takes the nearest position. `smoothing_mm` is the standard
    deviation of a Gaussian applied after it, normalised the same way. `median_voxels` is the edge of a cubic median.
    """
    return _upsampler(layout, float(smoothing_mm)).score_map(distances, volume, unit, median_voxels=median_voxels)


def masked_score_map(
    values: Float32[np.ndarray, "x y z"],
    volume: Volume,
    unit: str,
    *,
    smoothing_mm: float = 0.0,
    median_voxels: int = 0,
) -> ScoreMap:
    """Values that already lie on the volume's grid as a score map; smoothing is normalised by the brain mask."""
    mask = _brain(volume)
    scores = np.asarray(values, dtype=np.float32)
    if scores.shape != mask.shape or not np.isfinite(scores[mask]).all():
        raise BadInput(
            f"Scores of {volume.subject_id!r} have shape {scores.shape} or are not finite in the brain. "
            f"Allowed: finite values on the volume's grid {mask.shape}."
        )
    if smoothing_mm > 0:
        matrices = tuple(
            np.asarray(gaussian_matrix(n, smoothing_mm / spacing), dtype=np.float32)
            for n, spacing in zip(volume.grid.shape, volume.grid.spacing_mm, strict=True)
        )
        weight = separable(mask.astype(np.float32), matrices)
        smoothed = separable(np.where(mask, scores, np.float32(0)), matrices)
        scores = np.divide(smoothed, weight, out=scores.copy(), where=weight > _COVERED)
    return _finish(scores, mask, volume, unit, median_voxels)


@dataclass(frozen=True, eq=False)
class Upsampler:
    """Interpolation and smoothing of one layout, fused into one matrix per axis. Build once, apply to many maps.

    Costs 4 bytes per working-grid voxel, and three small matrix products per map.
    """

    layout: FeatureLayout
    smoothing_mm: float = 0.0
    matrices: tuple[Float32[np.ndarray, "out in"], ...] = field(init=False)
    weight: Float32[np.ndarray, "x y z"] = field(init=False)
    """Interpolated coverage, the denominator: 1 deep inside the brain, 0 where no position is near."""

    def __post_init__(self) -> None:
        if self.smoothing_mm < 0:
            raise BadInput(f"smoothing_mm is {self.smoothing_mm}. Allowed: 0 (none) or more.")
        if len(self.layout.positions) == 0:
            raise BadInput("The feature layout has no in-brain position. Check the brain mask of the template.")
        working = self.layout.working_grid
        matrices = [np.asarray(m) for m in linear_matrices(self.layout.feature_grid, working)]
        if self.smoothing_mm > 0:
            blurs = [
                gaussian_matrix(n, self.smoothing_mm / s)
                for n, s in zip(working.shape, working.spacing_mm, strict=True)
            ]
            matrices = [blur @ matrix for blur, matrix in zip(blurs, matrices, strict=True)]
        object.__setattr__(self, "matrices", tuple(np.ascontiguousarray(m, dtype=np.float32) for m in matrices))
        object.__setattr__(self, "weight", self._interpolate(np.ones(len(self.layout.positions), np.float32)))

    def score_map(
        self, distances: Float32[np.ndarray, " positions"], volume: Volume, unit: str, *, median_voxels: int = 0
    ) -> ScoreMap:
        """The score map of one volume; the volume must lie on the layout's working grid."""
        if not volume.grid.matches(self.layout.working_grid):
            raise BadInput(
                f"Volume {volume.subject_id!r} is on grid {volume.grid.shape}, the features belong to "
                f"{self.layout.working_grid.shape}. Preprocess the volume onto the detector's grid first."
            )
        brain = _brain(volume)
        scores = self.upsample(distances, brain)
        return _finish(scores, brain, volume, unit, median_voxels)

    def upsample(
        self, distances: Float32[np.ndarray, " positions"], inside: Bool[np.ndarray, "x y z"]
    ) -> Float32[np.ndarray, "x y z"]:
        """Interpolated values on the working grid, meaningful where `inside` holds and 0 where nothing is near."""
        values = np.asarray(distances, dtype=np.float32)
        if values.shape != (len(self.layout.positions),) or not np.isfinite(values).all():
            raise BadInput(
                f"Distances have shape {values.shape} or are not finite. "
                f"Allowed: one finite value for each of the {len(self.layout.positions)} positions."
            )
        covered = self.weight > _COVERED
        dense = self._interpolate(values)
        np.divide(dense, self.weight, out=dense, where=covered)
        missing = np.flatnonzero(inside & ~covered)
        if len(missing):
            dense.reshape(-1)[missing] = values[self._nearest(missing)]
        return dense

    def _interpolate(self, values: Float32[np.ndarray, " positions"]) -> Float32[np.ndarray, "x y z"]:
        grid = np.zeros(self.layout.feature_grid.shape, dtype=np.float32)
        i, j, k = self.layout.positions.T
        grid[i, j, k] = values
        return separable(grid, self.matrices)

    def _nearest(self, voxels: np.ndarray) -> np.ndarray:
        indices = np.stack(np.unravel_index(voxels, self.layout.working_grid.shape), axis=1)
        rows: np.ndarray = self._tree.query(_world(self.layout.working_grid, indices))[1]
        return rows

    @functools.cached_property
    def _tree(self) -> cKDTree:
        return cKDTree(_world(self.layout.feature_grid, np.asarray(self.layout.positions)))


def linear_matrices(source: Grid, onto: Grid) -> tuple[Float64[np.ndarray, "out in"], ...]:
    """One matrix per axis that interpolates linearly from `source` to `onto`; beyond the last voxel, its value.

    Voxel centres are placed by the affines. BadInput unless the axes of both grids point along the same lines.
    """
    between = np.linalg.inv(source.affine) @ onto.affine
    scale = np.diag(between)[:3]
    off_axis = between[:3, :3] - np.diag(scale)
    if np.abs(off_axis * np.array(onto.shape)).max() > 1e-2:
        raise BadInput(
            "Feature grid and working grid have different axes. "
            "Allowed: grids that differ by spacing and origin only. Resample the volume first."
        )
    return tuple(
        _linear_matrix(scale[axis] * np.arange(onto.shape[axis]) + between[axis, 3], source.shape[axis])
        for axis in range(3)
    )


def gaussian_matrix(n: int, sigma: float) -> Float64[np.ndarray, "n n"]:
    """Convolution with a Gaussian of `sigma` voxels as a band matrix; what lies beyond the ends counts as 0."""
    radius = int(_TRUNCATE * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / max(sigma, 1e-12)) ** 2)
    kernel /= kernel.sum()
    offset = np.arange(n)[None, :] - np.arange(n)[:, None]
    return np.where(np.abs(offset) <= radius, kernel[np.clip(offset + radius, 0, 2 * radius)], 0.0)


def separable(
    values: Float32[np.ndarray, "x y z"], matrices: tuple[Float32[np.ndarray, "out in"], ...]
) -> Float32[np.ndarray, "i j k"]:
    """Apply one matrix per axis: out[i,j,k] = Σ A[i,x] B[j,y] C[k,z] values[x,y,z]."""
    a, b, c = matrices
    x, y, z = values.shape
    first = (a @ values.reshape(x, y * z)).reshape(-1, y, z)
    second = np.matmul(b, first)
    out: np.ndarray = (second.reshape(-1, z) @ c.T).reshape(a.shape[0], b.shape[0], c.shape[0])
    return out


@functools.lru_cache(maxsize=4)
def _upsampler(layout: FeatureLayout, smoothing_mm: float) -> Upsampler:
    return Upsampler(layout, smoothing_mm)


def _linear_matrix(coordinates: np.ndarray, n: int) -> np.ndarray:
    clamped = np.clip(coordinates, 0, n - 1)
    low = np.minimum(np.floor(clamped).astype(int), max(n - 2, 0))
    fraction = clamped - low
    matrix = np.zeros((len(coordinates), n))
    rows = np.arange(len(coordinates))
    matrix[rows, low] += 1 - fraction
    matrix[rows, np.minimum(low + 1, n - 1)] += fraction
    return matrix


def _finish(scores: np.ndarray, brain: np.ndarray, volume: Volume, unit: str, median_voxels: int) -> ScoreMap:
    if median_voxels > 1:
        scores = _median(scores, brain, median_voxels)
    return ScoreMap(np.where(brain, scores, np.float32(np.nan)), volume.grid, volume.subject_id, unit)


def _median(scores: np.ndarray, brain: np.ndarray, size: int) -> np.ndarray:
    """Cubic median; a neighbour outside the brain stands in with the value of its nearest brain voxel."""
    nearest = distance_transform_edt(~brain, return_distances=False, return_indices=True)
    filtered: np.ndarray = median_filter(scores[tuple(nearest)], size=size, mode="nearest")
    return filtered


def _brain(volume: Volume) -> np.ndarray:
    if not volume.brain_mask.any():
        raise BadInput(f"Brain mask of {volume.subject_id!r} is empty: nothing can be scored. Check the mask.")
    return volume.brain_mask


def _world(grid: Grid, indices: np.ndarray) -> np.ndarray:
    world: np.ndarray = indices @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    return world


def positions_in_brain(layout: FeatureLayout, volume: Volume) -> Int64[np.ndarray, " inside"]:
    """Positions whose own voxel is brain of this volume; all when there is none."""
    steps = np.rint(np.array(layout.feature_grid.spacing_mm) / layout.working_grid.spacing_mm).astype(np.int64)
    x, y, z = (layout.positions * steps).T
    inside = np.flatnonzero(volume.brain_mask[x, y, z])
    return inside if len(inside) else np.arange(len(layout.positions))
