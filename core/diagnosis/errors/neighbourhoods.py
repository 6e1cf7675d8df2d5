"""Voxels and their surroundings: window sums, gradients, components, what lies within a distance."""

import itertools
import math
from collections.abc import Sequence

import cc3d
import numpy as np
from jaxtyping import Float32, Float64, Int64

_MANY = 6
"""Running sums pay off once the boxes hold this many times the voxels of the field."""
_BLOCK = 256
"""Boxes summed at a time, so that they stay in the processor's cache."""


def squared_gradient(image: np.ndarray, valid: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Squared gradient, per mm², by differences to valid neighbours only: central, one-sided, or 0 without any."""
    total = np.zeros(image.shape, dtype=np.float32)
    for axis, spacing in enumerate(spacing_mm):
        before, after = _ends(axis)
        both = valid[before] & valid[after]
        step = np.where(both, image[after] - image[before], np.float32(0)) / np.float32(spacing)
        slope, pairs = np.zeros(image.shape, dtype=np.float32), np.zeros(image.shape, dtype=np.uint8)
        slope[before] += step
        slope[after] += step
        pairs[before] += both
        pairs[after] += both
        slope /= np.maximum(pairs, 1)
        total += slope * slope
    return total


def _ends(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    whole = [slice(None)] * 3
    before, after = list(whole), list(whole)
    before[axis], after[axis] = slice(None, -1), slice(1, None)
    return tuple(before), tuple(after)


def window_sums(
    fields: Sequence[Float32[np.ndarray, "x y z"]],
    pairs: Sequence[tuple[int, int]],
    points: Int64[np.ndarray, " points"],
    half: Sequence[int],
) -> Float64[np.ndarray, "pairs points"]:
    """Sum of the product of two fields over the box of `half` voxels to either side of each point, for each pair.

    Beyond the ends there is nothing. Few points are summed one by one; for many, running sums along each axis give any
    box from its eight corners (Crow 1984, summed-area tables).
    """
    at = np.unravel_index(points, fields[0].shape)
    if len(points) * math.prod(2 * h + 1 for h in half) < _MANY * fields[0].size:
        return _sums_one_by_one(fields, pairs, at, half)
    corners = _corners(at, half, fields[0].shape)
    return np.stack([_sums_from_table(fields[a] * fields[b].astype(np.float64), corners) for a, b in pairs])


def _sums_one_by_one(
    fields: Sequence[np.ndarray], pairs: Sequence[tuple[int, int]], at: tuple[np.ndarray, ...], half: Sequence[int]
) -> np.ndarray:
    windows = [
        np.lib.stride_tricks.sliding_window_view(np.pad(field, [(h, h) for h in half]), [2 * h + 1 for h in half])
        for field in fields
    ]
    sums = np.zeros((len(pairs), len(at[0])))
    for start in range(0, len(at[0]), _BLOCK):
        block = tuple(a[start : start + _BLOCK] for a in at)
        found = [w[block].reshape(len(block[0]), -1).astype(np.float64) for w in windows]
        sums[:, start : start + _BLOCK] = [np.einsum("ij,ij->i", found[a], found[b]) for a, b in pairs]
    return sums


def _sums_from_table(field: np.ndarray, corners: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
    table = np.zeros([n + 1 for n in field.shape])
    table[1:, 1:, 1:] = field
    for axis in range(3):
        np.cumsum(table, axis=axis, out=table)
    sums = np.zeros(len(corners[0][1]))
    for sign, places in corners:
        sums += sign * table.reshape(-1)[places]
    return sums


def _corners(
    at: tuple[np.ndarray, ...], half: Sequence[int], shape: tuple[int, ...]
) -> list[tuple[int, Int64[np.ndarray, " points"]]]:
    """Sign and flat place, in a table one larger along every axis, of the eight corners of each box."""
    ends = [(np.maximum(a - h, 0), np.minimum(a + h + 1, n)) for a, h, n in zip(at, half, shape, strict=True)]
    larger = [n + 1 for n in shape]
    return [
        ((-1) ** (3 - x - y - z), np.ravel_multi_index((ends[0][x], ends[1][y], ends[2][z]), larger))
        for x, y, z in itertools.product((0, 1), repeat=3)
    ]


def component_voxels(mask: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Size of the 26-connected component of the mask in which each point lies, voxels."""
    labels = np.asarray(cc3d.connected_components(mask.view(np.uint8), connectivity=26)).reshape(-1)
    sizes: np.ndarray = np.bincount(labels[np.flatnonzero(mask)])[labels[points]]
    return sizes


def offsets_within(reach_mm: float, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Steps to every voxel whose cube comes within `reach_mm` of the centre of voxel (0, 0, 0)."""
    spacing = np.array(spacing_mm)
    most = np.ceil(reach_mm / spacing + 0.5).astype(int)
    steps = np.stack(np.meshgrid(*(np.arange(-m, m + 1) for m in most), indexing="ij"), axis=-1).reshape(-1, 3)
    gaps = np.maximum(np.abs(steps) - 0.5, 0) * spacing
    offsets: np.ndarray = steps[np.sqrt((gaps**2).sum(axis=1)) <= reach_mm + 1e-6]
    return offsets


def any_at(mask: np.ndarray, points: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Whether the mask holds at any of the offsets from each point; beyond the ends it does."""
    reach = np.abs(offsets).max(axis=0)
    padded = np.pad(mask, [(r, r) for r in reach], constant_values=True)
    indices = np.stack(np.unravel_index(points, mask.shape))
    start = np.ravel_multi_index(tuple(indices + reach[:, None]), padded.shape)
    strides = np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
    found = np.zeros(len(points), dtype=bool)
    for step in offsets @ strides:
        found |= padded.reshape(-1)[start + step]
    return found


def bounding_box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """The smallest slices that hold all that is true; one voxel when nothing is."""
    if not mask.any():
        return slice(0, 1), slice(0, 1), slice(0, 1)
    spans = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    x, y, z = (slice(int(span[0]), int(span[-1]) + 1) for span in spans)
    return x, y, z
