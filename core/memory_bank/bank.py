"""A memory bank of healthy patches: how far is each patch of a brain from the nearest one ever seen in health?

PatchCore (Roth et al. 2022, arXiv:2106.08265) in 3-D. Squared distances of concatenated layers are sums over layers,
so one search gives the nearest neighbour under every combination of layers, exactly. Nothing here knows images: a
volume is `rows`, per layer one row of channels for each native position, and the layout says where they lie.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int32, Int64
from torch import Tensor

from core.memory_bank.coreset import select_coreset
from core.memory_bank.files import Described, read_bank, write_bank
from core.memory_bank.index import BankIndex, open_index, search_index
from core.memory_bank.plan import plan_bank
from core.memory_bank.pool import Pool, checked_rows, draw_pool
from core.memory_bank.registered import Registered, search_registered
from core.memory_bank.restricted import Reach, search_within
from core.memory_bank.search import Blocks, Found, Patches, Queries, search_everywhere
from core.memory_bank.settings import BankSettings
from core.memory_bank.walk import POSITION
from core.types import FeatureLayout, LayerSet, Monitor, silent
from data.errors import BadInput

__all__ = ["BankSettings", "MemoryBank", "Neighbours"]

Rows = Mapping[str, Tensor]
"""Features of one volume: layer -> (native positions, channels)."""
_NEAREST_BYTES = 64e6


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest healthy patches of one query, nearest first."""

    distance: Float32[np.ndarray, " k"]
    """Under the bank's position mode; with 'weighted' it includes the way to go."""
    subject_id: tuple[str, ...]
    position_index: Int64[np.ndarray, " k"]
    """Into the positions of the layout."""
    entry: Int64[np.ndarray, " k"]
    apart_mm: Float64[np.ndarray, " k"]
    """How far from the query's position the patch lies, template mm."""


