"""What is done to a healthy scan to see how far features move: one kind of view at a time, whole views, lesions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy.ndimage import distance_transform_edt, gaussian_filter
from torch import Tensor

from core.pretraining.view_settings import ViewSettings
from core.pretraining.views import ViewDraw, apply_view, draw_view, view_coordinates
from core.pretraining.visibility.settings import LesionKind, VisibilitySettings
from core.randomness import stream
from data.errors import BadInput
from data.planted_texture import plant
from data.volume import Grid, Mask, Volume

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "flip": ("flip",),
    "affine": ("scale", "rotation_degrees", "translation_voxels"),
    "elastic": ("elastic_voxels",),
    "ghost": ("ghost", "ghost_axis", "ghost_copies"),
    "gamma": ("gamma",),
    "noise": ("noise_std",),
    "bias": ("bias",),
    "blur": ("blur_voxels",),
    "swap": ("swaps",),
}
"""Kinds of view, and the fields of `ViewDraw` that they are."""
GEOMETRIC = ("flip", "affine", "elastic")
LOCAL = ("swap",)
"""They change few places, so they are measured where they did."""
VIEW = "view"
"""Name of a whole view, as training draws it."""
_LOOKED_AT = 100
"""Draws per scan among which those of one kind are looked for."""
_APART_MM = 32.0
_TISSUE_PERCENT = (20.0, 80.0)
_TISSUE_MM = 3.0


@dataclass(frozen=True, eq=False)
class Window:
    """A healthy scan and the part in its middle that the network sees."""

    number: int
    """Of the subject's id; keys what is random about it."""
    volume: Volume
    start: tuple[int, int, int]
    inside: Volume
    """The part itself, on its own grid."""

    @property
    def intensity_range(self) -> float:
        """Largest less smallest intensity of the scan; what strengths of views are shares of."""
        return float(max(np.ptp(one) for one in self.volume.voxels)) or 1.0

    def image(self) -> Float[Tensor, "contrasts i j k"]:
        """The part as a tensor."""
        return torch.tensor(self.inside.voxels)


@dataclass(frozen=True, eq=False)
class Change:
    """A changed scan, where its voxels were read, and where it is to be looked at."""

    name: str
    """A kind of view, "view", or the name of a lesion."""
    image: Float[Tensor, "contrasts i j k"]
    points: Float[Tensor, "i j k 3"] | None = None
    """Per voxel, the place in the unchanged window that it shows, in voxels; None: its own."""
    where: Bool[np.ndarray, "i j k"] | None = None
    """Voxels whose cells are looked at; None: the brain."""


def check_settings(settings: VisibilitySettings) -> None:
    """BadInput for settings that measure nothing."""
    if settings.scans < 1:
        raise BadInput(f"--scans is {settings.scans}. Allowed: 1 and above; 6 and above for what training changed.")
    counts = {
        "draws": settings.draws,
        "whole_views": settings.whole_views,
        "places": settings.places,
        "window_voxels": settings.window_voxels,
        "number of diameters_mm": len(settings.diameters_mm),
        "number of contrasts": len(settings.contrasts),
    }
    for name, count in counts.items():
        if count < 1:
            raise BadInput(f"The {name} is {count}. Allowed: 1 and above.")
    if min(settings.diameters_mm) <= 0 or not all(0 <= c <= 1 for c in settings.contrasts):
        raise BadInput(
            f"Diameters {list(settings.diameters_mm)} mm, contrasts {list(settings.contrasts)}. Allowed: diameters "
            "above 0, contrasts from 0 to 1."
        )


