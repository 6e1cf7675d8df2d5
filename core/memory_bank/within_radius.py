"""Nearest neighbours among the entries that lie near: exact, and cheap because few entries are in reach.

Cubes of neighbouring positions are searched together among the entries that any of them can reach; what a position
itself cannot reach gets an infinite distance. A position without any entry in reach takes the entries at the nearest
position that has some (in a coreset of a few thousand this happens at the rim; `Reach.fallbacks` counts it).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from scipy.spatial import cKDTree
from torch import Tensor

from core.memory_bank.layer_set_sums import POSITION, Room, query_block, tree_of
from core.memory_bank.search import (
    Blocks,
    Found,
    Patches,
    Queries,
    blocks_for,
    distinct_rows,
    for_each,
    look_at,
    measure,
    nothing_yet,
    runs,
)
from core.types import LayerSet, Monitor, silent

ROUNDING_MM = 1e-4
"""Positions exactly at the radius count, whatever the affine's rounding says."""


@dataclass(frozen=True, eq=False)
class Reach:
    """Which entries each position may be compared with. Entries are sorted by position."""

    positions_mm: Float64[np.ndarray, "positions 3"]
    occupied: Int64[np.ndarray, " occupied"]
    """Positions that have entries."""
    first: Int64[np.ndarray, " occupied_and_end"]
    """First entry of each, and the number of entries."""
    reach_mm: Float64[np.ndarray, " positions"]
    """The radius, or the distance of the nearest entry where that is larger."""
    fallbacks: int
    """Positions without an entry within the radius."""

    @classmethod
    def of(
        cls, positions_mm: Float64[np.ndarray, "positions 3"], position_of: Int64[np.ndarray, " entries"], radius: float
    ) -> "Reach":
        """Reach of every position; `position_of` must be sorted."""
        occupied, first = np.unique(position_of, return_index=True)
        nearest = cKDTree(positions_mm[occupied]).query(positions_mm)[0]
        reach = np.maximum(nearest, radius) + ROUNDING_MM
        missing = int(np.count_nonzero(nearest > radius + ROUNDING_MM))
        return cls(positions_mm, occupied, np.append(first, len(position_of)), reach, missing)

    def entries(self, position: int) -> Int64[np.ndarray, " entries"]:
        """Entries in reach of one position."""
        apart = np.linalg.norm(self.positions_mm[self.occupied] - self.positions_mm[position], axis=1)
        return self.numbers(np.flatnonzero(apart <= self.reach_mm[position]))[0]

    def numbers(
        self, chosen: Int64[np.ndarray, " chosen"]
    ) -> tuple[Int64[np.ndarray, " entries"], Int64[np.ndarray, " entries"]]:
        """Entries at some of the occupied positions, and for each which of these it lies at."""
        counts = self.first[chosen + 1] - self.first[chosen]
        which = np.repeat(np.arange(len(chosen)), counts)
        within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.first[chosen][which] + within, which

    def near(
        self, positions: Int64[np.ndarray, " block"]
    ) -> tuple[Int64[np.ndarray, " chosen"], Float64[np.ndarray, "block chosen"]]:
        """Occupied positions that any of these reaches, and the penalty: 0 in reach, infinite beyond."""
        here, there = self.positions_mm[positions], self.positions_mm[self.occupied]
        beyond = np.maximum(here.min(0) - there, 0) + np.maximum(there - here.max(0), 0)
        chosen = np.flatnonzero(np.linalg.norm(beyond, axis=1) <= self.reach_mm[positions].max())
        apart = np.linalg.norm(here[:, None] - there[chosen][None], axis=2)
        within = apart <= self.reach_mm[positions][:, None]
        used = within.any(0)
        return chosen[used], np.where(within[:, used], 0.0, np.inf)


def search_within(
    queries: Queries,
    patches: Patches,
    reach: Reach,
    layer_sets: Sequence[LayerSet],
    *,
    cube_mm: float,
    blocks: Blocks | None = None,
    monitor: Monitor = silent,
) -> Found:
    """The nearest entry in reach for every position, volume and layer set. `monitor` hears the positions done."""
    blocks = blocks or blocks_for(queries.device)
    tree = tree_of(layer_sets, queries.order(), True)
    found = Found.empty(len(layer_sets), len(queries.rows), queries.n_positions)
    device, done = queries.device, 0

    def search(positions: Int64[np.ndarray, " block"]) -> None:
        nonlocal done
        block = query_block(tree, queries.lookup, positions, len(queries.rows), device)
        chosen, penalty = reach.near(block.unique[POSITION])
        numbers, which = reach.numbers(chosen)
        wide = torch.from_numpy(np.tile(penalty.astype(np.float32), (block.volumes, 1))).to(device)
        best, own, room = nothing_yet(tree, block, device), distinct_rows(tree, queries, block), Room(device)
        for here in runs(len(numbers), blocks.entries):
            entries = patches.entries(numbers[here], device)
            extra: dict[str, Tensor] = {POSITION: wide.index_select(1, torch.from_numpy(which[here]).to(device))}
            look_at(tree, block, own, entries, best, room, extra)
        measure(tree, block, queries, patches, best, found)
        done += len(positions)
        monitor(done, {"positions": float(queries.n_positions)})

    for_each(search, cubes(reach.positions_mm, cube_mm), device)
    return found


def cubes(positions_mm: Float64[np.ndarray, "positions 3"], edge_mm: float) -> Iterator[Int64[np.ndarray, " block"]]:
    """Positions by the cube of space they lie in, along the first, second and third axis."""
    cell = np.floor((positions_mm - positions_mm.min(0) + ROUNDING_MM) / edge_mm).astype(np.int64)
    _, cube = np.unique(cell, axis=0, return_inverse=True)
    order = np.argsort(cube.reshape(-1), kind="stable")
    return iter(np.split(order, np.flatnonzero(np.diff(cube.reshape(-1)[order])) + 1))