class MemoryBank:
    """Healthy patches, where they come from, and exact nearest-neighbour distances to them.

    Entries are sorted by position, then subject. Each layer keeps its distinct rows once, centred and divided by the
    layer's spread: `rows[layer][row_of[layer][entry]]`.
    """

    def __init__(
        self,
        settings: BankSettings,
        subject_ids: Sequence[str],
        channels: Mapping[str, int],
        lookup: Mapping[str, Int64[np.ndarray, " positions"]],
        grid_positions: Int64[np.ndarray, "positions 3"],
        affine: Float64[np.ndarray, "4 4"],
        means: Mapping[str, Tensor],
        spreads: Mapping[str, float],
        rows: Mapping[str, Tensor],
        row_of: Mapping[str, Int64[np.ndarray, " entries"]],
        subject_of: Int32[np.ndarray, " entries"],
        position_of: Int32[np.ndarray, " entries"],
        device: str = "cpu",
    ) -> None:
        self.settings, self.subject_ids, self.channels = settings, tuple(subject_ids), dict(channels)
        self.lookup, self.grid_positions, self.affine = dict(lookup), grid_positions, affine
        self.means, self.spreads = {layer: mean.to(device) for layer, mean in means.items()}, dict(spreads)
        self.rows, self.row_of = dict(rows), dict(row_of)
        self.subject_of, self.position_of, self.device = subject_of, position_of, torch.device(device)
        self.positions_mm: Float64[np.ndarray, "positions 3"] = grid_positions @ affine[:3, :3].T + affine[:3, 3]
        self._reach: Reach | None = None
        self.index: BankIndex | None = None

    @classmethod
    def build(
        cls,
        rows_of_subjects: Iterable[Rows],
        subject_ids: Sequence[str],
        layout: FeatureLayout,
        settings: BankSettings,
        *,
        limit_bytes: float = 6e9,
        device: str = "cpu",
        monitor: Monitor = silent,
    ) -> Self:
        """Draw candidates over all subjects and positions in one pass, scale the layers, keep the chosen subset.

        Only drawn patches are kept from subject to subject. Equal seeds give equal banks. EnvironmentProblem when the
        candidates and their selection exceed `limit_bytes`; BadInput for rows that do not fit the layout, are not
        finite, or come from another number of subjects than there are ids.
        """
        if not subject_ids:
            raise BadInput("No subject. Give at least one healthy volume and its id.")
        plan_bank(len(subject_ids), layout, settings, limit_bytes)
        pool = draw_pool(rows_of_subjects, subject_ids, layout, settings, monitor)
        divisors = _divisors(pool.spreads, settings)
        for layer, values in pool.rows.items():
            values.sub_(pool.means[layer]).mul_(1 / divisors[layer])
        kept = _kept(pool, layout, settings, len(subject_ids), monitor)
        rows: dict[str, Tensor] = {}
        row_of: dict[str, np.ndarray] = {}
        for layer in layout.channels:
            used, row_of[layer] = np.unique(pool.row_of[layer][kept], return_inverse=True)
            rows[layer] = _stored(pool.rows.pop(layer)[torch.from_numpy(used)], settings, layer).to(device)
        return cls(
            settings,
            subject_ids,
            layout.channels,
            layout.lookup,
            layout.positions,
            layout.feature_grid.affine,
            pool.means,
            divisors,
            rows,
            row_of,
            pool.subject_of[kept].astype(np.int32),
            pool.position_of[kept].astype(np.int32),
            device,
        )

    def __len__(self) -> int:
        return len(self.position_of)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in order."""
        return tuple(self.channels)

    @property
    def n_bytes(self) -> int:
        """Bytes of everything kept."""
        arrays = [*self.row_of.values(), *self.lookup.values(), self.subject_of, self.position_of, self.grid_positions]
        tensors = [*self.rows.values(), *self.means.values()]
        return sum(a.nbytes for a in arrays) + sum(t.numel() * t.element_size() for t in tensors)

    @property
    def reach(self) -> Reach:
        """Which entries each position may be compared with when position is 'restricted'."""
        if self._reach is None:
            self._reach = Reach.of(self.positions_mm, self.position_of.astype(np.int64), self.settings.radius_mm)
        return self._reach

    def distances(
        self,
        volumes: Sequence[Rows],
        layer_sets: Sequence[LayerSet],
        *,
        blocks: Blocks | None = None,
        monitor: Monitor = silent,
    ) -> Float32[np.ndarray, "layer_sets volumes positions"]:
        """Distance of each patch to its nearest healthy patch (not squared), for each layer set, from one search."""
        return self.search(volumes, layer_sets, blocks=blocks, monitor=monitor).distance

    def search(
        self,
        volumes: Sequence[Rows],
        layer_sets: Sequence[LayerSet],
        *,
        blocks: Blocks | None = None,
        monitor: Monitor = silent,
    ) -> Found:
        """`distances`, and which entry each is to.

        With settings.search 'ivf' or 'hnsw', candidates come from the index (`open_index`, else one is built) and the
        distances to them are exact: never too small, too large where the nearest entry is missed.
        """
        chosen = [self.ordered(layers) for layers in layer_sets]
        if self.settings.search != "exact":
            found = search_index(
                self.index or self.open_index(), self.queries(volumes, self.layers), self.patches(self.layers), chosen
            )
            monitor(len(self), {"entries": float(len(self))})
            return found
        queries, patches = self.queries(volumes, self._used(chosen)), self.patches(self._used(chosen))
        if self.settings.position == "restricted":
            registered = self._registered(patches)
            if registered is not None:
                return search_registered(queries, patches, registered, chosen, monitor=monitor)
            return search_within(
                queries, patches, self.reach, chosen, cube_mm=self._cube_mm, blocks=blocks, monitor=monitor
            )
        return search_everywhere(queries, patches, chosen, blocks=blocks, monitor=monitor)

    def open_index(self, directory: Path | None = None, *, monitor: Monitor = silent) -> BankIndex:
        """Use the index cached in `directory`, made anew where it is not that of this bank; None: only in memory.

        Its `note` says what was done, its `audit` how often it finds the nearest patch.
        """
        self.index = open_index(self.patches(self.layers), self.subject_of, self.settings, directory, monitor=monitor)
        return self.index

    def nearest(self, rows: Rows, position_index: int, layers: Sequence[str], k: int) -> Neighbours:
        """The k nearest healthy patches of one patch of a volume, under the bank's position mode, exact.

        'restricted' may have fewer than k in reach, and then gives those. Ties go to the earlier entry.
        """
        chosen = self.ordered(layers)
        if not 0 <= position_index < len(self.positions_mm) or k < 1:
            raise BadInput(
                f"The {k} neighbours of position {position_index} were asked for. Allowed: 1 or more, of a position "
                f"from 0 to {len(self.positions_mm) - 1}."
            )
        restricted = self.settings.position == "restricted"
        numbers = self.reach.entries(position_index) if restricted else np.arange(len(self))
        squared = self._squared(self._one(rows, position_index, chosen), numbers)
        best = np.argsort(squared, kind="stable")[:k]
        entry = numbers[best]
        positions = self.position_of[entry].astype(np.int64)
        return Neighbours(
            np.sqrt(squared[best]).astype(np.float32),
            tuple(self.subject_ids[number] for number in self.subject_of[entry]),
            positions,
            entry,
            np.linalg.norm(self.positions_mm[positions] - self.positions_mm[position_index], axis=1),
        )

    def subject_score(self, rows: Rows, layers: Sequence[str]) -> float:
        """How anomalous the subject is: the largest patch distance, re-weighted (arXiv:2106.08265, eq. 7).

        With q the patch that is farthest from its nearest entry m, and N the `neighbours` entries nearest to m (itself
        among them): (1 − exp|q − m| / Σ_{n∈N} exp|q − n|) · |q − m|. A patch whose nearest entry is rare itself, far
        from the rest of the bank, counts more. `neighbours` 1: the largest distance alone.
        """
        chosen = self.ordered(layers)
        found = self.search([rows], [chosen])
        position = int(found.distance[0, 0].argmax())
        return self.reweighted(rows, position, int(found.entry[0, 0, position]), chosen)

    def reweighted(self, rows: Rows, position_index: int, entry: int, layers: Sequence[str]) -> float:
        """The re-weighted distance of one patch to its nearest entry, as in `subject_score`."""
        chosen = self.ordered(layers)
        patches, number = self.patches(chosen), np.array([entry])
        if self.settings.position == "restricted":
            others = self.reach.entries(int(self.position_of[entry]))
        else:
            others = np.arange(len(self))
        itself = {layer: patches.layer_rows(layer, number, self.device)[0] for layer in patches.rows}
        nearest = others[np.argsort(self._squared(itself, others), kind="stable")[: self.settings.neighbours]]
        one = self._one(rows, position_index, chosen)
        distance = float(np.sqrt(self._squared(one, number)[0]))
        if self.settings.neighbours == 1:
            return distance
        apart = np.sqrt(self._squared(one, nearest))
        # exp of differences: a large distance overflows, and the ratio does not change.
        return float(1 - 1 / np.exp(apart - distance).sum()) * distance

    def save(self, directory: Path) -> None:
        """Write bank.safetensors and bank.json into the directory."""
        tensors = {f"rows.{layer}": rows for layer, rows in self.rows.items()}
        tensors |= {f"mean.{layer}": mean for layer, mean in self.means.items()}
        arrays = {f"row_of.{layer}": index.astype(np.int64) for layer, index in self.row_of.items()}
        arrays |= {f"lookup.{layer}": index.astype(np.int64) for layer, index in self.lookup.items()}
        arrays |= {"subject_of": self.subject_of, "position_of": self.position_of, "positions": self.grid_positions}
        tensors |= {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        affine = tuple(tuple(map(float, row)) for row in self.affine)
        write_bank(directory, tensors, Described(self.channels, self.settings, self.subject_ids, self.spreads, affine))

    @classmethod
    def load(cls, directory: Path, device: str = "cpu", memory_bytes: float | None = None) -> Self:
        """Read what `save` wrote; a bank of more than `memory_bytes` stays on disk and is searched block by block.

        IntegrityError when a file is missing or damaged.
        """
        described, tensors = read_bank(directory, memory_bytes)
        whole = memory_bytes is None or sum(t.numel() * t.element_size() for t in tensors.values()) <= memory_bytes
        layers = described.channels
        return cls(
            described.settings,
            described.subject_ids,
            layers,
            {layer: tensors[f"lookup.{layer}"].numpy() for layer in layers},
            tensors["positions"].numpy(),
            np.array(described.affine),
            {layer: tensors[f"mean.{layer}"] for layer in layers},
            described.spreads,
            {layer: tensors[f"rows.{layer}"].to(device if whole else "cpu") for layer in layers},
            {layer: tensors[f"row_of.{layer}"].numpy() for layer in layers},
            tensors["subject_of"].numpy(),
            tensors["position_of"].numpy(),
            device,
        )

    def queries(self, volumes: Sequence[Rows], layers: Sequence[str]) -> Queries:
        """Volumes in the bank's scale. BadInput when rows do not fit the bank."""
        lookup = {layer: self.lookup[layer] for layer in layers}
        channels = {layer: self.channels[layer] for layer in layers}
        scaled = []
        for rows in volumes:
            checked = checked_rows(rows, channels, lookup)
            mine = {
                layer: (values.to(self.device) - self.means[layer]) * (1 / self.spreads[layer])
                for layer, values in checked.items()
            }
            if self.settings.position == "weighted":
                mine[POSITION] = self._weighted_mm().to(self.device)
            scaled.append(mine)
        return Queries(tuple(scaled), lookup)

    def patches(self, layers: Sequence[str]) -> Patches:
        """The stored rows of some layers, and the positions where they weigh."""
        rows = {layer: self.rows[layer] for layer in layers}
        row_of = {layer: self.row_of[layer] for layer in layers}
        if self.settings.position == "weighted":
            rows[POSITION], row_of[POSITION] = self._weighted_mm(), self.position_of.astype(np.int64)
        return Patches(rows, row_of)

    def ordered(self, layers: Sequence[str]) -> LayerSet:
        """A layer set in the bank's order. BadInput for none, or for one that it does not have."""
        if not layers or not set(layers) <= set(self.layers):
            raise BadInput(
                f"Layers {list(layers)} were asked for. This memory bank has: {', '.join(self.layers)}. "
                "Choose at least one of them."
            )
        return tuple(layer for layer in self.layers if layer in layers)

    def _registered(self, patches: Patches) -> Registered | None:
        """How the entries lie when every subject is there at every position."""
        if len(self) != len(self.subject_ids) * len(self.grid_positions):
            return None
        radius, subjects = self.settings.radius_mm, len(self.subject_ids)
        return Registered.of(self.grid_positions, self.affine, patches, self.position_of, subjects, radius)

    def _one(self, rows: Rows, position: int, layers: LayerSet) -> dict[str, Tensor]:
        """One patch in the bank's scale, layer by layer."""
        queries = self.queries([rows], layers)
        return {
            layer: values[position if layer == POSITION else int(queries.lookup[layer][position])]
            for layer, values in queries.rows[0].items()
        }

    def _squared(self, one: Rows, numbers: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """Squared distances of one patch to some entries, from the differences, in float64."""
        patches = self.patches(tuple(layer for layer in one if layer != POSITION))
        squared = np.empty(len(numbers))
        step = max(1, int(_NEAREST_BYTES / patches.bytes_per_entry))
        for start in range(0, len(numbers), step):
            here = numbers[start : start + step]
            total = torch.zeros(len(here), dtype=torch.float64, device=self.device)
            for layer, mine in one.items():
                total += (patches.layer_rows(layer, here, self.device) - mine).double().square().sum(1)
            squared[start : start + step] = total.cpu().numpy()
        return squared

    def _weighted_mm(self) -> Float32[Tensor, "positions 3"]:
        centred = self.positions_mm - self.positions_mm.mean(0)
        return torch.from_numpy((self.settings.position_weight * centred).astype(np.float32))

    def _used(self, layer_sets: Sequence[LayerSet]) -> tuple[str, ...]:
        return tuple(layer for layer in self.layers if any(layer in chosen for chosen in layer_sets))

    @property
    def _cube_mm(self) -> float:
        """Edge of the cubes that are searched together: about the reach, at least two cells, at most eight."""
        cell = float(np.linalg.norm(self.affine[:3, :3], axis=0).max())
        return float(np.clip(2 * self.settings.radius_mm, 2 * cell, 8 * cell))


def _divisors(spreads: Mapping[str, float], settings: BankSettings) -> dict[str, float]:
    if settings.scaling == "none":
        return dict.fromkeys(spreads, 1.0)
    return {layer: spread if spread > 0 else 1.0 for layer, spread in spreads.items()}


def _kept(
    pool: Pool, layout: FeatureLayout, settings: BankSettings, subjects: int, monitor: Monitor
) -> Int64[np.ndarray, " kept"]:
    """Which candidates stay, ascending. Where position weighs in the distance it weighs in the selection too."""
    candidates = len(pool.position_of)
    keep = min(candidates, max(1, round(settings.coreset_ratio * subjects * len(layout.positions))))
    if settings.subset == "all" or keep == candidates:
        return np.arange(candidates)
    joint = np.empty((candidates, sum(layout.channels.values())), dtype=np.float32)
    column = 0
    for layer, count in layout.channels.items():
        joint[:, column : column + count] = pool.rows[layer].numpy()[pool.row_of[layer]]
        column += count
    if settings.position == "weighted":
        affine = layout.feature_grid.affine
        mm = settings.position_weight * (layout.positions @ affine[:3, :3].T)[pool.position_of]
        joint = np.concatenate([joint, (mm - mm.mean(0)).astype(np.float32)], axis=1)
    chosen = select_coreset(
        joint, keep, settings.subset, seed=settings.seed, projection=settings.projection, monitor=monitor
    )
    return np.sort(chosen)


def _stored(rows: Tensor, settings: BankSettings, layer: str) -> Tensor:
    if settings.precision == "float32":
        return rows
    largest = float(rows.abs().max()) if len(rows) else 0.0
    if largest > torch.finfo(torch.float16).max:
        raise BadInput(
            f"Features of layer {layer!r} reach {largest:.3g}, float16 ends at 65504. "
            "Choose precision 'float32', or scaling 'layer'."
        )
    return rows.half()
