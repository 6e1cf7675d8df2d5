"""What a fit of the Gaussian leaves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from core.memory_plan import Form, GaussianSettings


@dataclass(frozen=True, eq=False)
class Fitted:
    """What a fit leaves, all that distances need."""

    channels: Mapping[str, int]
    lookup: Mapping[str, Int64[np.ndarray, " positions"]]
    settings: GaussianSettings
    form: Form
    n_subjects: int
    means: Mapping[str, Tensor]
    state: Mapping[str, Tensor]

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return next(iter(self.means.values())).device

    @property
    def n_positions(self) -> int:
        """Positions of the feature grid."""
        return len(next(iter(self.lookup.values())))

    def columns(self, layers: Sequence[str]) -> Int64[Tensor, " features"]:
        """Where the features of some layers stand among those of all."""
        starts = np.cumsum([0, *self.channels.values()])
        where = dict(zip(self.channels, starts, strict=False))
        columns = np.concatenate([np.arange(where[layer], where[layer] + self.channels[layer]) for layer in layers])
        return torch.from_numpy(columns).to(self.device)
