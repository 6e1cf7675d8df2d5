"""Layers and rows of features as a Gaussian takes them."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from data.errors import BadInput

Rows = Mapping[str, Tensor]
"""Features of one volume: layer -> (native positions, channels)."""


def check_layers(given: Mapping[str, object], channels: Mapping[str, int]) -> None:
    """BadInput unless a volume has every layer of the fit."""
    missing = [layer for layer in channels if layer not in given]
    if missing:
        raise BadInput(f"A volume lacks the layers {missing}; it has {list(given)}. Extract the same layers for all.")


def checked_features(
    rows: Rows, channels: Mapping[str, int], lookup: Mapping[str, np.ndarray], sizes: Mapping[str, int], device: str
) -> dict[str, Tensor]:
    """Features of one volume as the Gaussian takes them. BadInput for other shapes or values."""
    # `sizes` are the native positions of the fit, still unknown (empty) for its first volume.
    check_layers(rows, channels)
    checked = {}
    for layer, count in channels.items():
        values = rows[layer].detach()
        needed = sizes.get(layer, int(lookup[layer].max()) + 1)
        usable = len(values) == needed if layer in sizes else len(values) >= needed
        if values.ndim != 2 or values.shape[1] != count or not usable:
            allowed = f"{'' if layer in sizes else 'at least '}{needed} native positions, {count} channels"
            raise BadInput(
                f"Features of layer {layer!r} have shape {tuple(values.shape)}. Allowed is ({allowed}). "
                "Extract them with the layout of the fit."
            )
        if not all(bool(torch.isfinite(end)) for end in torch.aminmax(values)):
            raise BadInput(
                f"Features of layer {layer!r} are not finite. Allowed are numbers. Check that volume's intensities."
            )
        checked[layer] = values.to(device=device, dtype=torch.float32)
    return checked
