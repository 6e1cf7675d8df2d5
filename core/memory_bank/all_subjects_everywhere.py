"""The fast path of 'restricted' when the bank holds every subject at every position.

Then the entries in reach of a position are those at fixed offsets of the registered grid: one batched product per
offset compares a block of positions with all subjects at their neighbours, and nothing beyond the radius is touched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from core.memory_bank.layer_set_sums import QueryBlock, Room, Step, tree_of, walk
from core.memory_bank.search import (
    LEAST_ENTRIES,
    LEAST_ROWS,
    Found,
    Patches,
    Queries,
    blocks_for,
    first_least,
    for_each,
)
from core.memory_bank.within_radius import ROUNDING_MM
from core.types import LayerSet, Monitor, silent

_SHARED = 2
"""A layer with this many positions to a row computes each pair of rows once."""


@dataclass(frozen=True, eq=False)
class Registered:
    """Where each position's neighbours lie, for a bank of all subjects at all positions."""

    subjects: int
    neighbours: Int64[np.ndarray, "positions offsets"]
    """-1: no position of the layout there."""
    cell_of: Mapping[str, Int64[np.ndarray, " positions"]]
    """Per layer, the group of rows (one per subject) that a position has."""

    @classmethod
    def of(
        cls,
        grid_positions: Int64[np.ndarray, "positions 3"],
        affine: Float64[np.ndarray, "4 4"],
        patches: Patches,
        position_of: Int64[np.ndarray, " entries"],
        subjects: int,
        radius_mm: float,
    ) -> "Registered | None":
        """None when some subject lacks some position: then the general path is needed."""
        positions = len(grid_positions)
        if not np.array_equal(position_of, np.repeat(np.arange(positions), subjects)):
            return None
        cell_of = {}
        for layer, row_of in patches.row_of.items():
            rows = row_of.reshape(positions, subjects)
            if (rows != rows[:, :1] + np.arange(subjects)).any() or (rows[:, 0] % subjects).any():
                return None
            cell_of[layer] = rows[:, 0] // subjects
        return cls(subjects, _neighbours(grid_positions, affine, radius_mm), cell_of)


