"""Exact nearest neighbours in a memory bank, for every layer set at once.

Per layer one matrix product gives |e|² − 2qᵀe for a block of queries and entries; `walk` adds them up per layer set,
and a running minimum goes over the blocks of the bank, so memory stays bounded. The winner's distance is then measured
again from the difference: a query that is a bank entry gets 0, and no cancellation is left in a score. (The choice of
the winner is in float32: it can be another one only where two squared distances differ by less than about 1e-6 of the
features' squared length.)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from core.devices import each_on_one_thread, threads
from core.memory_bank.layer_set_sums import POSITION, Node, QueryBlock, Room, query_block, tree_of, walk
from core.types import LayerSet, Monitor, silent

Rows = Mapping[str, Tensor]
"""Layer -> (native positions, channels)."""
Task = TypeVar("Task")

LEAST_ROWS, LEAST_ENTRIES = 4, 16
"""Products of fewer rows or columns take other ways through the linear algebra, and a query's bits told its company."""
SEGMENT = 64
"""Entries among which the place of a minimum is looked for."""
CHUNK_BYTES = 64e6
"""Bank rows that are read, converted and multiplied with all queries before the next are read."""


@dataclass(frozen=True)
class Blocks:
    """Edges of the matrices of one block: small enough for the cache, large enough to be worth a call."""

    queries: int
    entries: int


def blocks_for(device: torch.device) -> Blocks:
    """What was fastest on a processor (measured); a graphics card wants larger ones."""
    return Blocks(256, 2048) if device.type == "cpu" else Blocks(4096, 16384)


@dataclass(frozen=True, eq=False)
class Queries:
    """Scaled features of volumes on the search's device; a part `POSITION` when position is weighted."""

    rows: tuple[Rows, ...]
    lookup: Mapping[str, Int64[np.ndarray, " positions"]]

    @property
    def n_positions(self) -> int:
        """Positions of the feature grid."""
        return len(next(iter(self.lookup.values())))

    @property
    def positioned(self) -> bool:
        """Whether the position is a part of the distance."""
        return POSITION in self.rows[0]

    @property
    def device(self) -> torch.device:
        """Where the search is done."""
        return next(iter(self.rows[0].values())).device

    def order(self) -> tuple[str, ...]:
        """The layers, coarsest first: fewest distinct rows."""
        layers = list(self.lookup)
        return tuple(sorted(layers, key=lambda layer: (len(np.unique(self.lookup[layer])), layers.index(layer))))

    def of_block(self, block: QueryBlock, layer: str) -> Float[Tensor, "rows channels"]:
        """Distinct rows of the block, volume after volume."""
        index = torch.from_numpy(block.unique[layer]).to(self.device)
        return torch.cat([rows[layer].index_select(0, index) for rows in self.rows])


@dataclass(frozen=True, eq=False)
class Patches:
    """The bank's side: stored rows per layer, and which of them each entry has."""

    rows: Rows
    row_of: Mapping[str, Int64[np.ndarray, " entries"]]

    def __len__(self) -> int:
        return len(next(iter(self.row_of.values())))

    @property
    def bytes_per_entry(self) -> int:
        """Of an entry's rows in float32."""
        return 4 * sum(rows.shape[1] for rows in self.rows.values())

    def entries(self, numbers: Int64[np.ndarray, " entries"], device: torch.device) -> "Entries":
        """Rows and squared lengths of some entries."""
        rows = {layer: self.layer_rows(layer, numbers, device) for layer in self.rows}
        return Entries(numbers, rows, {layer: values.square().sum(1) for layer, values in rows.items()})

    def layer_rows(
        self, layer: str, numbers: Int64[np.ndarray, " entries"], device: torch.device
    ) -> Float32[Tensor, "entries channels"]:
        """One layer's rows of some entries, float32 on the device."""
        index = self.row_of[layer][numbers]
        stored = self.rows[layer]
        if len(index) and index[-1] - index[0] == len(index) - 1 and bool((np.diff(index) == 1).all()):
            return stored[int(index[0]) : int(index[-1]) + 1].to(device, torch.float32)
        return stored.index_select(0, torch.from_numpy(index).to(stored.device)).to(device, torch.float32)


