"""One Gaussian per position of healthy features, fitted once, scored for any combination of layers.

A marginal of a Gaussian is a sub-block of it, so no combination is ever refitted. Two exact forms stand behind one
door: `dual` keeps the training features (few subjects), `primal` their moments (many). Nothing here knows images:
a volume is `rows`, per layer one row of channels for each native position, and `lookup[layer]` names the row that
belongs to each of the P positions on which distances are wanted (so a coarse layer is stored once).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from core.devices import each_on_one_thread, threads
from core.gaussian.checked import Rows, checked_features
from core.gaussian.distances import Block
from core.gaussian.fitted import Fitted
from core.gaussian.on_disk import read_gaussian, write_gaussian
from core.memory_plan import Form, GaussianSettings, block_positions
from core.types import Monitor, silent
from data.errors import BadInput

COMPANY = 24
"""Columns of every system: products of fewer take other ways through the linear algebra, and round otherwise."""
_CACHED_POSITIONS = 512
"""Larger blocks are slower: their kernels leave the processor's cache between two steps."""


class VoxelGaussian:
    """The healthy Gaussian of every position: distances of volumes for any combination of layers.

    `clamped` counts squared distances that rounding made negative since the last fit; they became 0.
    Distances of the training volumes themselves say nothing: with few subjects they are all near (N−1)/√N.
    Use `leave_one_out` for those.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        lookup: Mapping[str, Int64[np.ndarray, " positions"]],
        settings: GaussianSettings,
        form: Form,
        n_subjects: int,
        means: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
    ) -> None:
        self.channels, self.lookup, self.settings, self.form = dict(channels), dict(lookup), settings, form
        self.n_subjects, self.means, self.state = n_subjects, dict(means), dict(state)
        self.clamped = 0

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in order."""
        return tuple(self.channels)

    @property
    def n_positions(self) -> int:
        """Positions of the feature grid, P."""
        return len(next(iter(self.lookup.values())))

    @property
    def n_bytes(self) -> int:
        """Bytes of everything kept."""
        tensors = [*self.means.values(), *self.state.values()]
        return sum(t.numel() * t.element_size() for t in tensors) + sum(index.nbytes for index in self.lookup.values())

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return next(iter(self.means.values())).device

    def marginal(self, layers: Sequence[str]) -> "VoxelGaussian":
        """The Gaussian of some of the layers: exactly what a fit on them alone would give, without a fit."""
        chosen = self._ordered(layers)
        if self.form == "dual" or self.settings.covariance == "diagonal":
            state = {layer: self.state[layer] for layer in chosen}
        else:
            pick = self._fitted().columns(chosen)
            state = {"all": self.state["all"].index_select(-1, pick).index_select(-2, pick)}
        return VoxelGaussian(
            {layer: self.channels[layer] for layer in chosen},
            {layer: self.lookup[layer] for layer in chosen},
            self.settings,
            self.form,
            self.n_subjects,
            {layer: self.means[layer] for layer in chosen},
            state,
        )

    def mahalanobis(self, rows: Rows, layers: Sequence[str] | None = None) -> Float32[Tensor, " positions"]:
        """Distance of each position to its own Gaussian, √((f−μ)ᵀΣ⁻¹(f−μ)), over some or all layers.

        Solved through a Cholesky factor; no inverse is formed. Defard et al. 2020, arXiv:2011.08785, eq. 2.
        """
        distances = self.mahalanobis_subsets([rows], [tuple(layers or self.layers)])
        return torch.from_numpy(distances[0, 0]).to(self.device)

    def mahalanobis_subsets(
        self,
        volumes: Sequence[Rows],
        subsets: Sequence[tuple[str, ...]],
        *,
        block_positions: int | None = None,
        monitor: Monitor = silent,
    ) -> Float32[np.ndarray, "subsets volumes positions"]:
        """Distances of many volumes for many combinations of layers, the fast path.

        Works in blocks of positions; in each block a combination is factored once and solved for all volumes, and a
        combination of coarse layers only at their own positions. `monitor` hears the positions done, of every
        `COMPANY` volumes anew. A volume gets the same bits alone as among others: all systems have as many columns.
        """
        sizes = {layer: len(mean) for layer, mean in self.means.items()}
        checked = [checked_features(rows, self.channels, self.lookup, sizes, str(self.device)) for rows in volumes]
        chosen = [self._ordered(subset) for subset in subsets]
        groups = [checked[start : start + COMPANY] for start in range(0, len(checked), COMPANY)]
        found = [
            self._by_block(chosen, group + group[-1:] * (COMPANY - len(group)), len(group), block_positions, monitor)
            for group in groups
        ]
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    def leave_one_out(
        self, subsets: Sequence[tuple[str, ...]], *, block_positions: int | None = None, monitor: Monitor = silent
    ) -> Float32[np.ndarray, "subsets subjects positions"]:
        """Distance of every training volume to the Gaussian of all the others, as refits would give it.

        Needs the samples (form `dual`) and three volumes; order of the volumes as they were given. BadInput otherwise.
        """
        if self.form != "dual":
            raise BadInput(
                "Leave-one-out needs the training features, this Gaussian keeps moments only (form 'primal', "
                f"covariance {self.settings.covariance!r}). Fit with form 'dual', or hold calibration subjects out."
            )
        if self.n_subjects < 3:
            raise BadInput(f"Leave-one-out of {self.n_subjects} volumes leaves one, without variance. Give at least 3.")
        chosen = [self._ordered(subset) for subset in subsets]
        return self._by_block(chosen, None, self.n_subjects, block_positions, monitor)

    def save(self, directory: Path) -> None:
        """Write gaussian.safetensors and gaussian.json into the directory."""
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {f"mean.{layer}": mean for layer, mean in self.means.items()}
        tensors |= {f"state.{key}": value for key, value in self.state.items()}
        write_gaussian(
            directory, tensors, self.lookup, self.channels, self.settings, self.form, self.n_subjects, self.clamped
        )

    @classmethod
    def load(cls, directory: Path, device: str = "cpu") -> Self:
        """Read what `save` wrote. IntegrityError when a file is missing or damaged."""
        described, tensors = read_gaussian(directory, device)
        layers = described.channels
        keys = [key.removeprefix("state.") for key in tensors if key.startswith("state.")]
        order = [key for key in layers if key in keys] or keys
        gaussian = cls(
            layers,
            {layer: tensors[f"lookup.{layer}"].cpu().numpy() for layer in layers},
            described.settings,
            described.form,
            described.n,
            {layer: tensors[f"mean.{layer}"] for layer in layers},
            {key: tensors[f"state.{key}"] for key in order},
        )
        gaussian.clamped = described.clamped
        return gaussian

    def _by_block(
        self,
        subsets: list[tuple[str, ...]],
        volumes: list[dict[str, Tensor]] | None,
        width: int,
        block: int | None,
        monitor: Monitor,
    ) -> Float32[np.ndarray, "subsets width positions"]:
        used = {layer: self.channels[layer] for layer in self.layers if any(layer in subset for subset in subsets)}
        workers = threads(self.device)
        fitting = block_positions(self.n_subjects, used, self.form, self.settings.covariance) // workers
        size = block or min(max(1, fitting), _CACHED_POSITIONS)
        order = np.lexsort([self.lookup[layer] for layer in sorted(used, key=lambda layer: -len(self.means[layer]))])
        fitted = self._fitted()
        out = np.empty((len(subsets), width, self.n_positions), dtype=np.float32)

        def score(start: int) -> int:
            positions = order[start : start + size]
            return self._score_block(out, subsets, positions, Block(fitted, tuple(used), positions, volumes, width))

        starts = range(0, self.n_positions, size)
        # Batched factorisations use one core: blocks, which share nothing, use the others. Same bits in any order.
        with each_on_one_thread(workers) as pool:
            for start, clamped in zip(starts, pool.map(score, starts), strict=True):
                self.clamped += clamped
                monitor(min(start + size, self.n_positions), {"positions": float(self.n_positions)})
        return out

    def _score_block(
        self,
        out: Float32[np.ndarray, "subsets width positions"],
        subsets: list[tuple[str, ...]],
        positions: Int64[np.ndarray, " block"],
        work: Block,
    ) -> int:
        clamped = 0
        for s, subset in enumerate(subsets):
            squared, back = work.squared_distances(subset)
            squared = squared[:, : out.shape[1]]  # without the columns that only fill up
            clamped += int((squared < 0).sum())
            out[s][:, positions] = squared.clamp_min_(0).sqrt_().to(torch.float32).T.cpu().numpy()[:, back]
        return clamped

    def _ordered(self, layers: Sequence[str]) -> tuple[str, ...]:
        unknown = sorted(set(layers) - set(self.layers))
        if unknown or not layers:
            raise BadInput(
                f"Layers {list(layers)} were asked for. This Gaussian has: {', '.join(self.layers)}. "
                "Choose at least one of them."
            )
        return tuple(layer for layer in self.layers if layer in layers)

    def _fitted(self) -> Fitted:
        return Fitted(self.channels, self.lookup, self.settings, self.form, self.n_subjects, self.means, self.state)
