"""The types that travel between the parts of the method."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, Self

import numpy as np
from jaxtyping import Float32, Int64

from data.errors import BadInput
from data.volume import Grid, Volume, frozen

Monitor = Callable[[int, Mapping[str, float]], None]
"""Called with a step number and named values; a progress bar, a journal, or nothing."""


LayerSet = tuple[str, ...]
"""Layers whose features are modelled together."""


def silent(step: int, values: Mapping[str, float]) -> None:
    """The monitor that says nothing."""


@dataclass(frozen=True, eq=False)
class FeatureLayout:
    """Where features live: the in-brain positions of every layer on its own native grid.

    The *feature grid* is the common grid on which distances are computed; `positions` are its in-brain voxels.
    A layer coarser than the feature grid keeps its own, fewer positions; `lookup[layer]` says which of them is
    nearest to each feature-grid position. So a coarse layer is stored once, not copied (nearest upsampling).
    """

    working_grid: Grid
    feature_grid: Grid
    positions: Int64[np.ndarray, "positions 3"]
    """Voxel indices into the feature grid."""
    layer_grids: Mapping[str, Grid]
    layer_positions: Mapping[str, Int64[np.ndarray, "layer_positions 3"]]
    """Voxel indices into each layer's grid."""
    lookup: Mapping[str, Int64[np.ndarray, " positions"]]
    """For each feature-grid position, its row in `layer_positions[layer]`."""
    channels: Mapping[str, int]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in order."""
        return tuple(self.channels)


@dataclass(frozen=True, eq=False)
class ScoreMap:
    """How anomalous each voxel is: larger is more anomalous, NaN outside the brain."""

    scores: Float32[np.ndarray, "x y z"]
    grid: Grid
    subject_id: str
    unit: str

    def __post_init__(self) -> None:
        scores = frozen(np.asarray(self.scores, dtype=np.float32))
        if scores.shape != self.grid.shape:
            raise BadInput(f"Score map of {self.subject_id!r} has shape {scores.shape}, its grid {self.grid.shape}.")
        object.__setattr__(self, "scores", scores)


class Detector(Protocol):
    """A dataclass whose fields are hyper-parameters; `fit` learns from healthy volumes; learned state ends in `_`."""

    score_unit: ClassVar[str]
    plain_name: ClassVar[str]
    """What it is, in words: a Gaussian per voxel."""

    def fit(self, train: Sequence[Volume], monitor: Monitor = silent) -> Self:
        """Learn what is normal; forgets an earlier fit."""
        ...

    def score(self, volume: Volume) -> ScoreMap:
        """How anomalous each voxel of the volume is. RuntimeError when not fitted."""
        ...

    def save(self, directory: Path) -> None:
        """Write the fitted state as safetensors, npy and JSON."""
        ...

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote."""
        ...
