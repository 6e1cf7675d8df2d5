"""What a what-if puts in the place of what the run did: changed score maps, scans, labels and Gaussians.

Each function changes one thing and leaves the rest; told to change nothing, it gives back what it was given.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64
from scipy.ndimage import (
    binary_dilation,
    binary_erosion,
    binary_fill_holes,
    distance_transform_edt,
    generate_binary_structure,
    shift,
)

from core.study.cases import Case
from data.errors import BadInput
from data.volume import Volume

ROBUST = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
"""Of scores: a lesion of a few percent of the brain hardly moves these."""
QUARTILES = (0.25, 0.5, 0.75)
"""Of intensities: lesions may be at either end, and a quantile that they reach would flatten them."""
TAILED = (*ROBUST, 0.95, 0.99, 0.999)
"""With the tail, where lesions are: for healthy voxels only."""
_FACES = generate_binary_structure(3, 1)
_TOUCH_MM = 1e-4


def depth_mm(mask: Bool[np.ndarray, "x y z"], spacing_mm: Sequence[float]) -> Float32[np.ndarray, "x y z"]:
    """Distance of every voxel of a brain to the nearest voxel outside it, mm; 0 outside. Holes count as brain."""
    filled = np.pad(binary_fill_holes(mask), 1)
    depth = distance_transform_edt(filled, sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    return np.where(mask, depth, 0).astype(np.float32)


def eroded(case: Case, millimetres: float, *, template: Float32[np.ndarray, "x y z"] | None = None) -> Case:
    """Without the scores of voxels within `millimetres` of the outside of the subject's own brain mask.

    With `template`, the `depth_mm` of a reference brain on the same grid, of the outside of that brain instead.
    Normal voxels there are no longer judged; lesion voxels there count as missed, so erosion cannot cheat.
    """
    if millimetres <= 0 and template is None:
        return case
    if template is not None and template.shape != case.scores.shape:
        raise BadInput(f"The template has shape {template.shape}, the scores {case.scores.shape}. Give one grid.")
    depth = depth_mm(case.volume.brain_mask, case.volume.grid.spacing_mm) if template is None else template
    kept = depth > max(millimetres, 0) + _TOUCH_MM
    return dataclasses.replace(case, scores=np.where(kept, case.scores, np.float32(np.nan)))


def score_quantiles(
    case: Case, *, probabilities: Sequence[float] = ROBUST, without_lesion: bool = False
) -> Float64[np.ndarray, " quantiles"]:
    """Quantiles of a subject's scores in the brain, over all scored voxels or (needs labels) over normal ones."""
    inside = np.isfinite(case.scores)
    return _quantiles(case.scores[inside & ~case.lesion] if without_lesion else case.scores[inside], probabilities)


def with_scores_mapped(
    case: Case, own: Float64[np.ndarray, " quantiles"], reference: Float64[np.ndarray, " quantiles"]
) -> Case:
    """Scores mapped so that the quantiles `own` become `reference`, as in `quantile_map`; none falls below 0."""
    return dataclasses.replace(case, scores=np.maximum(quantile_map(case.scores, own, reference), np.float32(0)))


def quantile_map(
    values: Float32[np.ndarray, "..."],
    own: Float64[np.ndarray, " quantiles"],
    reference: Float64[np.ndarray, " quantiles"],
) -> Float32[np.ndarray, "..."]:
    """Increasing, piecewise linear map that takes `own` quantiles to `reference`; NaN stays.

    Beyond the outermost quantiles it goes on with the ratio of the spreads (outermost to middle quantile), so a
    tail that holds a lesion is stretched like the body of the scores, not flattened onto the reference's tail.
    """
    source, first = np.unique(own, return_index=True)
    target = np.asarray(reference, dtype=np.float64)[first]
    wide = np.asarray(values, dtype=np.float64)
    mapped = np.interp(wide, source, target)
    above, below = (len(source) - 1) // 2, len(source) // 2
    for end, middle, beyond in ((-1, above, wide > source[-1]), (0, below, wide < source[0])):
        spread = source[end] - source[middle]
        slope = (target[end] - target[middle]) / spread if spread else 1.0
        mapped[beyond] = target[end] + slope * (wide[beyond] - source[end])
    return mapped.astype(np.float32)


def with_moved_boundary(case: Case, voxels: int) -> Case:
    """The reference dilated (`voxels` > 0, inside the brain) or eroded (< 0) by so many voxels, over faces."""
    if voxels == 0 or not case.lesion.any():
        return case
    if voxels < 0:
        return dataclasses.replace(case, lesion=binary_erosion(case.lesion, _FACES, iterations=-voxels))
    grown = binary_dilation(case.lesion, _FACES, iterations=voxels)
    return dataclasses.replace(case, lesion=case.lesion | (grown & case.volume.brain_mask))


def without_border(case: Case, voxels: int = 1) -> Case:
    """A band of `voxels` on either side of the lesion's border is neither judged nor counted as lesion."""
    if voxels == 0 or not case.lesion.any():
        return case
    grown = binary_dilation(case.lesion, _FACES, iterations=voxels)
    core = binary_erosion(case.lesion, _FACES, iterations=voxels)
    scores = np.where(grown & ~core, np.float32(np.nan), case.scores)
    return dataclasses.replace(case, lesion=core, scores=scores)