@dataclass(frozen=True, eq=False)
class Entries:
    """Some of the bank's entries, ready to be multiplied."""

    numbers: Int64[np.ndarray, " entries"]
    rows: Rows
    norms: Mapping[str, Float[Tensor, " entries"]]

    def part(self, run: slice) -> "Entries":
        """A run of them."""
        return Entries(
            self.numbers[run],
            {layer: rows[run] for layer, rows in self.rows.items()},
            {layer: norms[run] for layer, norms in self.norms.items()},
        )


@dataclass(frozen=True, eq=False)
class Best:
    """Per wanted node of a block: the smallest sum so far, and the entry that has it (-1: none yet)."""

    sums: dict[int, Float[Tensor, " queries"]]
    entry: dict[int, Int64[Tensor, " queries"]]


@dataclass(frozen=True, eq=False)
class Found:
    """1-NN distances, and the entries they are to."""

    distance: Float32[np.ndarray, "layer_sets volumes positions"]
    entry: Int64[np.ndarray, "layer_sets volumes positions"]

    @classmethod
    def empty(cls, layer_sets: int, volumes: int, positions: int) -> "Found":
        """Room for the results."""
        shape = (layer_sets, volumes, positions)
        return cls(np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.int64))


def search_everywhere(
    queries: Queries,
    patches: Patches,
    layer_sets: Sequence[LayerSet],
    *,
    blocks: Blocks | None = None,
    chunk_bytes: float = CHUNK_BYTES,
    monitor: Monitor = silent,
) -> Found:
    """The nearest of all entries for every position, volume and layer set. `monitor` hears the entries done."""
    blocks = blocks or blocks_for(queries.device)
    tree = tree_of(layer_sets, queries.order(), queries.positioned)
    work = [
        query_block(tree, queries.lookup, positions, len(queries.rows), queries.device)
        for positions in _neighbouring(queries, blocks.queries)
    ]
    best = [nothing_yet(tree, block, queries.device) for block in work]
    step = max(blocks.entries, int(chunk_bytes / patches.bytes_per_entry))
    for start in range(0, len(patches), step):
        chunk = patches.entries(np.arange(start, min(start + step, len(patches))), queries.device)

        def update(number: int, chunk: Entries = chunk) -> None:
            room, own = Room(queries.device), distinct_rows(tree, queries, work[number])
            for part in runs(len(chunk.numbers), blocks.entries):
                look_at(tree, work[number], own, chunk.part(part), best[number], room)

        for_each(update, range(len(work)), queries.device)
        monitor(min(start + step, len(patches)), {"entries": float(len(patches))})
    found = Found.empty(len(layer_sets), len(queries.rows), queries.n_positions)
    for_each(
        lambda number: measure(tree, work[number], queries, patches, best[number], found),
        range(len(work)),
        queries.device,
    )
    return found


def runs(entries: int, size: int) -> Iterator[slice]:
    """Runs of at most `size` entries, whole segments as long as there are any."""
    start = 0
    while start < entries:
        left = min(size, entries - start)
        stop = start + (left - left % SEGMENT if left > SEGMENT else left)
        yield slice(start, stop)
        start = stop


def nothing_yet(tree: Sequence[Node], block: QueryBlock, device: torch.device) -> Best:
    """Before the first entry was looked at."""
    wanted = {number: block.volumes * len(block.steps[number].first) for number, node in enumerate(tree) if node.wanted}
    return Best(
        {number: torch.full((size,), torch.inf, device=device) for number, size in wanted.items()},
        {number: torch.full((size,), -1, dtype=torch.int64, device=device) for number, size in wanted.items()},
    )


