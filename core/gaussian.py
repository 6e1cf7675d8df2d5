"""One Gaussian per position of healthy features, fitted once, scored for any combination of layers.

A marginal of a Gaussian is a sub-block of it, so no combination is ever refitted. Two exact forms stand behind one
door: `dual` keeps the training features (few subjects), `primal` their moments (many). Nothing here knows images:
a volume is `rows`, per layer one row of channels for each native position, and `lookup[layer]` names the row that
belongs to each of the P positions on which distances are wanted (so a coarse layer is stored once).
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Float32, Int64
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from core import gaussian_dual as dual
from core.gaussian_primal import BLOCK_VOLUMES, Moments
from core.memory_plan import Form, GaussianSettings, MemoryPlan, block_positions, plan_memory
from core.shrinkage import Shrinkage, scale_and_floor
from core.types import Monitor, silent
from data.errors import BadInput, IntegrityError
from data.files import read_json, write_json

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
_DESCRIPTION = "gaussian.json"
_TENSORS = "gaussian.safetensors"
_PROJECT_BYTES = 2e6
_CANCELLED = 0.01
"""Share of |δ|² that must be left over for float32 to keep m² to about 1e-5."""


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
            self._waiting.append(_checked(rows, self.channels, self.lookup, self.device))
            if self.form == "primal" and len(self._waiting) == BLOCK_VOLUMES:
                self._absorb()

    def merge(self, other: "RunningGaussian") -> None:
        """Add all volumes of another shard, in place."""
        if (other.channels, other.settings, other.form) != (self.channels, self.settings, self.form):
            raise BadInput("Two Gaussians with different layers, settings or form cannot be merged. Fit them alike.")
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
        _write(directory, tensors, self.lookup, self.channels, self.settings, self.form, self.n, 0)

    @classmethod
    def load(cls, directory: Path, device: str = "cpu") -> Self:
        """Read what `save` wrote, to go on with it or to merge it."""
        described, tensors = _read(directory, device)
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
            pick = self._columns(chosen)
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
        combination of coarse layers only at their own positions. `monitor` hears the positions done.
        """
        checked = [_checked(rows, self.channels, self.lookup, str(self.device)) for rows in volumes]
        chosen = [self._ordered(subset) for subset in subsets]
        return self._by_block(chosen, checked, len(checked), block_positions, monitor)

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
        _write(directory, tensors, self.lookup, self.channels, self.settings, self.form, self.n_subjects, self.clamped)

    @classmethod
    def load(cls, directory: Path, device: str = "cpu") -> Self:
        """Read what `save` wrote. IntegrityError when a file is missing or damaged."""
        described, tensors = _read(directory, device)
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
        size = block or max(1, block_positions(self.n_subjects, used, self.form, self.settings.covariance) // workers)
        order = np.lexsort([self.lookup[layer] for layer in sorted(used, key=lambda layer: -len(self.means[layer]))])
        out = np.empty((len(subsets), width, self.n_positions), dtype=np.float32)

        def score(start: int) -> int:
            positions = order[start : start + size]
            return self._score_block(out, subsets, positions, _Block(self, tuple(used), positions, volumes))

        starts = range(0, self.n_positions, size)
        # Batched factorisations use one core: blocks, which share nothing, use the others. Same bits in any order.
        with ThreadPoolExecutor(workers) as pool:
            try:
                for start, clamped in zip(starts, pool.map(score, starts), strict=True):
                    self.clamped += clamped
                    monitor(min(start + size, self.n_positions), {"positions": float(self.n_positions)})
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return out

    def _score_block(
        self,
        out: Float32[np.ndarray, "subsets width positions"],
        subsets: list[tuple[str, ...]],
        positions: Int64[np.ndarray, " block"],
        work: "_Block",
    ) -> int:
        clamped = 0
        for s, subset in enumerate(subsets):
            squared, back = work.squared_distances(subset)
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

    def _columns(self, layers: Sequence[str]) -> Tensor:
        starts = np.cumsum([0, *self.channels.values()])
        where = dict(zip(self.channels, starts, strict=False))
        columns = np.concatenate([np.arange(where[layer], where[layer] + self.channels[layer]) for layer in layers])
        return torch.from_numpy(columns).to(self.device)


class _Block:
    """What some positions need for every combination of layers: per layer G, b and |δ|² at its own positions."""

    def __init__(
        self,
        gaussian: VoxelGaussian,
        layers: tuple[str, ...],
        positions: Int64[np.ndarray, " block"],
        volumes: list[dict[str, Tensor]] | None,
    ) -> None:
        self.gaussian, self.volumes, self.positions = gaussian, volumes, positions
        self.rows: dict[str, np.ndarray] = {}
        self.inverse: dict[str, np.ndarray] = {}
        self.group: dict[str, str] = {}
        for layer in layers:
            index = gaussian.lookup[layer][positions]
            same = [g for g in self.rows if np.array_equal(gaussian.lookup[g][positions], index)]
            self.group[layer] = same[0] if same else layer
            if not same:
                self.rows[layer], self.inverse[layer] = np.unique(index, return_inverse=True)
        self._units: dict[tuple[str, ...], tuple[dict[str, np.ndarray], np.ndarray]] = {}
        self._terms: dict[tuple[str, torch.dtype], tuple[Tensor, Tensor | None, Tensor | None]] = {}
        self._deltas: dict[str, Tensor] = {}

    def squared_distances(self, subset: tuple[str, ...]) -> tuple[Tensor, np.ndarray]:
        """(units × volumes, which unit each position takes); units are the distinct positions of the subset."""
        gaussian = self.gaussian
        units, back = self._distinct(tuple(dict.fromkeys(self.group[layer] for layer in subset)))
        d = sum(gaussian.channels[layer] for layer in subset)
        if gaussian.form == "dual":
            if self.volumes is None:
                return self._left_out(subset, units, d), back
            if dual.use_samples(gaussian.n_subjects, d):
                return self._from_gram(subset, units, d), back
            return self._from_samples(subset, units, d), back
        if gaussian.settings.covariance == "diagonal":
            return self._from_variances(subset, units), back
        return self._from_moments(subset, units, back), back

    def _distinct(self, groups: tuple[str, ...]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        # Per group, the rows (within this block) of every distinct unit, and the unit of each position.
        if groups not in self._units:
            key = np.zeros(len(self.positions), dtype=np.int64)
            for group in groups:
                key = key * len(self.rows[group]) + self.inverse[group]
            _, first, back = np.unique(key, return_index=True, return_inverse=True)
            self._units[groups] = ({group: self.inverse[group][first] for group in groups}, back)
        return self._units[groups]

    def _delta(self, layer: str) -> Tensor:
        if layer not in self._deltas:
            assert self.volumes is not None
            rows = torch.from_numpy(self.rows[self.group[layer]]).to(self.gaussian.device)
            values = torch.stack([volume[layer].index_select(0, rows) for volume in self.volumes], 1)
            self._deltas[layer] = values - self.gaussian.means[layer].index_select(0, rows)[:, None]
        return self._deltas[layer]

    def _samples(self, layer: str) -> Tensor:
        rows = torch.from_numpy(self.rows[self.group[layer]]).to(self.gaussian.device)
        return self.gaussian.state[layer].index_select(0, rows)

    def _layer_terms(self, layer: str, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if (layer, dtype) not in self._terms:
            samples = self._samples(layer).to(dtype)
            gram = samples @ samples.transpose(1, 2)
            if self.volumes is None:
                self._terms[layer, dtype] = gram, None, None
            else:
                delta = self._delta(layer).to(dtype)
                self._terms[layer, dtype] = gram, samples @ delta.transpose(1, 2), delta.square().sum(-1)
        return self._terms[layer, dtype]

    def _sum(self, subset: tuple[str, ...], units: Mapping[str, np.ndarray], dtype: torch.dtype, term: int) -> Tensor:
        # Layers of one grid are added at their own positions before they are spread over the units.
        total: Tensor | None = None
        for group, index in units.items():
            parts = [self._layer_terms(layer, dtype)[term] for layer in subset if self.group[layer] == group]
            tensors = [part for part in parts if part is not None]
            added = tensors[0] if len(tensors) == 1 else tensors[0] + tensors[1]
            for tensor in tensors[2:]:
                added += tensor
            spread = self._spread(added, index, len(self.rows[group]))
            if total is None:
                total = spread.clone() if spread.data_ptr() == tensors[0].data_ptr() else spread
            else:
                total += spread
        assert total is not None
        return total

    def _spread(self, values: Tensor, index: np.ndarray, n_rows: int) -> Tensor:
        if len(index) == n_rows and np.array_equal(index, np.arange(n_rows)):
            return values
        return values.index_select(0, torch.from_numpy(index).to(values.device))

    def _from_gram(self, subset: tuple[str, ...], units: Mapping[str, np.ndarray], d: int) -> Tensor:
        if dual.needs_float64(self.gaussian.n_subjects, d):
            return self._solve_gram(subset, units, d, torch.float64)[0]
        squared, cancelled = self._solve_gram(subset, units, d, torch.float32)
        lost = np.flatnonzero(cancelled.any(-1).cpu().numpy())
        if len(lost):
            few = {group: index[lost] for group, index in units.items()}
            again = self._solve_gram(subset, few, d, torch.float64)[0]
            squared[torch.from_numpy(lost).to(squared.device)] = again.to(torch.float32)
        return squared

    def _solve_gram(
        self, subset: tuple[str, ...], units: Mapping[str, np.ndarray], d: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        # m², and where it is so small a difference of large numbers that float32 loses digits.
        settings = self.gaussian.settings
        gram = self._sum(subset, units, dtype, 0)
        scale, floor = dual.gram_shrinkage(settings.shrinkage, settings.ridge, gram, d)
        b, norms = self._sum(subset, units, dtype, 1), self._sum(subset, units, dtype, 2)
        squared = dual.squared_distance_from_gram(gram, b, norms, scale, floor)
        return squared, squared * floor.to(dtype)[:, None] < _CANCELLED * norms

    def _left_out(self, subset: tuple[str, ...], units: Mapping[str, np.ndarray], d: int) -> Tensor:
        settings, n = self.gaussian.settings, self.gaussian.n_subjects
        exact = d < 2 * n or settings.shrinkage != "ridge"
        gram = self._sum(subset, units, torch.float64 if exact else torch.float32, 0)
        return dual.squared_leave_one_out(gram, settings.shrinkage, settings.ridge, d)

    def _from_samples(self, subset: tuple[str, ...], units: Mapping[str, np.ndarray], d: int) -> Tensor:
        settings = self.gaussian.settings
        samples = torch.cat([self._spread_layer(x, self._samples(x), units) for x in subset], -1).to(torch.float64)
        deltas = torch.cat([self._spread_layer(x, self._delta(x), units) for x in subset], -1).to(torch.float64)
        covariance = samples.transpose(1, 2) @ samples
        n = self.gaussian.n_subjects
        quartic = None
        if settings.shrinkage == "ledoit_wolf":
            centred = dual.helmert(n).T.to(samples) @ samples
            quartic = centred.square().sum(-1).square().sum(-1)
        return _shrunk_distance(covariance, deltas, settings, n, d, quartic)

    def _from_moments(self, subset: tuple[str, ...], units: Mapping[str, np.ndarray], back: np.ndarray) -> Tensor:
        gaussian = self.gaussian
        pick = gaussian._columns(subset)
        deltas = torch.cat([self._spread_layer(x, self._delta(x), units) for x in subset], -1).to(torch.float64)
        scatter = gaussian.state["all"]
        if gaussian.settings.covariance == "shared":
            joint = scatter.index_select(-1, pick).index_select(-2, pick) / (gaussian.n_subjects - 1)
            joint = joint / gaussian.n_positions
            joint.diagonal().add_(gaussian.settings.ridge)
            solved = torch.linalg.solve_triangular(dual.cholesky(joint[None])[0], deltas.flatten(0, 1).T, upper=False)
            squared: Tensor = solved.square_().sum(0).view(deltas.shape[:2])
            return squared
        _, first = np.unique(back, return_index=True)
        here = torch.from_numpy(self.positions[first]).to(gaussian.device)
        block = scatter.index_select(0, here)
        if len(pick) < block.shape[-1]:
            block = block.index_select(-1, pick).index_select(-2, pick)
        return _shrunk_distance(
            block.to(torch.float64), deltas, gaussian.settings, gaussian.n_subjects, len(pick), None
        )

    def _from_variances(self, subset: tuple[str, ...], units: Mapping[str, np.ndarray]) -> Tensor:
        gaussian = self.gaussian
        total: Tensor | None = None
        for layer in subset:
            rows = torch.from_numpy(self.rows[self.group[layer]]).to(gaussian.device)
            variance = gaussian.state[layer].index_select(0, rows) / (gaussian.n_subjects - 1) + gaussian.settings.ridge
            squared = (self._delta(layer).square() / variance[:, None]).sum(-1)
            spread = self._spread_layer(layer, squared, units)
            total = spread if total is None else total + spread
        assert total is not None
        return total

    def _spread_layer(self, layer: str, values: Tensor, units: Mapping[str, np.ndarray]) -> Tensor:
        group = self.group[layer]
        return self._spread(values, units[group], len(self.rows[group]))


def _shrunk_distance(
    scatter: Tensor, deltas: Tensor, settings: GaussianSettings, n: int, d: int, quartic: Tensor | None
) -> Tensor:
    trace = scatter.diagonal(dim1=-2, dim2=-1).sum(-1)
    squared = scatter.square().sum((-2, -1)) if settings.shrinkage != "ridge" else trace
    scale, floor = scale_and_floor(settings.shrinkage, settings.ridge, n, d, trace, squared, quartic)
    covariance = scatter * scale[:, None, None]
    covariance.diagonal(dim1=-2, dim2=-1).add_(floor[:, None])
    return dual.squared_distance_from_covariance(covariance, deltas)


@dataclasses.dataclass(frozen=True)
class _Described:
    channels: dict[str, int]
    settings: GaussianSettings
    form: Form
    n: int
    clamped: int


def _write(
    directory: Path,
    tensors: Mapping[str, Tensor],
    lookup: Mapping[str, np.ndarray],
    channels: Mapping[str, int],
    settings: GaussianSettings,
    form: Form,
    n: int,
    clamped: int,
) -> None:
    everything = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    everything |= {f"lookup.{layer}": torch.from_numpy(index) for layer, index in lookup.items()}
    save_file(everything, directory / _TENSORS)
    write_json(
        directory / _DESCRIPTION,
        {
            "schema": 1,
            "layers": [[layer, count] for layer, count in channels.items()],
            "form": form,
            "n_subjects": n,
            "clamped": clamped,
            "settings": dataclasses.asdict(settings),
        },
    )


def _read(directory: Path, device: str) -> tuple[_Described, dict[str, Tensor]]:
    try:
        value = read_json(directory / _DESCRIPTION)
        tensors = load_file(directory / _TENSORS, device=device)
        described = _Described(
            dict(value["layers"]),
            GaussianSettings(**value["settings"]),
            value["form"],
            value["n_subjects"],
            value["clamped"],
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(
            f"The Gaussian in {directory} is missing or damaged: {error}. Fit it again, or restore the directory."
        ) from error
    return described, tensors


def _check_layers(given: Mapping[str, object], channels: Mapping[str, int]) -> None:
    missing = [layer for layer in channels if layer not in given]
    if missing:
        raise BadInput(f"A volume lacks the layers {missing}; it has {list(given)}. Extract the same layers for all.")


def _checked(
    rows: Rows, channels: Mapping[str, int], lookup: Mapping[str, np.ndarray], device: str
) -> dict[str, Tensor]:
    _check_layers(rows, channels)
    checked = {}
    for layer, count in channels.items():
        values = rows[layer].detach()
        needed = int(lookup[layer].max()) + 1
        if values.ndim != 2 or values.shape[1] != count or len(values) < needed:
            raise BadInput(
                f"Features of layer {layer!r} have shape {tuple(values.shape)}. Allowed is (at least {needed} "
                f"positions, {count} channels). Extract them with the layout of the fit."
            )
        if not bool(torch.isfinite(values).all()):
            raise BadInput(
                f"Features of layer {layer!r} are not finite. Allowed are numbers. Check that volume's intensities."
            )
        checked[layer] = values.to(device=device, dtype=torch.float32)
    return checked
