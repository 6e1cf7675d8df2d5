"""From an encoder's named taps to feature rows: per layer, one row per in-brain position of its native grid."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from core.devices import device
from core.features.layout import (
    Stride,
    feature_layout,
    feature_stride,
    kept_channels,
    load_layout,
    positions_near,
    read_arrays,
    triple_of,
)
from core.features.settings import FeatureSettings
from core.types import FeatureLayout
from data.errors import BadInput
from data.json_files import write_json
from data.volume import Grid, Volume
from models.encoder import Encoder, load_encoder, load_weights, make_encoder, save_encoder
from models.settings import EncoderSettings
from models.tensor_files import save_tensors


def network_for(encoder: EncoderSettings, weights: str, contrasts: int) -> tuple[Encoder, EncoderSettings]:
    """The encoder of a recipe and its settings: untrained, or read from a directory or a safetensors file.

    BadInput when it cannot be made or read, or expects another number of contrasts.
    """
    try:
        network, settings = _made_or_loaded(encoder, weights)
    except ValueError as error:  # models knows no error of ours
        raise BadInput(str(error)) from error
    if settings.in_channels != contrasts:
        raise BadInput(
            f"The encoder expects {settings.in_channels} contrast(s), the volumes have {contrasts}. "
            "Prepare the contrasts that it was trained on, or set encoder in_channels."
        )
    return network, settings


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Features of one volume: per layer, one row per in-brain position of the layer's native grid."""

    rows: Mapping[str, Float[Tensor, "layer_positions channels"]]
    layout: FeatureLayout
    subject_id: str


