"""Distances at a block of positions for any combination of layers: what layers share is computed once.

A combination is solved at its distinct *units*: positions that take the same rows of all its layers are one unit, so
coarse layers are solved at their own positions. Each form and covariance has its own solution below.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from core.gaussian import dual
from core.gaussian.conditional import FineGivenCoarse, condition, factor_coarse, squared_distance
from core.gaussian.fitted import Fitted
from core.gaussian.shrinkage import scale_and_floor
from core.memory_plan import GaussianSettings

_FEW = 0.75
"""Fine features per sample up to which conditioning them on the coarse ones is cheaper than a kernel per position."""
_CANCELLED = 0.1
"""Share of |δ|² that must be left over for float32 to keep m² to about 1e-6."""


class Block:
    """What some positions need for every combination of layers: per layer G, b and |δ|² at its own positions."""

    def __init__(
        self,
        gaussian: Fitted,
        layers: tuple[str, ...],
        positions: Int64[np.ndarray, " block"],
        volumes: list[dict[str, Tensor]] | None,
        width: int,
    ) -> None:
        """Only the first `width` volumes are asked for; the others fill the systems up."""
        self.gaussian, self.volumes, self.positions, self.width = gaussian, volumes, positions, width
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
        self._terms: dict[tuple[str, torch.dtype], tuple[Tensor, Tensor | None]] = {}
        self._deltas: dict[str, Tensor] = {}
        self._given: dict[tuple[str, ...], FineGivenCoarse] = {}
        finest = max(self.rows, key=lambda group: len(self.rows[group]))
        self.fine = tuple(layer for layer in layers if self.group[layer] == finest)

    def squared_distances(self, subset: tuple[str, ...]) -> tuple[Tensor, np.ndarray]:
        """(units × volumes, which unit each position takes); units are the distinct positions of the subset."""
        gaussian = self.gaussian
        units, back = self._distinct(tuple(dict.fromkeys(self.group[layer] for layer in subset)))
        d = sum(gaussian.channels[layer] for layer in subset)
        if gaussian.form == "dual":
            if self.volumes is None:
                return self._left_out(subset, units, d), back
            if self._few_fine(subset, units):
                return self._from_conditional(subset, units), back
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
            mean = self.gaussian.means[layer].index_select(0, rows)
            values = mean.new_empty((len(rows), len(self.volumes), mean.shape[-1]))
            for number, volume in enumerate(self.volumes):
                torch.sub(volume[layer].index_select(0, rows), mean, out=values[:, number])
            self._deltas[layer] = values
        return self._deltas[layer]

    def _samples(self, layer: str) -> Tensor:
        rows = torch.from_numpy(self.rows[self.group[layer]]).to(self.gaussian.device)
        return self.gaussian.state[layer].index_select(0, rows)

    def _layer_terms(self, layer: str, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        # [G, b] side by side from one product, and |δ|². Never of layers together: the bits must not depend on what
        # else is asked for.
        if (layer, dtype) not in self._terms:
            samples = self._samples(layer).to(dtype)
            if self.volumes is None:
                self._terms[layer, dtype] = samples @ samples.transpose(1, 2), None
            else:
                delta = self._delta(layer).to(dtype)
                both = torch.cat((samples, delta), 1).transpose(1, 2)
                joint = samples * both if samples.shape[-1] == 1 else samples @ both  # one feature: no sum to take
                self._terms[layer, dtype] = joint, delta.square().sum(-1)
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
            again = self._solve_gram(subset, few, d, torch.float64)[0].to(torch.float32)
            where = torch.from_numpy(lost).to(squared.device)
            squared[where] = torch.where(cancelled[where], again, squared[where])  # others' bits are not touched
        return squared

    def _solve_gram(
        self, subset: tuple[str, ...], units: Mapping[str, np.ndarray], d: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        # m², and where it is so small a difference of large numbers that float32 loses digits.
        settings = self.gaussian.settings
        joint, norms = self._sum(subset, units, dtype, 0), self._sum(subset, units, dtype, 1)
        gram, b = joint[..., : joint.shape[1]], joint[..., joint.shape[1] :]
        scale, floor = dual.gram_shrinkage(settings.shrinkage, settings.ridge, gram, d)
        squared = dual.squared_distance_from_gram(gram, b, norms, scale, floor)[:, : self.width]
        return squared, squared * floor.to(dtype)[:, None] < _CANCELLED * norms[:, : self.width]

    def _few_fine(self, subset: tuple[str, ...], units: Mapping[str, np.ndarray]) -> bool:
        gaussian = self.gaussian
        few = sum(gaussian.channels[layer] for layer in self.fine) <= _FEW * (gaussian.n_subjects - 1)
        if gaussian.settings.shrinkage != "ridge" or not few or not set(subset) & set(self.fine):
            return False
        coarse = self._distinct(tuple(group for group in units if group != self.group[self.fine[0]]))[0]
        return 2 * max((len(index) for index in coarse.values()), default=0) <= len(next(iter(units.values())))

    def _from_conditional(self, subset: tuple[str, ...], units: Mapping[str, np.ndarray]) -> Tensor:
        coarse = tuple(layer for layer in subset if layer not in self.fine)
        if coarse not in self._given:
            self._given[coarse] = self._given_coarse(coarse, units)
        starts = dict(zip(self.fine, np.cumsum([0, *(self.gaussian.channels[x] for x in self.fine)]), strict=False))
        chosen = [starts[x] + np.arange(self.gaussian.channels[x]) for x in self.fine if x in subset]
        return squared_distance(self._given[coarse], torch.from_numpy(np.concatenate(chosen)).to(self.gaussian.device))

    def _given_coarse(self, coarse: tuple[str, ...], units: Mapping[str, np.ndarray]) -> FineGivenCoarse:
        # In float64 throughout: the coarse factor is cheap, and the fine one may be badly conditioned.
        scale, ridge = 1 / (self.gaussian.n_subjects - 1), self.gaussian.settings.ridge
        own, back = self._distinct(tuple(dict.fromkeys(self.group[layer] for layer in coarse)))
        factor = None
        if coarse:
            samples, deltas = (self._joined(part, coarse, own) for part in (self._samples, self._delta))
            factor = factor_coarse(samples, deltas, scale, ridge)
        _, all_units = self._distinct(tuple(units))
        _, first = np.unique(all_units, return_index=True)
        where = torch.from_numpy(back[first]).to(self.gaussian.device)
        samples, deltas = (self._joined(part, self.fine, units) for part in (self._samples, self._delta))
        return condition(factor, where, samples, deltas, scale, ridge)

    def _joined(
        self, part: Callable[[str], Tensor], layers: tuple[str, ...], units: Mapping[str, np.ndarray]
    ) -> Tensor:
        return torch.cat([self._spread_layer(x, part(x), units) for x in layers], -1).to(torch.float64)

    def _left_out(self, subset: tuple[str, ...], units: Mapping[str, np.ndarray], d: int) -> Tensor:
        settings, n = self.gaussian.settings, self.gaussian.n_subjects
        exact = d < 2 * n or settings.shrinkage != "ridge"
        gram = self._sum(subset, units, torch.float64 if exact else torch.float32, 0)
        return dual.squared_leave_one_out(gram, settings.shrinkage, settings.ridge, d)

    def _from_samples(self, subset: tuple[str, ...], units: Mapping[str, np.ndarray], d: int) -> Tensor:
        settings = self.gaussian.settings
        samples, deltas = (self._joined(part, subset, units) for part in (self._samples, self._delta))
        covariance = samples.transpose(1, 2) @ samples
        n = self.gaussian.n_subjects
        quartic = None
        if settings.shrinkage == "ledoit_wolf":
            centred = dual.helmert(n).T.to(samples) @ samples
            quartic = centred.square().sum(-1).square().sum(-1)
        return _shrunk_distance(covariance, deltas, settings, n, d, quartic)

    def _from_moments(self, subset: tuple[str, ...], units: Mapping[str, np.ndarray], back: np.ndarray) -> Tensor:
        gaussian = self.gaussian
        pick = gaussian.columns(subset)
        deltas = self._joined(self._delta, subset, units)
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
