"""Pictures of a case: the scan with lesion and segmentation outlined, and its score map, each in three planes.

Colours are those of the Slices page: greys for anatomy, one map from violet to yellow for scores, blue for lesions,
green for segmentations. Radiological convention: the subject's left is on the right of axial and coronal slices.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image
from scipy.ndimage import binary_erosion, label

from core.study.places import centre_of
from data.prepared import Prepared

LESION_RGB = (63, 216, 255)
SEGMENTATION_RGB = (166, 242, 107)
WIDTH = 720
"""Pixels of a row of three planes."""
_GAP = 6
_LEVELS = 253
"""Levels of grey or of score; the last three of the 256 palette entries are outlines and ticks."""
_LESION, _SEGMENTATION, _TICK = 253, 254, 255
_TICK_RGB = (176, 184, 196)
_MARGIN = 4
_TICK_PIXELS = 9


@dataclass(frozen=True, eq=False)
class CasePictures:
    """Two PNGs as data URIs, with where they were cut."""

    scan: str
    scores: str
    centre: tuple[int, int, int]
    """Voxel of the working grid through which the planes run."""


def case_pictures(
    prepared: Prepared,
    scores: Float32[np.ndarray, "x y z"],
    threshold: float,
    brightest: float,
) -> CasePictures:
    """Pictures of one subject on the working grid through `centre_of_interest`.

    `scores` is NaN outside the brain; `brightest` is the score that gets the last colour.
    """
    volume = prepared.volume
    lesion = np.zeros(scores.shape, dtype=bool) if prepared.lesion is None else np.asarray(prepared.lesion.voxels)
    found = np.nan_to_num(scores, nan=-np.inf) >= threshold
    centre = centre_of_interest(prepared, found)
    box = _box(volume.brain_mask | lesion)
    anatomy = np.asarray(volume.voxels[0], dtype=np.float32)
    inside = anatomy[volume.brain_mask]
    top = float(np.percentile(inside, 99.5)) if inside.size else 1.0
    outlines = ((found, _SEGMENTATION), (lesion, _LESION))
    return CasePictures(
        scan=_picture(anatomy / (top or 1.0), outlines, centre, box, _greys()),
        scores=_picture(np.nan_to_num(scores) / (brightest or 1.0), outlines[1:], centre, box, score_colours()),
        centre=centre,
    )


def centre_of_interest(prepared: Prepared, found: Bool[np.ndarray, "x y z"]) -> tuple[int, int, int]:
    """Where to cut: the largest lesion, else the largest component of the segmentation, else the brain's middle."""
    lesion = None if prepared.lesion is None else prepared.lesion.voxels
    marked = lesion if lesion is not None and lesion.any() else found
    if not marked.any():
        return centre_of(prepared)
    parts, _ = label(marked, structure=np.ones((3, 3, 3)))
    largest = parts == int(np.bincount(parts.ravel())[1:].argmax()) + 1
    x, y, z = (int(largest.sum(axis=others).argmax()) for others in ((1, 2), (0, 2), (0, 1)))
    return x, y, z


def score_colours() -> UInt8[np.ndarray, "256 3"]:
    """The map of the Slices page (lightness rises evenly in OKLab), black for nothing, outlines at the end."""
    f = np.linspace(0.0, 1.0, _LEVELS - 1)
    colours = _with_marks(np.zeros((256, 3), dtype=np.uint8))
    colours[1:_LEVELS] = _oklab(0.3 + 0.65 * f, 0.1 + 0.4 * f * (1 - f) + 0.04 * f, np.radians(305 + 160 * f))
    return colours


def score_stops() -> list[tuple[int, int, int]]:
    """Eight colours of the map, darkest first: a gradient for its key."""
    chosen = score_colours()[np.linspace(1, _LEVELS - 1, 8).astype(int)]
    return [(int(r), int(g), int(b)) for r, g, b in chosen]


def _greys() -> UInt8[np.ndarray, "256 3"]:
    levels = np.minimum(np.arange(256) / (_LEVELS - 1), 1.0)
    return _with_marks(np.repeat(np.round(255 * levels).astype(np.uint8)[:, None], 3, axis=1))


def _with_marks(colours: UInt8[np.ndarray, "256 3"]) -> UInt8[np.ndarray, "256 3"]:
    colours[[_LESION, _SEGMENTATION, _TICK]] = LESION_RGB, SEGMENTATION_RGB, _TICK_RGB
    return colours