@dataclass(eq=False)
class FeatureExtractor:
    """Volume -> FeatureMap through a frozen encoder. Made by `make_extractor`; carries the stored channel reduction."""

    encoder: Encoder
    settings: FeatureSettings
    layout: FeatureLayout
    device: torch.device
    projections: Mapping[str, Tensor] = field(default_factory=dict)
    """Per reduced layer, (channels in, channels kept): a selection or principal axes."""

    @torch.no_grad()
    def __call__(self, volume: Volume) -> FeatureMap:
        """Rows of every layer, float32. A subject's features do not depend on any other subject."""
        if not volume.grid.matches(self.layout.working_grid):
            raise BadInput(
                f"Volume {volume.subject_id!r} is on another grid ({volume.grid.shape}) than the features "
                f"({self.layout.working_grid.shape}). Prepare it with the run's own preprocessing."
            )
        batch = torch.tensor(volume.voxels, device=self.device)[None]
        maps = self.encoder.features(batch, self.settings.layers)
        rows = {name: self._rows(name, maps[name][0].float()) for name in self.settings.layers}
        return FeatureMap(rows, self.layout, volume.subject_id)

    def _rows(self, name: str, values: Float[Tensor, "channels x y z"]) -> Float[Tensor, "positions channels"]:
        values = _average_down(self._neighbourhoods(values), self._ratios(name))
        x, y, z = (torch.from_numpy(axis).to(values.device) for axis in self.layout.layer_positions[name].T)
        rows = values[:, x, y, z].T.contiguous()
        return rows @ self.projections[name].to(rows) if name in self.projections else rows

    def _neighbourhoods(self, values: Float[Tensor, "channels x y z"]) -> Float[Tensor, "channels x y z"]:
        """Means over the cube around each cell, as far as it lies on the grid; in-plane for a slice-wise encoder."""
        edge = self.settings.neighbourhood
        if edge == 1:
            return values
        kernel = (edge, edge, 1 if self.encoder.slicewise else edge)
        padding = (edge // 2, edge // 2, kernel[2] // 2)
        return functional.avg_pool3d(values[None], kernel, 1, padding, count_include_pad=False)[0]

    def _ratios(self, name: str) -> Stride:
        """Cells of the encoder's output per kept cell, along each axis."""
        own = next(tap.stride for tap in self.encoder.taps if tap.name == name)
        kept = np.array(self.layout.layer_grids[name].spacing_mm) / self.layout.working_grid.spacing_mm
        return triple_of([round(ratio) for ratio in kept / own])

    def save(self, directory: Path) -> None:
        """Write the layout and the reduction (the encoder is saved by its owner)."""
        directory.mkdir(parents=True, exist_ok=True)
        arrays = {f"projection.{n}": p for n, p in self.projections.items()}
        arrays["positions"] = torch.from_numpy(np.ascontiguousarray(self.layout.positions))
        save_tensors(directory / "features.safetensors", arrays)
        grid = self.layout.working_grid
        strides = {tap.name: list(tap.stride) for tap in self.encoder.taps}
        described = {
            "working_grid": {"shape": list(grid.shape), "affine": grid.affine.tolist()},
            "stride": list(feature_stride(self.encoder, self.settings.grid, grid)),
            "layers": [
                {"name": n, "stride": strides[n], "channels": self.layout.channels[n]} for n in self.settings.layers
            ],
        }
        write_json(directory / "features.json", described)


def make_extractor(
    encoder: Encoder,
    settings: FeatureSettings,
    train: Sequence[Volume],
    device: torch.device,
    advance: Callable[[], None] = lambda: None,
) -> FeatureExtractor:
    """An extractor for brains like the training ones; learns the channel reduction where one is asked for."""
    check_features(settings, encoder)
    support = np.zeros(train[0].grid.shape, dtype=bool)
    for volume in train:
        support |= volume.brain_mask
    encoder.eval().to(device)
    taps = {tap.name: tap for tap in encoder.taps}
    stride = feature_stride(encoder, settings.grid, train[0].grid)
    _check_strides(settings, stride, {name: taps[name].stride for name in settings.layers}, train[0].grid)
    layout = feature_layout(
        train[0].grid,
        stride,
        {name: taps[name].stride for name in settings.layers},
        {name: kept_channels(settings, taps[name].channels) for name in settings.layers},
        positions_near(support, stride),
    )
    if settings.reduction == "none":
        return FeatureExtractor(encoder, settings, layout, device)
    channels = {name: taps[name].channels for name in settings.layers}
    if settings.reduction == "draw":
        return FeatureExtractor(encoder, settings, layout, device, _drawn_channels(settings, channels))
    full = FeatureExtractor(encoder, settings, layout, device)
    return FeatureExtractor(encoder, settings, layout, device, _principal_axes(full, channels, train, advance))


def save_features(extractor: FeatureExtractor, settings: EncoderSettings | None, directory: Path) -> None:
    """Encoder and feature layout of a fitted detector, beside what it has learnt."""
    assert settings is not None
    save_encoder(extractor.encoder, settings, directory / "encoder")
    extractor.save(directory)


def load_features(directory: Path, features: FeatureSettings) -> tuple[FeatureExtractor, EncoderSettings]:
    """What `save_features` wrote, on the device that computes."""
    network, settings = load_encoder(directory / "encoder")
    return load_extractor(directory, network, features, device()), settings


def load_extractor(
    directory: Path, encoder: Encoder, settings: FeatureSettings, device: torch.device
) -> FeatureExtractor:
    """What `FeatureExtractor.save` wrote, around the same encoder."""
    arrays = read_arrays(directory)
    encoder.eval().to(device)
    projections = {n.removeprefix("projection."): a for n, a in arrays.items() if n.startswith("projection.")}
    return FeatureExtractor(encoder, settings, load_layout(directory), device, projections)


def _made_or_loaded(encoder: EncoderSettings, weights: str) -> tuple[Encoder, EncoderSettings]:
    if weights and Path(weights).is_dir():
        return load_encoder(Path(weights))
    network = make_encoder(encoder)
    if weights:
        network.loading_notes = tuple(load_weights(network, Path(weights)))
    return network, encoder


def check_features(settings: FeatureSettings, encoder: Encoder) -> None:
    """BadInput for an even neighbourhood, no layer, or a layer that the encoder lacks: known before a scan is read."""
    if settings.neighbourhood < 1 or settings.neighbourhood % 2 == 0:
        raise BadInput(f"neighbourhood is {settings.neighbourhood}. Allowed: 1 (the cell alone), 3, 5, ... cells.")
    known = [tap.name for tap in encoder.taps]
    unknown = [name for name in settings.layers if name not in known]
    if unknown or not settings.layers:
        given = ", ".join(map(repr, unknown)) or "(none)"
        raise BadInput(f"Layer {given} is not in the encoder. It has: {', '.join(known)}.")


def _check_strides(
    settings: FeatureSettings, stride: Stride, layer_strides: Mapping[str, Stride], working: Grid
) -> None:
    """A finer layer is averaged down by a whole number of its cells; BadInput where there is none."""
    for name, own in layer_strides.items():
        if any(common > o and common % o for o, common in zip(own, stride, strict=True)):
            cell = own[0] * working.spacing_mm[0]
            raise BadInput(
                f"Feature grid {settings.grid!r} is no multiple of layer {name!r}, whose cells are {cell:g} mm. "
                f"Give for example '{cell:g}mm' or '{2 * cell:g}mm', or leave the layer out."
            )


def _average_down(values: Float[Tensor, "channels x y z"], ratios: Stride) -> Float[Tensor, "channels i j k"]:
    """Triangle-weighted means centred on every r-th cell, per axis: finer layers on the feature grid, unshifted."""
    for axis, ratio in enumerate(ratios):
        size = values.shape[axis + 1]
        if ratio == 1:
            continue
        moved = values.movedim(axis + 1, -1)
        kernel = (ratio - torch.arange(-ratio + 1, ratio, device=values.device).abs()).to(values.dtype)[None, None]
        flat = moved.reshape(-1, 1, size)
        total = functional.conv1d(flat, kernel, stride=ratio, padding=ratio - 1)
        weight = functional.conv1d(torch.ones_like(flat[:1]), kernel, stride=ratio, padding=ratio - 1)
        values = (total / weight).reshape(*moved.shape[:-1], -1).movedim(-1, axis + 1)
    return values


def _drawn_channels(settings: FeatureSettings, channels: Mapping[str, int]) -> dict[str, Tensor]:
    projections = {}
    for number, name in enumerate(settings.layers):
        kept = kept_channels(settings, channels[name])
        generator = np.random.Generator(np.random.Philox(key=np.array([settings.seed, number], dtype=np.uint64)))
        chosen = np.sort(generator.choice(channels[name], size=kept, replace=False))
        projections[name] = torch.eye(channels[name])[:, torch.from_numpy(chosen)]
    return projections


def _principal_axes(
    full: FeatureExtractor, channels: Mapping[str, int], train: Sequence[Volume], advance: Callable[[], None]
) -> dict[str, Tensor]:
    """Leading principal axes per layer over all positions of all training volumes, from float64 sums."""
    raw = FeatureExtractor(full.encoder, full.settings, full.layout, full.device)
    total = {n: torch.zeros(channels[n], dtype=torch.float64) for n in full.settings.layers}
    square = {n: torch.zeros(channels[n], channels[n], dtype=torch.float64) for n in full.settings.layers}
    count = dict.fromkeys(full.settings.layers, 0)
    for volume in train:
        for name, rows in raw(volume).rows.items():
            wide = rows.double().cpu()
            total[name] += wide.sum(0)
            square[name] += wide.T @ wide
            count[name] += len(wide)
        advance()
    axes = {}
    for name in full.settings.layers:
        mean = total[name] / count[name]
        covariance = square[name] / count[name] - torch.outer(mean, mean)
        vectors = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, : full.layout.channels[name]]
        axes[name] = vectors.float().contiguous()
    return axes
