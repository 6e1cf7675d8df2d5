"""A subject on the working grid, how it came there, and how its scores go home."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64

from data.cohort import contrast_name
from data.errors import BadInput
from data.ranges import refuse_out_of_range
from data.volume import Grid, Mask, Volume, resample

_LEAST_WEIGHT = 1e-2


@dataclass(frozen=True)
class Preprocessing:
    """How scans become comparable: where they are put, how finely, and in which intensities."""

    contrasts: tuple[str, ...] = ("T1",)
    """Names of the contrasts, in order; the first one gives the grid."""
    registration: Literal["affine", "centroid", "none"] = "affine"
    """How a brain is brought to MNI152: affine (12 parameters, about 6 s), centroid (a shift), none."""
    spacing_mm: float = 2.0
    """Voxel edge of the working grid, mm."""
    intensity: Literal["minmax", "percentile", "histogram"] = "percentile"
    """What maps the brain's intensities to 0..1: its range, its 1st to 99th percentile (clipped), or its ranks."""
    resample_masks: bool = False
    """Whether a mask on another grid than its scan is resampled (with a note) instead of refused."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "contrasts", tuple(map(contrast_name, self.contrasts)))
        if not self.contrasts or len(set(self.contrasts)) != len(self.contrasts):
            raise BadInput(f"Contrasts {self.contrasts}. Name at least one, and each once.")
        refuse_out_of_range(self)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A subject on the working grid, and what brings its scores home."""

    volume: Volume
    """Working grid, intensities 0..1, zero outside the brain."""
    lesion: Mask | None
    """Working grid; None when the subject has no lesion mask."""
    native_grid: Grid
    """Grid of the first contrast, in RAS+ order."""
    native_brain: Mask
    native_lesion: Mask | None
    world_to_native: Float64[np.ndarray, "4 4"]
    """Maps mm of the working world (MNI152) to mm of the scan's world."""
    notes: tuple[str, ...]
    key: str
    """Name of this subject in the cache."""
    voxel_sha256: str
    """Hash of the scan's voxels, blind to its header: the same scan under two names has the same."""
    axes: str = "RAS"
    """Axis codes in which the scan's file stores its voxels; exports are written like it."""
    made_from: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """What `key` is the hash of: settings, hashes of the files, id, health and labels of the subject. Empty for one
    that was prepared before this was kept."""


def to_native(
    values: Float32[np.ndarray, "x y z"], working: Grid, prepared: Prepared, *, outside: float = np.nan
) -> Float32[np.ndarray, "i j k"]:
    """A map of the working grid (NaN outside the brain) at the voxels of the subject's own scan, in one resampling.

    Linear among finite values, with weights that sum to one, so the brain's rim keeps its scores. Voxels of the
    native brain that no finite value reaches take the nearest one; outside the native brain stands `outside`.
    """
    finite = np.isfinite(values)
    if not finite.any():
        raise BadInput(f"Not one finite value in the map of {prepared.volume.subject_id!r}: nothing to bring back.")
    back = np.linalg.inv(prepared.world_to_native)
    result = np.full(prepared.native_grid.shape, outside, dtype=np.float32)
    box = _bounding_box(prepared.native_brain.voxels)
    brain, onto = prepared.native_brain.voxels[box], _cropped(prepared.native_grid, box)
    weight = resample(finite.astype(np.float32), working, onto, world_to_source=back)
    total = resample(np.where(finite, values, np.float32(0)), working, onto, world_to_source=back)
    reached = weight > _LEAST_WEIGHT
    inside = brain & reached
    result[box][inside] = total[inside] / weight[inside]
    missing = brain & ~reached
    if missing.any():
        indices = np.argwhere(missing) @ onto.affine[:3, :3].T + onto.affine[:3, 3]
        result[box][missing] = _nearest_finite(values, finite, working, indices @ back[:3, :3].T + back[:3, 3])
    return result


def _bounding_box(mask: Bool[np.ndarray, "x y z"]) -> tuple[slice, slice, slice]:
    """The smallest box that holds the mask; the whole grid when it is empty."""
    if not mask.any():
        return slice(None), slice(None), slice(None)
    spans = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    x, y, z = (slice(int(span[0]), int(span[-1]) + 1) for span in spans)
    return x, y, z


def _cropped(grid: Grid, box: tuple[slice, slice, slice]) -> Grid:
    starts = [span.start or 0 for span in box]
    stops = [n if span.stop is None else span.stop for span, n in zip(box, grid.shape, strict=True)]
    shift = np.eye(4)
    shift[:3, 3] = starts
    x, y, z = (stop - start for start, stop in zip(starts, stops, strict=True))
    return Grid((x, y, z), grid.affine @ shift)


def _nearest_finite(
    values: Float32[np.ndarray, "x y z"],
    finite: Bool[np.ndarray, "x y z"],
    working: Grid,
    points_mm: Float64[np.ndarray, "points 3"],
) -> Float32[np.ndarray, " points"]:
    from scipy.ndimage import binary_erosion
    from scipy.spatial import cKDTree

    rim = finite & ~binary_erosion(finite, border_value=1)
    if not rim.any():
        rim = finite
    centres = np.argwhere(rim) @ working.affine[:3, :3].T + working.affine[:3, 3]
    _, which = cKDTree(centres).query(points_mm)
    return np.asarray(values[rim][which], dtype=np.float32)
