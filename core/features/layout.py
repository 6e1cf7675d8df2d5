"""Where the features of each layer lie: strides, channels and cells on one grid, and how that is kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64
from scipy.ndimage import maximum_filter
from torch import Tensor

from core.features.settings import FeatureSettings
from core.types import FeatureLayout
from data.errors import BadInput, IntegrityError
from data.json_files import read_json
from data.schemas import check_schema
from data.volume import Grid
from models.encoder import Encoder
from models.tensor_files import load_tensors

Stride = tuple[int, int, int]
SCHEMA = 1


def feature_layout(
    working_grid: Grid,
    stride: Stride,
    layer_strides: Mapping[str, Stride],
    channels: Mapping[str, int],
    positions: Int64[np.ndarray, "positions 3"],
) -> FeatureLayout:
    """Where the features of every layer live, for the given cells of the feature grid.

    A layer finer than the feature grid is averaged down to it; a coarser one keeps its own grid, and every
    feature-grid position looks up its nearest cell. Every tap is a centred convolution, so cell i of a layer with
    stride s lies on voxel s·i: no half-cell shift. Strides in voxels of the working grid.
    """
    grids: dict[str, Grid] = {}
    layer_positions: dict[str, np.ndarray] = {}
    lookup: dict[str, np.ndarray] = {}
    for name, own_stride in layer_strides.items():
        kept = tuple(max(own, common) for own, common in zip(own_stride, stride, strict=True))
        grids[name] = working_grid.coarser((kept[0], kept[1], kept[2]))
        # Half-way positions go to the even neighbour, so every cell serves as many on its left as on its right.
        nearest = np.rint(positions * np.array(stride) / np.array(kept)).astype(np.int64)
        nearest = np.minimum(nearest, np.array(grids[name].shape) - 1)
        unique, inverse = np.unique(nearest, axis=0, return_inverse=True)
        layer_positions[name], lookup[name] = unique, inverse.reshape(-1).astype(np.int64)
    return FeatureLayout(
        working_grid=working_grid,
        feature_grid=working_grid.coarser(stride),
        positions=positions,
        layer_grids=grids,
        layer_positions=layer_positions,
        lookup=lookup,
        channels=dict(channels),
    )


def positions_near(support: Bool[np.ndarray, "x y z"], stride: Stride) -> Int64[np.ndarray, "positions 3"]:
    """Feature-grid cells with a supported voxel within half a stride."""
    reach = tuple(2 * (s // 2) + 1 for s in stride)
    grown = maximum_filter(support, size=reach)
    positions = np.argwhere(grown[:: stride[0], :: stride[1], :: stride[2]]).astype(np.int64)
    if len(positions) == 0:
        raise BadInput("No brain voxel lies on the working grid. Check the brain masks and the registration.")
    return positions


def feature_stride(encoder: Encoder, grid: str, working: Grid) -> Stride:
    """Working-grid voxels per feature-grid cell, from a layer's name or from millimetres."""
    strides = {tap.name: tap.stride for tap in encoder.taps}
    if grid in strides:
        return strides[grid]
    try:
        spacing = float(grid.removesuffix("mm"))
    except ValueError:
        spacing = -1.0
    coarsest = min(n * own for n, own in zip(working.shape, working.spacing_mm, strict=True))
    if not 0 < spacing <= coarsest:  # NaN and infinity neither
        spacing = -1.0
    steps = [round(spacing / own) for own in working.spacing_mm]
    if (
        spacing <= 0
        or min(steps) < 1
        or any(abs(n * own - spacing) > 1e-3 for n, own in zip(steps, working.spacing_mm, strict=True))
    ):
        raise BadInput(
            f"Feature grid {grid!r} is neither a layer ({', '.join(strides)}) nor a multiple of the working grid's "
            f"{working.spacing_mm[0]:g} mm up to {coarsest:g} mm. Give for example '{2 * working.spacing_mm[0]:g}mm'."
        )
    return steps[0], steps[1], steps[2]


def kept_channels(settings: FeatureSettings, channels: int) -> int:
    """Channels of a layer after the reduction."""
    return channels if settings.reduction == "none" else min(channels, settings.max_channels)


LAYOUT_FILES = ("features.json", "features.safetensors")
"""What `load_layout` reads."""


def load_layout(directory: Path) -> FeatureLayout:
    """The layout that `FeatureExtractor.save` wrote, without the encoder."""
    described = read_json(directory / "features.json")
    check_schema(directory / "features.json", described, SCHEMA)
    grid = Grid(triple_of(described["working_grid"]["shape"]), np.array(described["working_grid"]["affine"]))
    return feature_layout(
        grid,
        triple_of(described["stride"]),
        {layer["name"]: triple_of(layer["stride"]) for layer in described["layers"]},
        {layer["name"]: int(layer["channels"]) for layer in described["layers"]},
        read_arrays(directory)["positions"].numpy(),
    )


def read_arrays(directory: Path) -> dict[str, Tensor]:
    """What `FeatureExtractor.save` wrote beside its description. IntegrityError when it is damaged."""
    try:
        return load_tensors(directory / "features.safetensors")
    except ValueError as error:
        raise IntegrityError(f"{error}. Fit the run again, or restore the file.") from error


def triple_of(values: Sequence[int]) -> Stride:
    """One stride per axis."""
    return int(values[0]), int(values[1]), int(values[2])