def window_of(number: int, volume: Volume, views: ViewSettings, edge: int) -> Window:
    """The part in the middle of a scan: the size of a crop, at most `edge` voxels; a flip maps it to itself."""
    asked = views.crop_voxels or volume.grid.shape
    wanted = [min(crop, n, max(edge, 1)) for crop, n in zip(asked, volume.grid.shape, strict=True)]
    sizes = [c - (n - c) % 2 if c > 1 else c for c, n in zip(wanted, volume.grid.shape, strict=True)]
    start = [(n - c) // 2 for c, n in zip(sizes, volume.grid.shape, strict=True)]
    box = tuple(slice(s, s + c) for s, c in zip(start, sizes, strict=True))
    brain = volume.brain_mask[box]
    if not brain.any():
        raise BadInput(f"The middle of {volume.subject_id!r} holds no brain voxel. Check its brain mask.")
    affine = volume.grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array(start, dtype=np.float64)
    grid = Grid((sizes[0], sizes[1], sizes[2]), affine)
    part = Volume(volume.voxels[(slice(None), *box)], grid, brain, volume.subject_id, volume.contrasts)
    return Window(number, volume, (start[0], start[1], start[2]), part)


def family_shares(windows: Sequence[Window], views: ViewSettings, seed: int) -> dict[str, float]:
    """Share of drawn views that each kind takes part in."""
    draws = [draw for window in windows for draw in _draws(window, views, seed)]
    return {family: float(np.mean([_is_on(draw, family) for draw in draws])) for family in FAMILIES}


def view_changes(window: Window, views: ViewSettings, settings: VisibilitySettings) -> list[Change]:
    """Views of one kind at a time, as strong as drawn when drawn at all, and whole views as they come."""
    draws = _draws(window, views, settings.seed)
    changes = []
    for family in FAMILIES:
        of_family = [only(draw, family) for draw in draws if _is_on(draw, family)][: settings.draws]
        changes += [view_change(window, family, draw) for draw in of_family]
    return changes + [view_change(window, VIEW, draw) for draw in draws[: settings.whole_views]]


def view_change(window: Window, name: str, draw: ViewDraw) -> Change:
    """One view of a window; `draw` crops the window out of its volume."""
    clean = window.image()
    image = apply_view(torch.tensor(window.volume.voxels), draw)
    points = None
    if any(_is_on(draw, family) for family in GEOMETRIC):
        points = view_coordinates(draw, window.volume.grid.shape) - torch.tensor(window.start, dtype=torch.float32)
    where = None
    if name in LOCAL:
        where = np.asarray(((image - clean).abs().amax(dim=0) > 0).numpy()) & window.inside.brain_mask
    return Change(name, image, points, where)


def only(draw: ViewDraw, family: str) -> ViewDraw:
    """The draw with nothing but one kind of view."""
    still = ViewDraw(draw.crop_start, draw.crop_shape, field_seed=draw.field_seed)
    values: dict[str, Any] = {name: getattr(draw, name) for name in FAMILIES[family]}
    return replace(still, **values)


def lesion_change(window: Window, kind: LesionKind, places: Int64[np.ndarray, "places 3"], seed: int) -> Change:
    """The window with balls planted at the places; the very same image when the contrast is 0."""
    lesion = np.logical_or.reduce(lesion_balls(window, kind, places))
    if kind.contrast == 0:
        return Change(kind.name, window.image(), None, lesion)
    planted = plant(
        window.inside,
        Mask(lesion, window.inside.grid),
        contrast=kind.contrast,
        edge_mm=min(2.0, kind.diameter_mm / 4),
        texture_seed=int(stream(seed, "visibility texture", window.number).integers(2**32)),
        polarity=kind.polarity,
    )
    return Change(kind.name, torch.tensor(planted.voxels), None, lesion)


def lesion_balls(
    window: Window, kind: LesionKind, places: Int64[np.ndarray, "places 3"]
) -> list[Bool[np.ndarray, "i j k"]]:
    """One mask per place, cut to the brain."""
    indices = np.moveaxis(np.indices(window.inside.grid.shape), 0, -1)
    spacing = np.array(window.inside.grid.spacing_mm)
    away = [np.linalg.norm((indices - place) * spacing, axis=-1) for place in places]
    return [(one <= kind.diameter_mm / 2) & window.inside.brain_mask for one in away]


def lesion_places(window: Window, settings: VisibilitySettings) -> Int64[np.ndarray, "places 3"]:
    """Voxels of ordinary tissue (neither the darkest nor the brightest fifth) where the largest lesion fits in.

    When there is none, the voxel deepest in the brain.
    """
    brain, spacing = window.inside.brain_mask, np.array(window.inside.grid.spacing_mm)
    padded = np.pad(brain, 1)  # the edge of the window is an edge of the brain
    depth = distance_transform_edt(padded, sampling=spacing)[1:-1, 1:-1, 1:-1]
    weight = gaussian_filter(brain.astype(np.float64), _TISSUE_MM / spacing)
    values = np.where(brain, window.inside.voxels[0], 0.0).astype(np.float64)
    local = gaussian_filter(values, _TISSUE_MM / spacing) / np.maximum(weight, 1e-6)
    low, high = np.percentile(local[brain], _TISSUE_PERCENT)
    fits = brain & (depth >= max(settings.diameters_mm) / 2) & (local >= low) & (local <= high)
    candidates = np.argwhere(fits)
    if not len(candidates):
        return np.array([np.unravel_index(int(depth.argmax()), depth.shape)], dtype=np.int64)
    generator = stream(settings.seed, "visibility places", window.number)
    candidates = candidates[generator.permutation(len(candidates))]
    chosen = [candidates[0]]
    apart = np.full(len(candidates), np.inf)
    while len(chosen) < settings.places:
        apart = np.minimum(apart, np.linalg.norm((candidates - chosen[-1]) * spacing, axis=1))
        free = np.flatnonzero(apart >= _APART_MM)
        if not len(free):
            break
        chosen.append(candidates[free[0]])
    return np.asarray(chosen, dtype=np.int64)


def _draws(window: Window, views: ViewSettings, seed: int) -> list[ViewDraw]:
    """The second view of a pair, which is the augmented one in every set of views, again and again."""
    whole = window.volume.grid.shape
    own = replace(views, crop_voxels=window.inside.grid.shape)
    drawn = (draw_view(own, whole, seed, step, window.number, 1) for step in range(1, _LOOKED_AT + 1))
    return [replace(draw, crop_start=window.start) for draw in drawn]


_STILL = ViewDraw((0, 0, 0), (1, 1, 1))


def _is_on(draw: ViewDraw, family: str) -> bool:
    leading = FAMILIES[family][:1] if family == "ghost" else FAMILIES[family]
    return any(getattr(draw, name) != getattr(_STILL, name) for name in leading)
