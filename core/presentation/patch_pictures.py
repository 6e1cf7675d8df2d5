"""Pictures of a place in a scan: an axial, a coronal and a sagittal cut-out around one voxel, the place marked.

Radiological convention unless asked otherwise: the subject's left is on the right of the axial and coronal cut-out;
the sagittal one looks to the left.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw, ImageFont

from core.study.places import refuse_outside
from data.volume import Volume

EDGE_MM = 48.0
"""Edge of a cut-out: wide enough to recognise the place, small enough to see the patch."""
PIXELS = 180
"""Edge of a cut-out on the picture."""
GAMMA = 1.6
"""Power of the greys: above 1 it tells bright tissues apart, on T1 white matter and a bright lesion."""
LABEL = 20
"""Height of a line of text on a sheet."""
MARK_RGB = (255, 214, 76)
_GAP = 6
_TICK, _OPEN = 0.10, 0.09
"""Length of each arm of the cross, and the distance of its inner end from the centre, as shares of the edge."""

Convention = Literal["radiological", "neurological"]


def patch_picture(
    volume: Volume,
    voxel: Sequence[int],
    window: tuple[float, float],
    *,
    edge_mm: float = EDGE_MM,
    convention: Convention = "radiological",
    contrast: int = 0,
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Three cut-outs side by side, grey across `window`, an open cross around the voxel at each one's centre.

    What lies beyond the scan is black. Voxels run to the right, front and top (RAS), as on every working grid.
    """
    refuse_outside(volume, voxel)
    panels = []
    for axis in (2, 1, 0):
        plane = cut_out(volume.voxels[contrast], voxel, axis, volume.grid.spacing_mm, edge_mm)
        flipped = convention == "neurological" and axis != 0
        panels.append(_marked(_enlarged(plane[:, ::-1] if flipped else plane, window)))
    gap = np.zeros((PIXELS, _GAP, 3), dtype=np.uint8)
    return np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)


def cut_out(
    voxels: Float32[np.ndarray, "x y z"],
    voxel: Sequence[int],
    axis: int,
    spacing_mm: Sequence[float],
    edge_mm: float = EDGE_MM,
) -> Float32[np.ndarray, "rows columns"]:
    """The plane through a voxel across `axis`, as it stands on the screen: the voxel is the middle one of both edges.

    Rows from top (or front) to bottom, columns from the subject's right to left (axis 0: from front to back).
    """
    reach = [0 if k == axis else max(1, round(edge_mm / 2 / spacing_mm[k])) for k in range(3)]
    low = [max(0, int(v) - r) for v, r in zip(voxel, reach, strict=True)]
    high = [min(n, int(v) + r + 1) for v, r, n in zip(voxel, reach, voxels.shape, strict=True)]
    there = np.asarray(voxels[low[0] : high[0], low[1] : high[1], low[2] : high[2]], dtype=np.float32)
    missing = [(r - (int(v) - a), r - (b - 1 - int(v))) for v, r, a, b in zip(voxel, reach, low, high, strict=True)]
    plane: np.ndarray = np.pad(there, missing).squeeze(axis)
    return plane.T[::-1, ::-1]


def window_of(
    places: Sequence[tuple[Volume, Sequence[int]]], contrast: int = 0, edge_mm: float = EDGE_MM
) -> tuple[float, float]:
    """One grey window for several places: 2nd to 99.8th percentile of the brain's values around all of them.

    Of the surroundings alone, because there the tissue that is shown spreads over all greys; wide enough for the
    places themselves, which may be small and bright.
    """
    inside = np.concatenate([_around(volume, voxel, contrast, edge_mm) for volume, voxel in places])
    if not inside.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(inside, (2.0, 99.8)))
    middles = np.concatenate([_around(volume, voxel, contrast, 0.0) for volume, voxel in places])
    high = max(high, float(middles.max(initial=high)))
    return (low, high) if high > low else (low, low + 1.0)


def labelled_sheet(
    pictures: Sequence[UInt8[np.ndarray, "rows columns 3"]], labels: Sequence[str]
) -> UInt8[np.ndarray, "all_rows columns 3"]:
    """Pictures below each other in radiological convention, planes named on top, each picture below its label."""
    width = pictures[0].shape[1]
    parts = [_planes(width)]
    for picture, label in zip(pictures, labels, strict=True):
        parts += [_line(width, [(_GAP, label, "lm")]), picture]
    return np.concatenate(parts)


def _around(volume: Volume, voxel: Sequence[int], contrast: int, edge_mm: float) -> Float32[np.ndarray, " voxels"]:
    """Values of the brain in the box around a voxel."""
    reach = [max(1, round(edge_mm / 2 / mm)) for mm in volume.grid.spacing_mm]
    box = tuple(slice(max(0, int(v) - r), int(v) + r + 1) for v, r in zip(voxel, reach, strict=True))
    inside: np.ndarray = np.asarray(volume.voxels[contrast], dtype=np.float32)[box][volume.brain_mask[box]]
    return inside


def _planes(width: int) -> UInt8[np.ndarray, "rows columns 3"]:
    words = []
    for number, (plane, start, end) in enumerate((("axial", "R", "L"), ("coronal", "R", "L"), ("sagittal", "A", "P"))):
        left = number * (PIXELS + _GAP)
        words += [(left + 2, start, "lm"), (left + PIXELS // 2, plane, "mm"), (left + PIXELS - 2, end, "rm")]
    return _line(width, words)


def _line(width: int, words: Sequence[tuple[int, str, str]]) -> UInt8[np.ndarray, "rows columns 3"]:
    """A strip of text; what the font cannot write (it has ASCII) is a question mark."""
    strip = Image.new("RGB", (width, LABEL), (0, 0, 0))
    drawing, font = ImageDraw.Draw(strip), ImageFont.load_default(size=12)
    for x, text, anchor in words:
        written = text.replace("\u00a0", " ").encode("ascii", "replace").decode()
        drawing.text((x, LABEL // 2), written, fill=(255, 255, 255), font=font, anchor=anchor)
    return np.asarray(strip)


def _enlarged(
    plane: Float32[np.ndarray, "rows columns"], window: tuple[float, float]
) -> UInt8[np.ndarray, "pixels pixels"]:
    low, high = window
    grey = np.clip((np.asarray(plane) - low) / (high - low), 0.0, 1.0).astype(np.float32) ** GAMMA
    big = np.asarray(Image.fromarray(grey).resize((PIXELS, PIXELS), Image.Resampling.BILINEAR))
    return np.round(255 * big).astype(np.uint8)


def _marked(grey: UInt8[np.ndarray, "pixels pixels"]) -> UInt8[np.ndarray, "pixels pixels 3"]:
    rgb = np.repeat(grey[..., None], 3, axis=2)
    middle, inner = PIXELS // 2, round(_OPEN * PIXELS)
    outer = inner + round(_TICK * PIXELS)
    for width, colour in ((3, (0, 0, 0)), (2, MARK_RGB)):
        across = slice(middle - width, middle + width)
        for arm in (slice(middle - outer, middle - inner), slice(middle + inner, middle + outer)):
            rgb[arm, across] = colour
            rgb[across, arm] = colour
    return rgb