def _oklab(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> UInt8[np.ndarray, "n 3"]:
    """sRGB of OKLab polar coordinates. Ottosson 2020, bottosson.github.io/posts/oklab."""
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    cones = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.291485548 * b,
        ]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.707614701],
        ]
    )
    linear = np.clip(to_rgb @ cones**3, 0.0, 1.0)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * curved.T).astype(np.uint8)


def _picture(
    values: Float[np.ndarray, "x y z"],
    outlines: Sequence[tuple[Bool[np.ndarray, "x y z"], int]],
    centre: tuple[int, int, int],
    box: tuple[slice, slice, slice],
    colours: UInt8[np.ndarray, "256 3"],
) -> str:
    planes = []
    width = 2 * (box[0].stop - box[0].start) + box[1].stop - box[1].start
    scale = (WIDTH - 2 * _GAP) / width
    for axis in (2, 1, 0):
        plane = _enlarged(_on_screen(values, axis, centre, box), scale, Image.Resampling.BICUBIC)
        levels = np.round(np.clip(plane, 0.0, 1.0) * (_LEVELS - 1)).astype(np.uint8)
        for mask, level in outlines:
            levels[_edge(_on_screen(mask, axis, centre, box), scale)] = level
        _mark(levels, axis, centre, box, scale)
        planes.append(levels)
    height = max(plane.shape[0] for plane in planes)
    gap = np.zeros((height, _GAP), dtype=np.uint8)
    row = [part for plane in planes for part in (_centred(plane, height), gap)][:-1]
    return _png(np.concatenate(row, axis=1), colours)


def _mark(
    levels: UInt8[np.ndarray, "rows columns"],
    axis: int,
    centre: tuple[int, int, int],
    box: tuple[slice, slice, slice],
    scale: float,
) -> None:
    """Ticks at the four edges of a plane, in line with the centre: even a lesion of one voxel is found."""
    across, up = (a for a in (0, 1, 2) if a != axis)
    rows, columns = levels.shape
    column = min(max(round((box[across].stop - centre[across] - 0.5) * scale), 1), columns - 2)
    row = min(max(round((box[up].stop - centre[up] - 0.5) * scale), 1), rows - 2)
    for end in (slice(0, _TICK_PIXELS), slice(-_TICK_PIXELS, None)):
        levels[end, column - 1 : column + 1] = _TICK
        levels[row - 1 : row + 1, end] = _TICK


def _box(mask: Bool[np.ndarray, "x y z"]) -> tuple[slice, slice, slice]:
    """The brain with a margin; everything when there is no brain."""
    found = np.nonzero(mask)
    ends = [(int(w.min()), int(w.max())) if w.size else (0, n - 1) for w, n in zip(found, mask.shape, strict=True)]
    x, y, z = (slice(max(a - _MARGIN, 0), min(b + 1 + _MARGIN, n)) for (a, b), n in zip(ends, mask.shape, strict=True))
    return x, y, z


def _on_screen(
    values: np.ndarray, axis: int, centre: tuple[int, int, int], box: tuple[slice, slice, slice]
) -> np.ndarray:
    # RAS voxels: transposed, the second axis runs upwards once the rows are turned; then right to left, front to left.
    at = min(max(centre[axis], box[axis].start), box[axis].stop - 1) - box[axis].start
    plane: np.ndarray = np.take(values[box], at, axis=axis).T[::-1, ::-1]
    return plane


def _enlarged(plane: np.ndarray, scale: float, how: Image.Resampling) -> Float32[np.ndarray, "rows columns"]:
    size = (max(round(plane.shape[1] * scale), 1), max(round(plane.shape[0] * scale), 1))
    return np.asarray(Image.fromarray(np.asarray(plane, dtype=np.float32)).resize(size, how), dtype=np.float32)


def _edge(mask: Bool[np.ndarray, "rows columns"], scale: float) -> Bool[np.ndarray, "rows columns"]:
    """Inner edge of the enlarged mask, two pixels wide; a single voxel stays visible."""
    large = _enlarged(mask, scale, Image.Resampling.NEAREST) > 0.5
    return np.asarray(large & ~binary_erosion(large, iterations=2))


def _centred(plane: UInt8[np.ndarray, "rows columns"], height: int) -> UInt8[np.ndarray, "height columns"]:
    missing = height - plane.shape[0]
    return np.pad(plane, ((missing // 2, missing - missing // 2), (0, 0)))


def _png(levels: UInt8[np.ndarray, "rows columns"], colours: UInt8[np.ndarray, "256 3"]) -> str:
    """One byte per pixel and a palette: a third of the size of the same picture in RGB."""
    image = Image.fromarray(levels, mode="P")
    image.putpalette(colours.tobytes())
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
