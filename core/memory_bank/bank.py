"""A memory bank of healthy patches: how far is each patch of a brain from the nearest one ever seen in health?

PatchCore (Roth et al. 2022, arXiv:2106.08265) in 3-D. Squared distances of concatenated layers are sums over layers,
so one search gives the nearest neighbour under every combination of layers, exactly. Nothing here knows images: a
volume is `rows`, per layer one row of channels for each native position, and the layout says where they lie.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int32, Int64
from torch import Tensor

from core.memory_bank.all_subjects_everywhere import Registered, search_registered
from core.memory_bank.bank_on_disk import Described, read_bank, write_bank
from core.memory_bank.candidate_pool import checked_rows, draw_pool
from core.memory_bank.choosing import divisors_of, kept_candidates, stored_rows
from core.memory_bank.cost import plan_bank
from core.memory_bank.index import BankIndex, open_index, search_index
from core.memory_bank.layer_set_sums import POSITION
from core.memory_bank.search import Blocks, Found, Patches, Queries, search_everywhere
from core.memory_bank.settings import BankSettings
from core.memory_bank.within_radius import Reach, search_within
from core.types import FeatureLayout, LayerSet, Monitor, silent
from data.errors import BadInput

Rows = Mapping[str, Tensor]
"""Features of one volume: layer -> (native positions, channels)."""


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
        divisors = divisors_of(pool.spreads, settings)
        for layer, values in pool.rows.items():
            values.sub_(pool.means[layer]).mul_(1 / divisors[layer])
        kept = kept_candidates(pool, layout, settings, len(subject_ids), monitor)
        rows: dict[str, Tensor] = {}
        row_of: dict[str, np.ndarray] = {}
        for layer in layout.channels:
            used, row_of[layer] = np.unique(pool.row_of[layer][kept], return_inverse=True)
            rows[layer] = stored_rows(pool.rows.pop(layer)[torch.from_numpy(used)], settings, layer).to(device)
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
