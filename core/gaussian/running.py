"""Learning the Gaussian: volumes are added one by one or in parts that are merged."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from core.gaussian import dual
from core.gaussian.checked import Rows, check_layers, checked_features
from core.gaussian.on_disk import read_gaussian, write_gaussian
from core.gaussian.primal import BLOCK_VOLUMES, Moments
from core.gaussian.voxel_gaussian import VoxelGaussian
from core.memory_plan import Form, GaussianSettings, plan_memory
from data.errors import BadInput

_PROJECT_BYTES = 2e6


def expected_inflation(n: int, d: int) -> float:
    """E[m²]/d of a new healthy subject under a full covariance of n subjects and d features without shrinkage.

    (N−1)(N+1) / (N(N−d−2)), from the F distribution of Hotelling's T²; 1 for endless subjects, infinite when
    N <= d + 2. It is why scores of joint layers are not comparable with scores of one layer.
    """
    if n - d - 2 <= 0:
        return float("inf")
    return (n - 1) * (n + 1) / (n * (n - d - 2))


def fit_gaussian(
    volumes: Iterable[Rows],
    lookup: Mapping[str, Int64[np.ndarray, " positions"]],
    channels: Mapping[str, int],
    settings: GaussianSettings,
    *,
    n_subjects: int,
    limit_bytes: float = 6e9,
    device: str = "cpu",
) -> "VoxelGaussian":
    """Fit the Gaussian of every position in one pass over the volumes.

    `n_subjects` is their number, needed to choose the form before the first is read. Raises EnvironmentProblem when
    the memory law exceeds `limit_bytes`, BadInput for fewer than two volumes, another number than announced, or
    features of the wrong shape or not finite. Given tensors are not changed, and not copied when already on `device`.
    """
    running: RunningGaussian | None = None
    for rows in volumes:
        if running is None:
            n_positions = {layer: len(rows[layer]) for layer in channels if layer in rows}
            check_layers(n_positions, channels)
            plan = plan_memory(
                n_subjects, channels, n_positions, len(next(iter(lookup.values()))), settings, limit_bytes
            )
            running = RunningGaussian(channels, lookup, settings, plan.form, device=device)
        running.update([rows])
    if running is None or running.n != n_subjects:
        raise BadInput(
            f"{running.n if running else 0} volumes came, announced were {n_subjects}. Give the number that comes."
        )
    return running.finish()


class RunningGaussian:
    """A Gaussian that is still being fitted: give it volumes, merge it with those of other shards, finish it.

    Merging in the order of the shards' keys makes the result independent of who finished first.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        lookup: Mapping[str, Int64[np.ndarray, " positions"]],
        settings: GaussianSettings,
        form: Form,
        *,
        device: str = "cpu",
    ) -> None:
        self.channels, self.settings, self.form, self.device = dict(channels), settings, form, device
        self.lookup = {layer: np.ascontiguousarray(lookup[layer], dtype=np.int64) for layer in channels}
        self._waiting: list[dict[str, Tensor]] = []
        self._moments: Moments | None = None
        if len({len(index) for index in self.lookup.values()}) != 1:
            raise BadInput("The lookups of the layers differ in length. All need one entry per feature-grid position.")

    @property
    def n(self) -> int:
        """Volumes given so far."""
        return len(self._waiting) + (self._moments.n if self._moments else 0)

    def update(self, batch: Sequence[Rows]) -> None:
        """Add volumes. In dual form the tensors are kept by reference: do not write into them afterwards."""
        for rows in batch:
            self._waiting.append(checked_features(rows, self.channels, self.lookup, self._sizes(), self.device))
            if self.form == "primal" and len(self._waiting) == BLOCK_VOLUMES:
                self._absorb()

    def merge(self, other: "RunningGaussian") -> None:
        """Add all volumes of another shard, in place."""
        if (other.channels, other.settings, other.form) != (self.channels, self.settings, self.form):
            raise BadInput("Two Gaussians with different layers, settings or form cannot be merged. Fit them alike.")
        mine, its = self._sizes(), other._sizes()
        if (mine and its and mine != its) or any(
            not np.array_equal(self.lookup[layer], other.lookup[layer]) for layer in self.channels
        ):
            raise BadInput(
                f"Two Gaussians of different layouts cannot be merged: native positions {mine} and {its}, or another "
                "lookup. Fit all shards with one layout."
            )
        if self.form == "dual":
            self._waiting.extend(other._waiting)
            return
        self._absorb()
        other._absorb()
        if self._moments is None or other._moments is None:
            if other._moments is not None:
                self._moments = self._no_moments(other._moments.means)
                self._moments.merge(other._moments)
            return
        self._moments.merge(other._moments)

    def save(self, directory: Path) -> None:
        """Write the partial fit as safetensors and JSON."""
        directory.mkdir(parents=True, exist_ok=True)
        self._absorb()
        tensors = {f"sample.{i:06d}.{layer}": rows[layer] for i, rows in enumerate(self._waiting) for layer in rows}
        if self._moments is not None:
            tensors |= {f"mean.{layer}": mean for layer, mean in self._moments.means.items()}
            tensors |= {f"scatter.{key}": value for key, value in self._moments.scatter.items()}
        write_gaussian(directory, tensors, self.lookup, self.channels, self.settings, self.form, self.n, 0)

    @classmethod
    def load(cls, directory: Path, device: str = "cpu") -> Self:
        """Read what `save` wrote, to go on with it or to merge it."""
        described, tensors = read_gaussian(directory, device)
        running = cls(
            described.channels,
            {layer: tensors[f"lookup.{layer}"].cpu().numpy() for layer in described.channels},
            described.settings,
            described.form,
            device=device,
        )
        if described.form == "dual":
            running._waiting = [
                {layer: tensors[f"sample.{i:06d}.{layer}"] for layer in described.channels} for i in range(described.n)
            ]
        elif described.n:
            moments = running._no_moments({layer: tensors[f"mean.{layer}"] for layer in described.channels})
            moments.n = described.n
            moments.means = {layer: tensors[f"mean.{layer}"] for layer in described.channels}
            moments.scatter = {key: tensors[f"scatter.{key}"] for key in moments.scatter}
            running._moments = moments
        return running

    def finish(self) -> "VoxelGaussian":
        """The fitted Gaussian. The running fit is used up. BadInput for fewer than two volumes."""
        if self.n < 2:
            raise BadInput(f"{self.n} volume(s) given. A single volume has no variance. Give at least 2 volumes.")
        n = self.n
        if self.form == "dual":
            means, state = self._project()
        else:
            self._absorb()
            assert self._moments is not None
            means, state = self._moments.means, self._moments.scatter
            self._moments = None
        return VoxelGaussian(self.channels, self.lookup, self.settings, self.form, n, means, state)

    def _project(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        means, projected = {}, {}
        volumes, self._waiting = self._waiting, []
        for layer, channels in self.channels.items():
            stack = [rows.pop(layer) for rows in volumes]
            size = len(stack[0])
            step = max(1, int(_PROJECT_BYTES / (8 * len(stack) * channels)))
            means[layer] = torch.empty((size, channels), dtype=torch.float64, device=self.device)
            projected[layer] = torch.empty((size, len(stack) - 1, channels), device=self.device)
            for start in range(0, size, step):
                here = slice(start, start + step)
                block = torch.stack([rows[here] for rows in stack], 1)
                projected[layer][here], means[layer][here] = dual.project(block)
        return means, projected

    def _sizes(self) -> dict[str, int]:
        # Native positions per layer, known from the first volume on.
        first = self._waiting[0] if self._waiting else self._moments.means if self._moments else {}
        return {layer: len(values) for layer, values in first.items()}

    def _absorb(self) -> None:
        if self.form == "dual" or not self._waiting:
            return
        if self._moments is None:
            self._moments = self._no_moments(self._waiting[0])
        self._moments.update(
            {layer: torch.stack([rows[layer] for rows in self._waiting], 1) for layer in self.channels}
        )
        self._waiting = []

    def _no_moments(self, rows: Rows) -> Moments:
        lookup = {layer: torch.from_numpy(index).to(self.device) for layer, index in self.lookup.items()}
        dtype = torch.float64 if self.settings.accumulate == "float64" else torch.float32
        return Moments(self.channels, rows, lookup, self.settings.covariance, dtype)
