"""Small pictures of a prepared scan: an axial, a coronal and a sagittal slice in a row, with the lesion outlined."""

import base64
import io

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image

from core.study.places import centre_of
from data.prepared import Prepared

ENLARGE = 2
"""Screen pixels per voxel edge: the outline is drawn in between the voxels."""
LESION_RGB = (255, 64, 160)
_GAP = 4


def montage(prepared: Prepared, contrast: int = 0) -> UInt8[np.ndarray, "rows columns 3"]:
    """Three slices of a subject on the working grid through `centre_of`, as RGB.

    Radiological convention: the subject's left is on the right of the axial and coronal slice; the sagittal slice
    looks to the left. Grey levels span the brain's values up to their 99.5th percentile.
    """
    volume = prepared.volume
    voxels = np.asarray(volume.voxels[contrast], dtype=np.float32)
    lesion = np.zeros(voxels.shape, dtype=bool) if prepared.lesion is None else prepared.lesion.voxels
    inside = voxels[volume.brain_mask]
    top = float(np.percentile(inside, 99.5)) if inside.size else 1.0
    shown = np.clip(voxels / (top or 1.0), 0.0, 1.0)
    panels = [
        outlined(_on_screen(shown, axis, at), _on_screen(lesion, axis, at))
        for axis, at in zip((2, 1, 0), reversed(centre_of(prepared)), strict=True)
    ]
    height = max(panel.shape[0] for panel in panels)
    gap = np.zeros((height, _GAP, 3), dtype=np.uint8)
    row = [part for panel in panels for part in (_centred(panel, height), gap)][:-1]
    return np.concatenate(row, axis=1)


def data_uri(picture: UInt8[np.ndarray, "rows columns 3"]) -> str:
    """The picture as a PNG inside its own address, so that a page or a file that shows it needs no other request."""
    png = io.BytesIO()
    Image.fromarray(picture).save(png, format="PNG")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode("ascii")


def outlined(
    plane: Float32[np.ndarray, "rows columns"], lesion: Bool[np.ndarray, "rows columns"]
) -> UInt8[np.ndarray, "big_rows big_columns 3"]:
    """A plane of values 0..1, enlarged linearly, with the inner edge of the lesion in colour, one pixel wide."""
    grey = np.round(255 * _enlarged(plane)).astype(np.uint8)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    rgb[_edge(lesion.repeat(ENLARGE, 0).repeat(ENLARGE, 1))] = LESION_RGB
    return rgb


def _on_screen(values: np.ndarray, axis: int, at: int) -> np.ndarray:
    # RAS voxels: the transposed plane has its second axis upwards once the rows are turned round.
    plane: np.ndarray = np.take(values, at, axis=axis).T[::-1]
    return plane[:, ::-1]  # right to left; front to the left in the sagittal plane


def _enlarged(plane: Float[np.ndarray, "rows columns"]) -> Float32[np.ndarray, "big_rows big_columns"]:
    for axis in (0, 1):
        size = plane.shape[axis]
        at = np.clip((np.arange(ENLARGE * size) + 0.5) / ENLARGE - 0.5, 0, size - 1)
        below = np.minimum(at.astype(int), max(size - 2, 0))
        above = np.minimum(below + 1, size - 1)
        weight = np.expand_dims(at - below, 1 - axis)
        plane = np.take(plane, below, axis) * (1 - weight) + np.take(plane, above, axis) * weight
    return np.asarray(plane, dtype=np.float32)


def _edge(mask: Bool[np.ndarray, "rows columns"]) -> Bool[np.ndarray, "rows columns"]:
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(mask & ~inner)


def _centred(panel: UInt8[np.ndarray, "rows columns 3"], height: int) -> UInt8[np.ndarray, "height columns 3"]:
    missing = height - panel.shape[0]
    return np.pad(panel, ((missing // 2, missing - missing // 2), (0, 0), (0, 0)))