def search_registered(
    queries: Queries,
    patches: Patches,
    registered: Registered,
    layer_sets: Sequence[LayerSet],
    *,
    monitor: Monitor = silent,
) -> Found:
    """As `search_within`, for the bank that `registered` describes. `monitor` hears the positions done."""
    layers, volumes, device = tuple(queries.lookup), len(queries.rows), queries.device
    tree = tree_of(layer_sets, queries.order(), False)
    groups = {
        layer: patches.rows[layer].view(-1, registered.subjects, patches.rows[layer].shape[1]) for layer in layers
    }
    norms = {layer: _norms(rows) for layer, rows in groups.items()}
    found = Found.empty(len(layer_sets), volumes, queries.n_positions)
    size, done = max(16, blocks_for(device).queries // volumes), 0

    def search(start: int) -> None:
        nonlocal done
        positions = np.arange(start, min(start + size, queries.n_positions))
        there = registered.neighbours[positions]
        same = np.arange(len(positions))
        block = QueryBlock(positions, volumes, {}, {}, (Step(None, None, same, same),) * len(tree))
        room = Room(device)
        matrices = {
            layer: _matrix(queries, layer, positions, there, registered, groups[layer], norms[layer], room)
            for layer in layers
        }
        for number, sums in walk(tree, block, matrices, room):
            entry = _nearest(sums, there, volumes, registered.subjects)
            distance = _distances(queries, patches, tree[number].layers, positions, entry)
            for asked in tree[number].wanted:
                found.entry[asked][:, positions], found.distance[asked][:, positions] = entry, distance
        done += len(positions)
        monitor(done, {"positions": float(queries.n_positions)})

    for_each(search, range(0, queries.n_positions, size), device)
    return found


def _neighbours(
    grid_positions: Int64[np.ndarray, "positions 3"], affine: Float64[np.ndarray, "4 4"], radius_mm: float
) -> Int64[np.ndarray, "positions offsets"]:
    """Which position lies at each offset within the radius."""
    most = int(radius_mm / np.linalg.svd(affine[:3, :3], compute_uv=False).min() + 1)
    steps = np.arange(-most, most + 1)
    offsets = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    offsets = offsets[np.linalg.norm(offsets @ affine[:3, :3].T, axis=1) <= radius_mm + ROUNDING_MM]
    number = np.full(grid_positions.max(0) + 1 + 2 * most, -1, dtype=np.int64)
    number[tuple((grid_positions + most).T)] = np.arange(len(grid_positions))
    there = grid_positions[:, None] + most + offsets[None]
    neighbours: np.ndarray = number[there[..., 0], there[..., 1], there[..., 2]]
    return neighbours


def _norms(rows: Tensor) -> Float[Tensor, "cells subjects"]:
    return torch.cat([some.float().square().sum(2) for some in rows.split(1024)])


def _matrix(
    queries: Queries,
    layer: str,
    positions: Int64[np.ndarray, " block"],
    there: Int64[np.ndarray, "block offsets"],
    registered: Registered,
    rows: Float[Tensor, "cells subjects channels"],
    norms: Float[Tensor, "cells subjects"],
    room: Room,
) -> Float[Tensor, "queries columns"]:
    """|e|² − 2qᵀe for every offset and subject of every position; infinite where there is no neighbour."""
    device, volumes, subjects = queries.device, len(queries.rows), registered.subjects
    out = room.matrix(layer, volumes * len(positions), there.shape[1] * subjects)
    view = out.view(volumes, len(positions), there.shape[1], subjects)
    cells, own = registered.cell_of[layer], queries.lookup[layer][positions]
    for column, neighbour in enumerate(there.T):
        group = cells[np.maximum(neighbour, 0)]
        pairs, back = _pairs(own, group, len(rows), len(cells))
        mine = torch.from_numpy(pairs // len(rows)).to(device)
        other = torch.from_numpy(pairs % len(rows)).to(rows.device)
        mine_of = [volume[layer].index_select(0, mine) for volume in queries.rows]
        e = rows.index_select(0, other).to(device, torch.float32)
        lengths = norms.index_select(0, other).to(device)[:, None]
        squared = lengths - 2 * _products(mine_of, e)
        if back is not None:
            squared = squared.index_select(0, torch.from_numpy(back).to(device))
        view[:, :, column] = squared.transpose(0, 1)
        if (neighbour < 0).any():
            view[:, torch.from_numpy(neighbour < 0).to(device), column] = torch.inf
    return out


def _products(
    volumes: list[Float[Tensor, "pairs channels"]], entries: Float[Tensor, "pairs subjects channels"]
) -> Float[Tensor, "pairs volumes subjects"]:
    """qᵀe of every pair, by products of a fixed size: a volume gets the same bits alone as among others."""
    if entries.shape[1] < LEAST_ENTRIES:
        return torch.stack([(one[:, None] * entries).sum(2) for one in volumes], 1)
    filled = volumes + volumes[-1:] * (-len(volumes) % LEAST_ROWS)
    groups = [torch.stack(filled[start : start + LEAST_ROWS], 1) for start in range(0, len(filled), LEAST_ROWS)]
    return torch.cat([group @ entries.transpose(1, 2) for group in groups], 1)[:, : len(volumes)]


def _pairs(
    own: Int64[np.ndarray, " block"], group: Int64[np.ndarray, " block"], groups: int, positions: int
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " block"] | None]:
    """Distinct (query row, group) pairs and where each position finds its own; None: in order, all of them."""
    pairs = own * groups + group
    if groups * _SHARED > positions:
        return pairs, None
    distinct, back = np.unique(pairs, return_inverse=True)
    return distinct, back


def _nearest(
    sums: Float[Tensor, "queries columns"], there: Int64[np.ndarray, "block offsets"], volumes: int, subjects: int
) -> Int64[np.ndarray, "volumes block"]:
    """The entry of each query's least sum: the offset first, then the subject there."""
    by_offset = sums.view(len(sums), -1, subjects)
    offset = first_least(by_offset.amin(2))
    subject = first_least(by_offset[torch.arange(len(sums), device=sums.device), offset])
    neighbour = np.tile(there, (volumes, 1))[np.arange(len(sums)), offset.cpu().numpy()]
    entry: np.ndarray = (neighbour * subjects + subject.cpu().numpy()).reshape(volumes, -1)
    return entry


def _distances(
    queries: Queries,
    patches: Patches,
    layers: LayerSet,
    positions: Int64[np.ndarray, " block"],
    entry: Int64[np.ndarray, "volumes block"],
) -> Float[np.ndarray, "volumes block"]:
    """Distances to the winners, measured from the difference."""
    squared = torch.zeros(entry.shape, device=queries.device)
    for layer in layers:
        index = torch.from_numpy(queries.lookup[layer][positions]).to(queries.device)
        mine = torch.cat([rows[layer].index_select(0, index) for rows in queries.rows])
        theirs = patches.layer_rows(layer, entry.reshape(-1), queries.device)
        squared += (mine - theirs).square_().sum(1).view(entry.shape)
    distances: np.ndarray = squared.sqrt_().cpu().numpy()
    return distances
