"""One Gaussian per position of healthy features, fitted once, scored for any combination of layers.

A marginal of a Gaussian is a sub-block of it, so no combination is ever refitted. Two exact forms stand behind one
door: `dual` keeps the training features (few subjects), `primal` their moments (many). Nothing here knows images:
a volume is `rows`, per layer one row of channels for each native position, and `lookup[layer]` names the row that
belongs to each of the P positions on which distances are wanted (so a coarse layer is stored once).
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from core import gaussian_dual as dual
from core.gaussian_block import Block, Fitted
from core.gaussian_files import read_gaussian, write_gaussian
from core.gaussian_primal import BLOCK_VOLUMES, Moments
from core.memory_plan import Form, GaussianSettings, MemoryPlan, block_positions, plan_memory
from core.shrinkage import Shrinkage
from core.types import Monitor, silent
from data.errors import BadInput

__all__ = [
    "GaussianSettings",
    "MemoryPlan",
    "RunningGaussian",
    "Shrinkage",
    "VoxelGaussian",
    "expected_inflation",
    "fit_gaussian",
    "plan_memory",
]

Rows = Mapping[str, Tensor]
"""Features of one volume: layer -> (native positions, channels)."""
COMPANY = 24
"""Columns of every system: products of fewer take other ways through the linear algebra, and round otherwise."""
_PROJECT_BYTES = 2e6
_CACHED_POSITIONS = 512
"""Larger blocks are slower: their kernels leave the processor's cache between two steps."""


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
            _check_layers(n_positions, channels)
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
            self._waiting.append(_checked(rows, self.channels, self.lookup, self._sizes(), self.device))
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
        checked = [_checked(rows, self.channels, self.lookup, sizes, str(self.device)) for rows in volumes]
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
        workers = torch.get_num_threads() if self.device.type == "cpu" else 1
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
        # Each of them computes alone: teams of threads inside the threads would fight for the cores.
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for start, clamped in zip(starts, pool.map(score, starts), strict=True):
                    self.clamped += clamped
                    monitor(min(start + size, self.n_positions), {"positions": float(self.n_positions)})
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                torch.set_num_threads(threads)
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


def _check_layers(given: Mapping[str, object], channels: Mapping[str, int]) -> None:
    missing = [layer for layer in channels if layer not in given]
    if missing:
        raise BadInput(f"A volume lacks the layers {missing}; it has {list(given)}. Extract the same layers for all.")


def _checked(
    rows: Rows, channels: Mapping[str, int], lookup: Mapping[str, np.ndarray], sizes: Mapping[str, int], device: str
) -> dict[str, Tensor]:
    # `sizes` are the native positions of the fit, still unknown (empty) for its first volume.
    _check_layers(rows, channels)
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
