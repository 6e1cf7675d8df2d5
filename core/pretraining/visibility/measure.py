"""How far the features of every layer move, in healthy standard deviations, and the visibility of lesions.

The movement of a cell is the root mean square over channels of (changed − unchanged) / spread, where the spread of a
channel is its standard deviation over in-brain cells and healthy scans. Diagonal, not Mahalanobis: a few scans do not
give a covariance of some hundred channels, and its inverse would count directions in which healthy tissue hardly
varies, and noise is all there is, as much as the others.

Of a scan, the median over cells and views (cells inside lesions, for lesions); over scans, the mean and its bootstrap
interval. Views that move things are compared at matched places: cell p of the view with the unchanged features at the
point that p shows, linearly between cells. At coarse layers a part of such a movement is what interpolation costs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor
from torch.nn import functional

from core import devices
from core.metrics.bootstrap import Interval, mean_interval, resampled_means
from core.pretraining.view_settings import ViewSettings
from core.pretraining.visibility.changes import (
    VIEW,
    Change,
    Window,
    check_settings,
    family_shares,
    lesion_change,
    lesion_places,
    view_changes,
    window_of,
)
from core.pretraining.visibility.settings import LesionKind, VisibilitySettings
from core.randomness import number_of, stream
from data.errors import BadInput
from data.volume import Volume
from models.taps import Tap

LEVEL, RESAMPLES = 0.95, 2000
STILL = 1e-4
"""Healthy SDs below which nothing has moved: rounding."""
MOST_CELLS = 2000
"""Cells of a layer that a median is taken over, per view; more change nothing that is shown."""
_BATCH = 6
_DEAD = 1e-6


class Network(Protocol):
    """What is measured: an encoder, or anything with taps."""

    taps: tuple[Tap, ...]

    def features(self, x: Float[Tensor, "batch channels x y z"], names: Sequence[str]) -> dict[str, Tensor]:
        """Features at the named taps."""
        ...


@dataclass(frozen=True)
class Movement:
    """How far the features of a layer move under one change, in healthy standard deviations."""

    change: str
    per_scan: tuple[float, ...]
    mean: Interval


@dataclass(frozen=True)
class LesionMovement:
    """How far a lesion moves the features inside it, and how visible it is."""

    kind: LesionKind
    name: str
    movement: Movement
    visibility: Interval
    """Movement under the lesion divided by that under whole views; no number where views move nothing."""


@dataclass(frozen=True)
class LayerVisibility:
    """One layer."""

    layer: str
    cell_voxels: tuple[int, int, int]
    families: tuple[Movement, ...]
    """Per kind of view that is on."""
    view: Movement
    """Under whole views, as training draws them."""
    lesions: tuple[LesionMovement, ...]
    lesion: Movement
    """Mean over all kinds of lesion."""
    visibility: Interval
    """That divided by the movement under whole views."""


@dataclass(frozen=True)
class Visibility:
    """Every layer of one network, on the same scans, views and lesions."""

    layers: tuple[LayerVisibility, ...]
    subjects: tuple[str, ...]
    window_voxels: tuple[int, int, int]
    shares: Mapping[str, float]
    """Of views that each kind takes part in."""

    def layer(self, name: str) -> LayerVisibility:
        """One layer by name."""
        return next(one for one in self.layers if one.layer == name)


def windows_of(volumes: Sequence[Volume], views: ViewSettings, settings: VisibilitySettings) -> list[Window]:
    """The scans that are looked at: a seeded draw without replacement, in order of the draw."""
    check_settings(settings)
    if not len(volumes):
        raise BadInput("No healthy scan to measure on. Give at least one; two for an interval.")
    order = stream(settings.seed, "visibility scans").permutation(len(volumes))[: settings.scans]
    chosen = [volumes[int(i)] for i in order]
    return [window_of(number_of(one.subject_id), one, views, settings.window_voxels) for one in chosen]


@torch.no_grad()
def measure_visibility(
    windows: Sequence[Window],
    networks: Mapping[str, Network],
    views: ViewSettings,
    settings: VisibilitySettings,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Visibility]:
    """Visibility of lesions in every layer of each network (several: the same changes for all of them).

    Networks are expected in eval mode, on the device of `core.devices`. `advance` is called once per scan.
    """
    references = {name: [_features(network, [w.image()])[0] for w in windows] for name, network in networks.items()}
    spreads = {name: _spreads(network, references[name], windows) for name, network in networks.items()}
    found: dict[str, dict[str, dict[str, list[float]]]] = {name: {} for name in networks}
    for number, window in enumerate(windows):
        changes = view_changes(window, views, settings)
        places = lesion_places(window, settings)
        changes += [lesion_change(window, kind, places, settings.seed) for kind in settings.kinds()]
        for name, network in networks.items():
            medians = _medians(network, window, references[name][number], spreads[name], changes)
            for layer, by_change in medians.items():
                for change, value in by_change.items():
                    found[name].setdefault(layer, {}).setdefault(change, []).append(value)
        advance()
    shares = family_shares(windows, views, settings.seed)
    return {
        name: Visibility(
            tuple(_layer(tap, found[name][tap.name], shares, settings, len(windows)) for tap in network.taps),
            tuple(window.volume.subject_id for window in windows),
            windows[0].inside.grid.shape,
            shares,
        )
        for name, network in networks.items()
    }


def ratio_interval(above: Sequence[float], below: Sequence[float], seed: int, still: float = STILL) -> Interval:
    """Ratio of two means over the same scans, resampled in pairs. No number where the lower mean is (almost) 0."""
    top, bottom = (np.asarray(values, dtype=np.float64) for values in (above, below))
    n = len(top)
    if n == 0 or bottom.mean() <= still:
        return Interval(None, None, None, n, LEVEL)
    ratio = float(top.mean() / bottom.mean())
    if n < 2:
        return Interval(ratio, None, None, n, LEVEL)
    means = [resampled_means(v, seed=seed, n_resamples=RESAMPLES, purpose="visibility") for v in (top, bottom)]
    drawn = means[0] / np.maximum(means[1], still)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(ratio, float(low), float(high), n, LEVEL)


def movement_of(change: str, per_scan: Sequence[float], seed: int) -> Movement:
    """Values of scans with their interval."""
    mean = mean_interval(np.asarray(per_scan), seed=seed, n_resamples=RESAMPLES, level=LEVEL, purpose="visibility")
    return Movement(change, tuple(float(v) for v in per_scan), mean)


def _layer(
    tap: Tap, found: Mapping[str, list[float]], shares: Mapping[str, float], settings: VisibilitySettings, scans: int
) -> LayerVisibility:
    if len(found.get(VIEW, ())) < scans:
        raise BadInput(
            f"The window is too small for layer {tap.name!r}: views show none of its cells. Give more window_voxels."
        )
    view = movement_of(VIEW, found[VIEW], settings.seed)
    lesions = []
    for kind in settings.kinds():
        movement = movement_of(kind.name, found[kind.name], settings.seed)
        visibility = ratio_interval(movement.per_scan, view.per_scan, settings.seed)
        lesions.append(LesionMovement(kind, kind.name, movement, visibility))
    every = np.mean([one.movement.per_scan for one in lesions], axis=0)
    # A kind of view that no draw of some scan held is left out: its mean would be over other scans.
    families = [f for f in shares if len(found.get(f, ())) == scans]
    return LayerVisibility(
        layer=tap.name,
        cell_voxels=tap.stride,
        families=tuple(movement_of(family, found[family], settings.seed) for family in families),
        view=view,
        lesions=tuple(lesions),
        lesion=movement_of("lesion", [float(v) for v in every], settings.seed),
        visibility=ratio_interval([float(v) for v in every], view.per_scan, settings.seed),
    )


def _features(network: Network, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    names = [tap.name for tap in network.taps]
    maps = network.features(torch.stack(list(images)).to(devices.device()), names)
    return [{name: maps[name][n].float() for name in names} for n in range(len(images))]


def _spreads(
    network: Network, references: Sequence[Mapping[str, Tensor]], windows: Sequence[Window]
) -> dict[str, Tensor]:
    """Per layer, the SD of each channel over in-brain cells and scans; infinite for channels that never vary."""
    spreads = {}
    for tap in network.taps:
        rows = []
        for features, window in zip(references, windows, strict=True):
            cells = torch.from_numpy(_brain_cells(window, tap)).to(features[tap.name].device)
            rows.append(features[tap.name][:, cells].double())
        spread = torch.cat(rows, dim=1).std(dim=1, correction=0)
        spreads[tap.name] = torch.where(spread > _DEAD * spread.max().clamp_min(1e-30), spread, torch.inf).float()
    return spreads


def _medians(
    network: Network,
    window: Window,
    reference: Mapping[str, Tensor],
    spreads: Mapping[str, Tensor],
    changes: Sequence[Change],
) -> dict[str, dict[str, float]]:
    """Per layer and name of change, the median movement over cells and changes of that name."""
    values: dict[str, dict[str, list[np.ndarray]]] = {tap.name: {} for tap in network.taps}
    for start in range(0, len(changes), _BATCH):
        some = changes[start : start + _BATCH]
        for change, features in zip(some, _features(network, [c.image for c in some]), strict=True):
            for tap in network.taps:
                moved = _moved(features[tap.name], reference[tap.name], spreads[tap.name], tap, window, change)
                values[tap.name].setdefault(change.name, []).append(moved)
    return {
        layer: {n: _median(parts) for n, parts in named.items() if any(map(len, parts))}
        for layer, named in values.items()
    }


def _median(parts: Sequence[np.ndarray]) -> float:
    moved = float(np.median(np.concatenate(parts)))
    return moved if moved >= STILL else 0.0


def _moved(
    features: Tensor, reference: Tensor, spread: Tensor, tap: Tap, window: Window, change: Change
) -> Float32[np.ndarray, " cells"]:
    """Movement of the cells that are looked at, at most MOST_CELLS of them."""
    if change.points is None:
        cells = _some(_cells_of(change.where, tap) if change.where is not None else _brain_cells(window, tap))
        before = _at(reference, cells)
    else:
        points = change.points[:: tap.stride[0], :: tap.stride[1], :: tap.stride[2]]
        cells = _some(_matched_cells(points, tap, window))
        x, y, z = cells.T
        before = _read_at(reference, points[x, y, z], tap)
    live = torch.isfinite(spread)
    if not live.any():
        return np.zeros(len(cells), dtype=np.float32)
    step = (_at(features, cells) - before) / spread[:, None]
    moved: np.ndarray = torch.linalg.vector_norm(step, dim=0).div(int(live.sum()) ** 0.5).cpu().numpy()
    return moved


def _some(cells: Bool[np.ndarray, "a b c"]) -> Int64[np.ndarray, "cells 3"]:
    """All cells, or a seeded draw of MOST_CELLS."""
    every = np.argwhere(cells).astype(np.int64)
    if len(every) <= MOST_CELLS:
        return every
    return every[stream(0, "visibility cells", len(every)).permutation(len(every))[:MOST_CELLS]]


def _at(features: Tensor, cells: Int64[np.ndarray, "cells 3"]) -> Float[Tensor, "channels cells"]:
    flat = np.ravel_multi_index(tuple(cells.T), tuple(features.shape[1:]))
    return features.flatten(1).index_select(1, torch.from_numpy(np.asarray(flat)).to(features.device))


def _read_at(reference: Tensor, points: Float[Tensor, "cells 3"], tap: Tap) -> Float[Tensor, "channels cells"]:
    """Features at points of the window (voxels), linearly between cells; beyond the last cell, that cell."""
    stride = torch.tensor(tap.stride, dtype=torch.float32)
    size = torch.tensor(reference.shape[1:], dtype=torch.float32)
    normalised = (2 * (points / stride) / (size - 1).clamp_min(1) - 1).flip(-1).to(reference.device)
    read = functional.grid_sample(
        reference[None], normalised[None, None, None], mode="bilinear", padding_mode="border", align_corners=True
    )
    return read[0, :, 0, 0]


def _brain_cells(window: Window, tap: Tap) -> Bool[np.ndarray, "a b c"]:
    """Cells whose centre voxel is brain, away from the edge of the window, where networks see padding."""
    here = window.inside.brain_mask & _away_from_edge(window.inside.grid.shape)
    cells = here[:: tap.stride[0], :: tap.stride[1], :: tap.stride[2]]
    if cells.any():
        return np.asarray(cells)
    every: np.ndarray = window.inside.brain_mask[:: tap.stride[0], :: tap.stride[1], :: tap.stride[2]]
    return every


def _matched_cells(points: Tensor, tap: Tap, window: Window) -> Bool[np.ndarray, "a b c"]:
    """Cells away from the edge that show a brain voxel away from the edge, between cells of the unchanged features."""
    shape = window.inside.grid.shape
    free = _away_from_edge(shape)[:: tap.stride[0], :: tap.stride[1], :: tap.stride[2]]
    read = np.rint(points.numpy()).astype(np.int64)
    last = [(n - 1) // s * s for n, s in zip(shape, tap.stride, strict=True)]
    within = ((points.numpy() >= 0) & (points.numpy() <= np.array(last))).all(axis=-1)
    at = tuple(np.clip(read[..., axis], 0, n - 1) for axis, n in enumerate(shape))
    good = window.inside.brain_mask & _away_from_edge(shape)
    cells: np.ndarray = free & within & good[at]
    return cells if cells.any() else within & window.inside.brain_mask[at]


def _away_from_edge(shape: tuple[int, int, int]) -> Bool[np.ndarray, "i j k"]:
    free = np.zeros(shape, dtype=bool)
    free[tuple(slice(n // 6, n - n // 6) for n in shape)] = True
    return free


def _cells_of(where: Bool[np.ndarray, "i j k"], tap: Tap) -> Bool[np.ndarray, "a b c"]:
    """Cells whose centre voxel is among the voxels; when there is none, those with one within half a cell."""
    x, y, z = tap.stride
    cells: np.ndarray = where[::x, ::y, ::z]
    if cells.any() or not where.any():
        return cells
    cells = np.zeros(cells.shape, dtype=bool)
    at = np.argwhere(where)
    nearest = np.minimum(np.rint(at / np.array(tap.stride)).astype(np.int64), np.array(cells.shape) - 1)
    cells[tuple(nearest.T)] = True
    return cells
