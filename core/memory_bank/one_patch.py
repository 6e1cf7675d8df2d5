"""One patch against a bank: its nearest healthy patches, and how anomalous the whole subject is by it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from core.memory_bank.bank import MemoryBank, Rows
from core.memory_bank.layer_set_sums import POSITION
from core.types import LayerSet
from data.errors import BadInput


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


def nearest(bank: MemoryBank, rows: Rows, position_index: int, layers: Sequence[str], k: int) -> Neighbours:
    """The k nearest healthy patches of one patch of a volume, under the bank's position mode, exact.

    'restricted' may have fewer than k in reach, and then gives those. Ties go to the earlier entry.
    """
    chosen = bank.ordered(layers)
    if not 0 <= position_index < len(bank.positions_mm) or k < 1:
        raise BadInput(
            f"The {k} neighbours of position {position_index} were asked for. Allowed: 1 or more, of a position "
            f"from 0 to {len(bank.positions_mm) - 1}."
        )
    restricted = bank.settings.position == "restricted"
    numbers = bank.reach.entries(position_index) if restricted else np.arange(len(bank))
    squared = _squared(bank, _one(bank, rows, position_index, chosen), numbers)
    best = np.argsort(squared, kind="stable")[:k]
    entry = numbers[best]
    positions = bank.position_of[entry].astype(np.int64)
    return Neighbours(
        np.sqrt(squared[best]).astype(np.float32),
        tuple(bank.subject_ids[number] for number in bank.subject_of[entry]),
        positions,
        entry,
        np.linalg.norm(bank.positions_mm[positions] - bank.positions_mm[position_index], axis=1),
    )


def subject_score(bank: MemoryBank, rows: Rows, layers: Sequence[str]) -> float:
    """How anomalous the subject is: the largest patch distance, re-weighted (arXiv:2106.08265, eq. 7).

    With q the patch that is farthest from its nearest entry m, and N the `neighbours` entries nearest to m (itself
    among them): (1 − exp|q − m| / Σ_{n∈N} exp|q − n|) · |q − m|. A patch whose nearest entry is rare itself, far
    from the rest of the bank, counts more. `neighbours` 1: the largest distance alone.
    """
    chosen = bank.ordered(layers)
    found = bank.search([rows], [chosen])
    position = int(found.distance[0, 0].argmax())
    return reweighted(bank, rows, position, int(found.entry[0, 0, position]), chosen)


def reweighted(bank: MemoryBank, rows: Rows, position_index: int, entry: int, layers: Sequence[str]) -> float:
    """The re-weighted distance of one patch to its nearest entry, as in `subject_score`."""
    chosen = bank.ordered(layers)
    patches, number = bank.patches(chosen), np.array([entry])
    if bank.settings.position == "restricted":
        others = bank.reach.entries(int(bank.position_of[entry]))
    else:
        others = np.arange(len(bank))
    itself = {layer: patches.layer_rows(layer, number, bank.device)[0] for layer in patches.rows}
    nearest = others[np.argsort(_squared(bank, itself, others), kind="stable")[: bank.settings.neighbours]]
    one = _one(bank, rows, position_index, chosen)
    distance = float(np.sqrt(_squared(bank, one, number)[0]))
    if bank.settings.neighbours == 1:
        return distance
    apart = np.sqrt(_squared(bank, one, nearest))
    # exp of differences: a large distance overflows, and the ratio does not change.
    return float(1 - 1 / np.exp(apart - distance).sum()) * distance


def _one(bank: MemoryBank, rows: Rows, position: int, layers: LayerSet) -> dict[str, Tensor]:
    """One patch in the bank's scale, layer by layer."""
    queries = bank.queries([rows], layers)
    return {
        layer: values[position if layer == POSITION else int(queries.lookup[layer][position])]
        for layer, values in queries.rows[0].items()
    }


def _squared(bank: MemoryBank, one: Rows, numbers: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Squared distances of one patch to some entries, from the differences, in float64."""
    patches = bank.patches(tuple(layer for layer in one if layer != POSITION))
    squared = np.empty(len(numbers))
    step = max(1, int(_NEAREST_BYTES / patches.bytes_per_entry))
    for start in range(0, len(numbers), step):
        here = numbers[start : start + step]
        total = torch.zeros(len(here), dtype=torch.float64, device=bank.device)
        for layer, mine in one.items():
            total += (patches.layer_rows(layer, here, bank.device) - mine).double().square().sum(1)
        squared[start : start + step] = total.cpu().numpy()
    return squared


_NEAREST_BYTES = 64e6
