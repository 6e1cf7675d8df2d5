"""Every layer set from one set of matrices: squared distances of layers add up, so each set costs one addition.

The sets form a tree of prefixes, coarse layers first. A set of coarse layers alone has few distinct queries (nearest
upsampling copies them), so it is summed and searched at its own resolution, and only its result is copied.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from core.types import LayerSet

POSITION = "position"
"""The part of a distance that comes from where a patch lies; it stands last in a set, for it differs everywhere."""


@dataclass(frozen=True)
class Node:
    """One set of layers, reached from its parent by adding its last layer."""

    layers: LayerSet
    wanted: tuple[int, ...]
    """Which of the asked layer sets it is; empty for a mere step on the way."""

    @property
    def depth(self) -> int:
        """Layers before the last."""
        return len(self.layers) - 1


@dataclass(frozen=True, eq=False)
class Step:
    """How a node's distinct queries come from its parent's and its layer's, for one block of positions."""

    from_parent: Tensor | None
    """Rows of the parent's matrix, over all volumes; None: all, in order."""
    from_layer: Tensor | None
    """Rows of the layer's matrix, likewise."""
    first: Int64[np.ndarray, " queries"]
    """For each distinct query of a volume, a position of the block that has it."""
    place: Int64[np.ndarray, " block"]
    """For each position of the block, its distinct query."""


@dataclass(frozen=True, eq=False)
class QueryBlock:
    """Positions that are searched together, for all volumes, and the distinct rows that they need."""

    positions: Int64[np.ndarray, " block"]
    volumes: int
    unique: Mapping[str, Int64[np.ndarray, " unique"]]
    """Per layer, the native rows of the block."""
    inverse: Mapping[str, Int64[np.ndarray, " block"]]
    """Per layer, for each position, its row among `unique`."""
    steps: tuple[Step, ...]


def tree_of(layer_sets: Sequence[LayerSet], order: Sequence[str], positioned: bool) -> tuple[Node, ...]:
    """Prefix tree of the sets in depth-first order. `order`: layers, coarsest first."""
    paths: dict[LayerSet, list[int]] = {}
    for number, given in enumerate(layer_sets):
        path = (*(layer for layer in order if layer in given), *((POSITION,) if positioned else ()))
        for size in range(1, len(path)):
            paths.setdefault(path[:size], [])
        paths.setdefault(path, []).append(number)
    rank = {layer: number for number, layer in enumerate((*order, POSITION))}
    ordered = sorted(paths, key=lambda path: [rank[layer] for layer in path])
    return tuple(Node(path, tuple(paths[path])) for path in ordered)


def query_block(
    tree: Sequence[Node],
    lookup: Mapping[str, Int64[np.ndarray, " positions"]],
    positions: Int64[np.ndarray, " block"],
    volumes: int,
    device: torch.device,
) -> QueryBlock:
    """Prepare a block: its distinct rows per layer, and the distinct queries of every node."""
    unique, inverse = {}, {}
    for layer in {node.layers[-1] for node in tree}:
        values = positions if layer == POSITION else lookup[layer][positions]
        unique[layer], inverse[layer] = np.unique(values, return_inverse=True)
    path: list[np.ndarray] = []
    steps = []
    for node in tree:
        del path[node.depth :]
        own = inverse[node.layers[-1]]
        width = len(unique[node.layers[-1]])
        parent = path[-1] if path else np.zeros_like(own)
        pairs, first, place = np.unique(parent * width + own, return_index=True, return_inverse=True)
        above = _tiled(pairs // width, int(parent.max()) + 1, volumes, device) if path else None
        steps.append(Step(above, _tiled(pairs % width, width, volumes, device), first, place))
        path.append(place)
    return QueryBlock(positions, volumes, unique, inverse, tuple(steps))


class Room:
    """Memory that is used again from block to block: one matrix per depth and one per layer."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flat: dict[str, Tensor] = {}

    def matrix(self, name: str, rows: int, columns: int) -> Float[Tensor, "rows columns"]:
        """A matrix whose content is whatever was there."""
        if name not in self._flat or self._flat[name].numel() < rows * columns:
            self._flat[name] = torch.empty(rows * columns, device=self._device)
        return self._flat[name][: rows * columns].view(rows, columns)


def walk(
    tree: Sequence[Node], block: QueryBlock, matrices: Mapping[str, Float[Tensor, "rows entries"]], room: Room
) -> Iterator[tuple[int, Float[Tensor, "queries entries"]]]:
    """(number of the node, summed matrix) for every wanted node; a matrix holds until the next is asked for."""
    stack: list[Tensor] = []
    for number, (node, step) in enumerate(zip(tree, block.steps, strict=True)):
        del stack[node.depth :]
        own = matrices[node.layers[-1]]
        if stack:
            sums = room.matrix(f"depth {node.depth}", len(step.first) * block.volumes, own.shape[1])
            own = _sum(stack[-1], own, step, sums)
        stack.append(own)
        if node.wanted:
            yield number, own


def _sum(parent: Tensor, own: Tensor, step: Step, sums: Tensor) -> Tensor:
    if step.from_parent is None and step.from_layer is None:
        return torch.add(parent, own, out=sums)
    if step.from_parent is None:
        assert step.from_layer is not None
        return torch.index_select(own, 0, step.from_layer, out=sums).add_(parent)
    torch.index_select(parent, 0, step.from_parent, out=sums)
    return sums.add_(own if step.from_layer is None else own.index_select(0, step.from_layer))


def _tiled(index: np.ndarray, size: int, volumes: int, device: torch.device) -> Tensor | None:
    if len(index) == size and np.array_equal(index, np.arange(size)):
        return None
    every = (np.arange(volumes)[:, None] * size + index[None]).reshape(-1)
    return torch.from_numpy(every).to(device)
