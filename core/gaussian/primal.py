"""The Gaussian from streamed moments: (n, mean, M2) by Chan's batched update, mergeable, O(1) in the subjects.

Chan, Golub & LeVeque 1983, Algorithms for computing the sample variance. Blocks of 8 to 16 volumes are both
faster and more accurate than one at a time.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from core.memory_plan import Covariance

BLOCK_VOLUMES = 16
_SHARED_POSITIONS = 4096


class Moments:
    """Count, mean per layer and scatter: full (P, d, d), shared (d, d), or diagonal per layer."""

    n: int
    means: dict[str, Float64[Tensor, "layer_positions channels"]]
    scatter: dict[str, Tensor]

    def __init__(
        self,
        channels: Mapping[str, int],
        rows: Mapping[str, Tensor],
        lookup: Mapping[str, Tensor],
        covariance: Covariance,
        dtype: torch.dtype,
    ) -> None:
        self.channels, self.lookup, self.covariance, self.dtype = channels, lookup, covariance, dtype
        self.n = 0
        self.means = {x: torch.zeros(rows[x].shape, dtype=torch.float64, device=rows[x].device) for x in channels}
        self.scatter = self._no_scatter()

    def update(self, block: Mapping[str, Float[Tensor, "layer_positions volumes channels"]]) -> None:
        """Add a block of volumes: its own scatter, and the step between the two means as one more row."""
        k = next(iter(block.values())).shape[1]
        rank_rows = {}
        for layer in self.channels:
            mean = block[layer].mean(1, dtype=torch.float64)
            step = mean - self.means[layer]
            weight = (self.n * k / (self.n + k)) ** 0.5
            rank_rows[layer] = torch.cat((block[layer] - mean[:, None], weight * step[:, None]), 1)
            self.means[layer] += step * (k / (self.n + k))
        self.n += k
        self._add_rank(rank_rows)

    def merge(self, other: "Moments") -> None:
        """Add the moments of other volumes. Merge in the order of the shards' keys for the same bits every time."""
        if other.n == 0:
            return
        weight = (self.n * other.n / (self.n + other.n)) ** 0.5
        steps = {layer: other.means[layer] - self.means[layer] for layer in self.channels}
        for layer, step in steps.items():
            self.means[layer] += step * (other.n / (self.n + other.n))
        for key, value in other.scatter.items():
            self.scatter[key] += value
        self.n += other.n
        self._add_rank({layer: weight * step[:, None] for layer, step in steps.items()})

    def _no_scatter(self) -> dict[str, Tensor]:
        if self.covariance == "diagonal":
            return {layer: torch.zeros_like(mean) for layer, mean in self.means.items()}
        d = sum(self.channels.values())
        first = next(iter(self.channels))
        positions = len(self.lookup[first])
        shape = (positions, d, d) if self.covariance == "full" else (d, d)
        dtype = self.dtype if self.covariance == "full" else torch.float64
        return {"all": torch.zeros(shape, dtype=dtype, device=self.means[first].device)}

    def _add_rank(self, rows: Mapping[str, Tensor]) -> None:
        if self.covariance == "diagonal":
            for layer, values in rows.items():
                self.scatter[layer] += values.square().sum(1)
            return
        scatter = self.scatter["all"]
        positions = len(next(iter(self.lookup.values())))
        step = _SHARED_POSITIONS if self.covariance == "shared" else 256
        for start in range(0, positions, step):
            here = slice(start, start + step)
            joint = torch.cat([rows[layer][self.lookup[layer][here]] for layer in self.channels], -1)
            if self.covariance == "shared":
                flat = joint.flatten(0, 1)
                scatter.addmm_(flat.T, flat)
            else:
                joint = joint.to(scatter.dtype)
                scatter[here].baddbmm_(joint.transpose(1, 2), joint)
