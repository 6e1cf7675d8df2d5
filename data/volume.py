"""Volumes on grids: numpy arrays that never travel without their affine."""

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from data.errors import BadInput

SAME_VOXEL = 0.01
SAME_MM = 0.009
"""Two grids whose corners lie no further apart than this part of a voxel, and this length, are one."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A lattice of voxels in the world: shape and the affine from voxel indices to RAS+ millimetres."""

    shape: tuple[int, int, int]
    affine: Float64[np.ndarray, "4 4"]

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise BadInput(f"Affine is not an invertible 4x4 matrix of finite numbers: {affine.tolist()}.")
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", (int(self.shape[0]), int(self.shape[1]), int(self.shape[2])))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Edge lengths of a voxel along its own axes, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def orientation(self) -> str:
        """Axis codes, "RAS" when indices run to the right, front and top."""
        return "".join(nib.aff2axcodes(self.affine))

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of a voxel in mm³."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def corners_mm(self) -> Float64[np.ndarray, "8 3"]:
        """World positions of the eight corner voxel centres, in mm."""
        ends = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=np.float64)
        corners: np.ndarray = (ends * (np.array(self.shape) - 1)) @ self.affine[:3, :3].T + self.affine[:3, 3]
        return corners

    def coincides(self, other: "Grid") -> bool:
        """Same shape, and no corner further than a hundredth of a voxel, or 9 µm, from its counterpart.

        Programs round affines: a mask of 256 voxels whose step is written as 1.000005 mm ends 0.0013 mm too far.
        """
        return self.matches(other, min(SAME_MM, SAME_VOXEL * min(*self.spacing_mm, *other.spacing_mm)))

    def matches(self, other: "Grid", tolerance_mm: float = 1e-3) -> bool:
        """Same shape, and no corner further than `tolerance_mm` from its counterpart."""
        return self.shape == other.shape and bool(np.abs(self.corners_mm() - other.corners_mm()).max() <= tolerance_mm)

    def coarser(self, stride: tuple[int, int, int]) -> "Grid":
        """Every `stride`-th voxel centre, starting with voxel 0: the grid of a centred, padded convolution."""
        shape = tuple(-(-n // s) for n, s in zip(self.shape, stride, strict=True))
        return Grid((shape[0], shape[1], shape[2]), self.affine @ np.diag([*map(float, stride), 1.0]))


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan on a grid: float32 contrasts, the brain mask, and whose it is. Arrays are read-only."""

    voxels: Float32[np.ndarray, "contrasts x y z"]
    grid: Grid
    brain_mask: Bool[np.ndarray, "x y z"]
    subject_id: str
    contrasts: tuple[str, ...]

    def __post_init__(self) -> None:
        voxels = frozen(np.asarray(self.voxels, dtype=np.float32))
        mask = frozen(np.asarray(self.brain_mask, dtype=bool))
        if voxels.ndim != 4 or voxels.shape[1:] != self.grid.shape or mask.shape != self.grid.shape:
            raise BadInput(
                f"Volume of {self.subject_id!r}: voxels {voxels.shape} and brain mask {mask.shape} do not fit the "
                f"grid {self.grid.shape}. Allowed: (contrasts, x, y, z) and (x, y, z)."
            )
        if len(self.contrasts) != voxels.shape[0]:
            raise BadInput(
                f"Volume of {self.subject_id!r}: {voxels.shape[0]} contrasts in the array, {len(self.contrasts)} names."
            )
        object.__setattr__(self, "voxels", voxels)
        object.__setattr__(self, "brain_mask", mask)


@dataclass(frozen=True, eq=False)
class Mask:
    """Yes or no per voxel: a lesion mask, a segmentation. Read-only."""

    voxels: Bool[np.ndarray, "x y z"]
    grid: Grid

    def __post_init__(self) -> None:
        voxels = frozen(np.asarray(self.voxels, dtype=bool))
        if voxels.shape != self.grid.shape:
            raise BadInput(f"Mask of shape {voxels.shape} does not fit its grid {self.grid.shape}.")
        object.__setattr__(self, "voxels", voxels)

    @property
    def volume_ml(self) -> float:
        """Volume of the positive voxels in millilitres."""
        return float(np.count_nonzero(self.voxels) * self.grid.voxel_volume_mm3 / 1000.0)

    def at_faces_cm2(self) -> dict[str, float]:
        """Area of the mask on each of the six faces of its grid, by the side's name in RAS+ order."""
        areas, spacing = {}, self.grid.spacing_mm
        for axis, names in enumerate((("left", "right"), ("back", "front"), ("bottom", "top"))):
            voxel = float(np.prod([s for n, s in enumerate(spacing) if n != axis])) / 100.0
            for end, name in zip((0, -1), names, strict=True):
                areas[name] = voxel * int(np.count_nonzero(np.take(self.voxels, end, axis=axis)))
        return areas


def frozen(array: np.ndarray) -> np.ndarray:
    """The array itself if it is read-only already, else a read-only view that leaves the caller's array writable."""
    if not array.flags.writeable:
        return array
    view = array.view()
    view.setflags(write=False)
    return view


def resample(
    values: Float[np.ndarray, "x y z"],
    source: Grid,
    onto: Grid,
    *,
    order: int = 1,
    world_to_source: Float64[np.ndarray, "4 4"] | None = None,
    outside: float = 0.0,
) -> Float32[np.ndarray, "i j k"]:
    """Values at the voxel centres of `onto`, by spline of `order` (0 nearest, 1 linear, 3 cubic).

    `world_to_source` maps mm of `onto`'s world to mm of `source`'s world (identity when they share one).
    NaN in `values` spreads to every voxel that it touches; `outside` is what lies beyond the source.
    """
    from scipy.ndimage import affine_transform

    between = np.eye(4) if world_to_source is None else np.asarray(world_to_source, dtype=np.float64)
    matrix = np.linalg.inv(source.affine) @ between @ onto.affine
    if source.shape == onto.shape and np.abs(matrix - np.eye(4)).max() < 1e-9:
        return np.array(values, dtype=np.float32)
    moved: Any = affine_transform(
        np.asarray(values, dtype=np.float32),
        matrix[:3, :3],
        matrix[:3, 3],
        output_shape=onto.shape,
        order=order,
        mode="constant",
        cval=outside,
        prefilter=order > 1,
    )
    return np.asarray(moved, dtype=np.float32)


def resample_mask(mask: Mask, onto: Grid, *, world_to_source: Float64[np.ndarray, "4 4"] | None = None) -> Mask:
    """The mask on another grid: linear interpolation, then at least one half."""
    if mask.grid.matches(onto) and world_to_source is None:
        return mask
    values = resample(mask.voxels.astype(np.float32), mask.grid, onto, world_to_source=world_to_source)
    return Mask(values >= 0.5, onto)