def look_at(
    tree: Sequence[Node],
    block: QueryBlock,
    own: Rows,
    entries: Entries,
    best: Best,
    room: Room,
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Update the best of a block by some more entries. `extra` holds matrices that are no product of rows."""
    matrices = dict(extra or {})
    for layer, rows in own.items():
        matrices[layer] = _products(rows, entries.rows[layer], entries.norms[layer], room, layer)
    numbers = torch.from_numpy(entries.numbers).to(next(iter(matrices.values())).device)
    for number, sums in walk(tree, block, matrices, room):
        _keep_least(sums, numbers, best.sums[number], best.entry[number])


def _products(
    rows: Float[Tensor, "queries channels"],
    entries: Float[Tensor, "entries channels"],
    norms: Float[Tensor, " entries"],
    room: Room,
    name: str,
) -> Float[Tensor, "queries entries"]:
    """|e|² − 2qᵀe, with the same bits for a query whichever others there are."""
    if len(entries) < LEAST_ENTRIES:
        return norms - 2 * (rows[:, None] * entries).sum(2)
    enough = rows if len(rows) >= LEAST_ROWS else rows.repeat(LEAST_ROWS, 1)
    into = room.matrix(name, len(enough), len(entries))
    return torch.addmm(norms, enough, entries.T, alpha=-2, out=into)[: len(rows)]


def _keep_least(
    sums: Float[Tensor, "queries entries"],
    numbers: Int64[Tensor, " entries"],
    best: Float[Tensor, " queries"],
    entry: Int64[Tensor, " queries"],
) -> None:
    """An argmin costs fifteen times a minimum: minima of segments first, the place only within the winning one."""
    queries, width = sums.shape
    size = SEGMENT if width % SEGMENT == 0 else width
    segments = sums.view(queries, width // size, size)
    minima = segments.amin(2)
    least = minima.amin(1)
    better = torch.nonzero(least < best).flatten()
    if not len(better):
        return
    segment = first_least(minima.index_select(0, better))
    row = better * (width // size) + segment
    within = first_least(segments.reshape(-1, size).index_select(0, row))
    best.index_copy_(0, better, least.index_select(0, better))
    entry.index_copy_(0, better, numbers.index_select(0, segment * size + within))


def first_least(values: Float[Tensor, "rows columns"]) -> Int64[Tensor, " rows"]:
    """The first column of each row's least value; which of equal ones an argmin names depends on the shape."""
    columns = torch.arange(values.shape[1], device=values.device)
    return torch.where(values == values.amin(1, keepdim=True), columns, values.shape[1]).amin(1)


def measure(
    tree: Sequence[Node], block: QueryBlock, queries: Queries, patches: Patches, best: Best, found: Found
) -> None:
    """Write the winners of a block, each distance measured from the difference."""
    own = distinct_rows(tree, queries, block)
    for number, entry in best.entry.items():
        step, squared = block.steps[number], torch.zeros(len(entry), device=queries.device)
        winners = entry.cpu().numpy()
        for layer in tree[number].layers:
            if layer not in own:
                continue
            width = len(block.unique[layer])
            index = np.arange(block.volumes)[:, None] * width + block.inverse[layer][step.first][None]
            mine = own[layer].index_select(0, torch.from_numpy(index.reshape(-1)).to(queries.device))
            squared += (mine - patches.layer_rows(layer, winners, queries.device)).square_().sum(1)
        distances = squared.sqrt_().cpu().numpy().reshape(block.volumes, -1)
        for asked in tree[number].wanted:
            found.distance[asked][:, block.positions] = distances[:, step.place]
            found.entry[asked][:, block.positions] = winners.reshape(block.volumes, -1)[:, step.place]


def distinct_rows(tree: Sequence[Node], queries: Queries, block: QueryBlock) -> dict[str, Tensor]:
    """The block's distinct rows of every layer that has some."""
    layers = {node.layers[-1] for node in tree}
    return {layer: queries.of_block(block, layer) for layer in layers if layer in queries.rows[0]}


def for_each(work: Callable[[Task], None], tasks: Iterable[Task], device: torch.device) -> None:
    """Do all tasks, which share nothing they write to: on as many cores as torch may use, each computing alone."""
    workers = threads(device)
    if workers == 1:
        for task in tasks:
            work(task)
        return
    with each_on_one_thread(workers) as pool:
        for _ in pool.map(work, tasks):
            pass


def _neighbouring(queries: Queries, size: int) -> Iterator[Int64[np.ndarray, " block"]]:
    """Runs of positions that share coarse rows."""
    size = max(16, size // len(queries.rows))
    coarse_last = [queries.lookup[layer] for layer in reversed(queries.order())]
    order = np.lexsort(coarse_last)
    for start in range(0, len(order), size):
        yield order[start : start + size]
