"""Before any training: what a set of views does to tissue brightness, beside what a lesion does to it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from scipy.ndimage import binary_dilation
from torch import Tensor

from core.metrics.bootstrap import Interval, mean_interval
from core.pretraining.view_settings import ViewSettings
from core.pretraining.visibility.changes import (
    FAMILIES,
    GEOMETRIC,
    VIEW,
    Change,
    Window,
    family_shares,
    lesion_balls,
    lesion_change,
    lesion_places,
    view_changes,
)
from core.pretraining.visibility.measure import LEVEL, RESAMPLES
from core.pretraining.visibility.settings import LesionKind, VisibilitySettings

TONE = ("gamma", "bias")
"""Kinds of view that change brightness smoothly, as lesions do."""
SURROUND_MM = 8.0
"""How far around a lesion its surroundings reach."""


@dataclass(frozen=True)
class IntensityChange:
    """Median change of brightness under one kind of view, or inside one kind of lesion."""

    change: str
    of_range: Interval
    """Median |change| over brain (or lesion) voxels, as a share of the scan's intensity range; mean over scans."""
    share: float | None
    """Of views that this kind takes part in; none for lesions."""


@dataclass(frozen=True)
class Likeness:
    """Share of a lesion's change of brightness that gamma and bias field could have made at that place.

    Least squares of the change on what gamma does, v ln v, and on what a bias field does, v times a polynomial of
    order 1 in place; 1 − residual / total, sums of squares.
    """

    kind: LesionKind
    name: str
    inside: Interval
    """Seen from inside the lesion only."""
    with_surround: Interval
    """Seen with 8 mm of brain around it, where the lesion changes nothing."""


@dataclass(frozen=True)
class IntensityEffects:
    """What views and lesions do to brightness, without any network."""

    views: tuple[IntensityChange, ...]
    lesions: tuple[IntensityChange, ...]
    likeness: tuple[Likeness, ...]

    def of(self, change: str) -> IntensityChange | None:
        """One change by name; none when it is off."""
        return next((one for one in (*self.views, *self.lesions) if one.change == change), None)


def intensity_effects(windows: Sequence[Window], views: ViewSettings, settings: VisibilitySettings) -> IntensityEffects:
    """Brightness changes at matched places: flips, affine and elastic deformation make none and are left out."""
    shares = family_shares(windows, views, settings.seed)
    on = tuple(family for family in TONE if shares[family] > 0)
    found: dict[str, list[float]] = {}
    alike: dict[LesionKind, list[tuple[float, float]]] = {kind: [] for kind in settings.kinds()}
    for window in windows:
        pools: dict[str, list[np.ndarray]] = {}
        changes = [c for c in view_changes(window, views, settings) if c.name not in (*GEOMETRIC, VIEW)]
        for change in changes:
            pools.setdefault(change.name, []).append(_shares_of_range(window, change))
        places = lesion_places(window, settings)
        for kind in settings.kinds():
            lesion = lesion_change(window, kind, places, settings.seed)
            pools[kind.name] = [_shares_of_range(window, lesion)]
            alike[kind].append(_likeness(window, kind, places, lesion, on))
        for name, parts in pools.items():
            if (pool := np.concatenate(parts)).size:
                found.setdefault(name, []).append(float(np.median(pool)))
    return IntensityEffects(
        views=tuple(
            IntensityChange(family, _mean(found[family], settings.seed), shares[family])
            for family in FAMILIES
            if family in found
        ),
        lesions=tuple(
            IntensityChange(kind.name, _mean(found[kind.name], settings.seed), None) for kind in settings.kinds()
        ),
        likeness=tuple(
            Likeness(kind, kind.name, *(_mean([r[end] for r in alike[kind]], settings.seed) for end in (0, 1)))
            for kind in settings.kinds()
        ),
    )


def explained_share(
    change: Float64[np.ndarray, " voxels"],
    values: Float64[np.ndarray, " voxels"],
    places: Float64[np.ndarray, "voxels 3"],
    families: Sequence[str],
) -> float:
    """Share of a change of brightness (values between 0 and 1) that gamma and a bias field explain; 0 when nothing
    changes or neither is on."""
    total = float((change**2).sum())
    columns: list[np.ndarray] = []
    if "gamma" in families:
        columns.append(values * np.log(np.maximum(values, 1e-6)))
    if "bias" in families:
        centred = places - places.mean(axis=0)
        centred = centred / max(float(np.abs(centred).max()), 1e-6)
        columns += [values, *(values[:, None] * centred).T]
    if total == 0 or not columns:
        return 0.0
    design = np.stack(columns, axis=1)
    solution = np.linalg.lstsq(design, change, rcond=None)[0]
    return float(np.clip(1 - ((change - design @ solution) ** 2).sum() / total, 0, 1))


def _shares_of_range(window: Window, change: Change) -> np.ndarray:
    where = window.inside.brain_mask if change.where is None else change.where
    moved = (change.image - window.image()).abs().mean(dim=0).numpy()
    shares: np.ndarray = moved[where] / window.intensity_range
    return shares


def _likeness(
    window: Window, kind: LesionKind, places: Int64[np.ndarray, "places 3"], lesion: Change, on: Sequence[str]
) -> tuple[float, float]:
    """Means over the lesions of a scan: seen from inside, and with surroundings."""
    low = float(window.volume.voxels.min())
    values = (_first(window.image()) - low) / window.intensity_range
    change = (_first(lesion.image) - _first(window.image())) / window.intensity_range
    reach = np.ceil(SURROUND_MM / np.array(window.inside.grid.spacing_mm)).astype(int)
    offsets = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), -1)
    near = np.linalg.norm(offsets * np.array(window.inside.grid.spacing_mm), axis=-1) <= SURROUND_MM
    found = []
    for ball in lesion_balls(window, kind, places):
        around = binary_dilation(ball, structure=near) & window.inside.brain_mask
        found.append([_explained(values, change, seen, on) for seen in (ball, around)])
    inside, surround = np.mean(found, axis=0)
    return float(inside), float(surround)


def _explained(values: np.ndarray, change: np.ndarray, seen: Bool[np.ndarray, "i j k"], on: Sequence[str]) -> float:
    return explained_share(change[seen], values[seen], np.argwhere(seen).astype(np.float64), on)


def _first(image: Float[Tensor, "contrasts i j k"]) -> Float64[np.ndarray, "i j k"]:
    return image[0].to(torch.float64).numpy()


def _mean(values: Sequence[float], seed: int) -> Interval:
    return mean_interval(np.asarray(values), seed=seed, n_resamples=RESAMPLES, level=LEVEL, purpose="visibility")