def intensity_quantiles(volume: Volume) -> Float64[np.ndarray, "contrasts quantiles"]:
    """Quartiles of every contrast inside the brain."""
    return np.stack([_quantiles(one[volume.brain_mask], QUARTILES) for one in volume.voxels])


def renormalised(volume: Volume, reference: Float64[np.ndarray, "contrasts quantiles"], *, affine: bool) -> Volume:
    """In-brain intensities brought to reference quartiles (`intensity_quantiles` of healthy scans, averaged).

    `affine`: one gain and one offset per contrast, from the outer quartiles; else the median is met as well.
    Outside the brain stays 0. Lesion voxels are not known here and take part.
    """
    used = [0, 2] if affine else [0, 1, 2]
    voxels = np.zeros_like(volume.voxels)
    for contrast, (values, own) in enumerate(zip(volume.voxels, intensity_quantiles(volume), strict=True)):
        inside = values[volume.brain_mask]
        voxels[contrast, volume.brain_mask] = quantile_map(inside, own[used], reference[contrast, used])
    return dataclasses.replace(volume, voxels=voxels)


def shifted(volume: Volume, offset_mm: tuple[float, float, float]) -> Volume:
    """The scan moved by an offset in the world (right, front, top; mm), its brain mask left where it is.

    Beyond the brain's edge the scan goes on with its nearest brain voxel, so that no dark rim comes in. Cubic
    spline, held to the brain's range; whole voxels are moved without interpolation.
    """
    steps = _in_voxels(volume, offset_mm)
    if not steps.any():
        return volume
    return _with_voxels(volume, steps, volume.brain_mask)


def moved(volume: Volume, offset_mm: tuple[float, float, float]) -> Volume:
    """Scan and brain mask moved together by an offset in the world, as an error of registration moves them.

    A voxel belongs to the moved brain when more than half of it does, so the brain never grows.
    """
    steps = _in_voxels(volume, offset_mm)
    if not steps.any():
        return volume
    mask = shift(volume.brain_mask.astype(np.float32), steps, order=1) > 0.5 + 1e-3
    return _with_voxels(dataclasses.replace(volume, brain_mask=mask), steps, volume.brain_mask)


def brought_back(
    scores: Float32[np.ndarray, "x y z"], volume: Volume, offset_mm: tuple[float, float, float]
) -> Float32[np.ndarray, "x y z"]:
    """Scores of a `moved` scan back at the voxels of the scan that was not moved; NaN outside its brain."""
    steps = _in_voxels(volume, offset_mm)
    if not steps.any():
        return scores
    back = _extended(scores, np.isfinite(scores), -steps)
    return np.where(volume.brain_mask, back, np.float32(np.nan))


def boundary_distance_mm(
    mask: Bool[np.ndarray, "x y z"], reference: Bool[np.ndarray, "x y z"], spacing_mm: Sequence[float]
) -> float:
    """Mean distance of a brain's outermost voxels to the outermost voxels of a reference brain, mm."""
    edges = [filled & ~binary_erosion(filled) for filled in (binary_fill_holes(mask), binary_fill_holes(reference))]
    if not all(edge.any() for edge in edges):
        raise BadInput("A brain mask is empty: it has no boundary. Check the masks.")
    distance = distance_transform_edt(~edges[1], sampling=spacing_mm)
    return float(distance[edges[0]].mean())


def _in_voxels(volume: Volume, offset_mm: tuple[float, float, float]) -> Float64[np.ndarray, " 3"]:
    steps = np.linalg.solve(volume.grid.affine[:3, :3], np.asarray(offset_mm, dtype=np.float64))
    whole = np.rint(steps)
    return np.where(np.abs(steps - whole) < 1e-9, whole, steps)


def _with_voxels(volume: Volume, steps: Float64[np.ndarray, " 3"], brain: Bool[np.ndarray, "x y z"]) -> Volume:
    """Contrasts that are known inside `brain`, moved, inside the volume's own mask."""
    voxels = np.stack([_extended(values, brain, steps) for values in volume.voxels])
    return dataclasses.replace(volume, voxels=np.where(volume.brain_mask, voxels, np.float32(0)))


def _extended(
    values: Float32[np.ndarray, "x y z"], inside: Bool[np.ndarray, "x y z"], steps: Float64[np.ndarray, " 3"]
) -> Float32[np.ndarray, "x y z"]:
    """Values moved by `steps` voxels, continued beyond `inside` with the nearest of them, within their range."""
    nearest = tuple(distance_transform_edt(~inside, return_distances=False, return_indices=True))
    order = 1 if np.array_equal(steps, np.rint(steps)) else 3
    found = shift(values[nearest], steps, order=order, mode="nearest")
    low, high = float(values[inside].min()), float(values[inside].max())
    return np.asarray(np.clip(found, low, high), dtype=np.float32)


def _quantiles(values: Float[np.ndarray, " voxels"], probabilities: Sequence[float]) -> np.ndarray:
    if len(values) == 0:
        raise BadInput("No voxel to take quantiles of. Check the brain mask.")
    found: np.ndarray = np.quantile(np.asarray(values, dtype=np.float64), probabilities)
    return found
