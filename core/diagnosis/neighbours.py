"""Why is the score here what it is? The healthy patches of a memory bank that are nearest to one place of a scan.

A score of PatchCore is a distance to one real patch of one healthy subject: so it can be looked at. The other rule of
place is searched too (anywhere for a bank that minds the place, near for one that does not), because normal but rare
tissue elsewhere in the brain can stand in for what should be here, and hide a lesion.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from core.detectors.capabilities import KeepsPatches, can
from core.diagnosis.neighbour_questions import refuse_no_bank, refuse_no_brain
from core.memory_bank.bank import MemoryBank
from core.memory_bank.layer_set_sums import POSITION
from core.memory_bank.search import Patches, Queries
from core.runs.run_record import Run
from core.study.fitted import load_detector
from core.types import LayerSet
from data.errors import BadInput
from data.volume import Grid, Volume

NEAR_MM = 8.0
"""Reach of the other search when the bank's own goes anywhere."""
OTHER_BYTES = 2e9
"""Bank that is still searched a second time, in full, for one place."""
_SPARE = 61
_PART_BYTES = 64e6
PLACE = "place"
"""Name of the part of a squared distance that comes from where a patch lies, in a bank that weighs it."""


@dataclass(frozen=True)
class Neighbour:
    """One healthy patch of the bank."""

    subject_id: str
    distance: float
    """Feature distance, not squared, in the bank's unit."""
    apart_mm: float
    """From the query's patch to this one, template mm."""
    voxel: tuple[int, int, int]
    """Centre of the patch on the working grid."""
    position_mm: tuple[float, float, float]
    """The same in mm of the working world (MNI152), to the right, front and top."""
    shares: Mapping[str, float]
    """Each layer's share of the squared distance, and `PLACE` where the bank weighs it; empty at distance 0."""


@dataclass(frozen=True)
class NeighbourView:
    """What stands behind the score of one place."""

    subject_id: str
    voxel: tuple[int, int, int]
    """The place that was asked for, on the working grid."""
    patch_voxel: tuple[int, int, int]
    """Centre of the nearest patch: scores between patches are interpolated."""
    position_mm: tuple[float, float, float]
    """Of the patch's centre."""
    layers: LayerSet
    entries: int
    """Patches in the bank, without the subject's own."""
    candidates: int
    """Those that may be compared with this place."""
    radius_mm: float | None
    """Reach of the bank here; None: anywhere. Larger than the bank's radius where it holds nothing within it."""
    nearest: tuple[Neighbour, ...]
    """Nearest first, under the bank's own rule of place."""
    other: Neighbour | None
    """The nearest under the other rule of place; None when no patch is there."""
    other_radius_mm: float | None
    """Reach of the other rule; None: anywhere."""
    other_candidates: int
    """Patches that the other rule allows."""
    unit: str
    """What a distance of 1 is."""
    own: int = 0
    """Patches of the subject itself in the bank: left out, because each would find itself at distance 0."""

    @property
    def distance(self) -> float:
        """To the nearest: what the bank says of this place."""
        return self.nearest[0].distance


@dataclass(frozen=True, eq=False)
class BankSearch:
    """A fitted bank, and the same patches under the other rule of place. Share it: a page and its threads may."""

    detector: KeepsPatches
    bank: MemoryBank
    other: MemoryBank | None
    """None when it would go through more than `OTHER_BYTES` for each place."""
    lengths: dict[str, Tensor] = field(default_factory=dict)
    """Squared lengths of the stored rows, by layer: measured when they are first needed."""

    @classmethod
    def of(cls, detector: KeepsPatches) -> "BankSearch":
        """Ready to look up neighbours."""
        bank = detector.bank_
        assert bank is not None
        changed: dict[str, Any] = {"position": "restricted", "search": "exact", "radius_mm": NEAR_MM}
        if bank.settings.position != "anywhere":
            changed = {"position": "anywhere", "search": "exact"}
        cheap = bank.settings.position == "anywhere" or bank.n_bytes <= OTHER_BYTES
        return cls(detector, bank, _under(bank, changed) if cheap else None)

    def features(self, volume: Volume) -> Queries:
        """What `at` needs of a scan: one pass of the encoder over it. Bytes: positions times channels times 4."""
        assert self.detector.extractor_ is not None
        return self.bank.queries([self.detector.extractor_(volume).rows], self.bank.layers)

    def at(
        self, volume: Volume, features: Queries, voxel: Sequence[int], layers: LayerSet, k: int = 3
    ) -> NeighbourView:
        """The k nearest healthy patches of the patch at a voxel of the working grid, under one layer set.

        A subject of the bank meets the patches of the others alone. BadInput when the voxel is not on the grid, lies
        outside the brain, or when no other subject has a patch there.
        """
        refuse_no_brain(volume, voxel)
        layers = self.bank.ordered(layers)
        position = self.position_at(volume.grid, voxel)
        x, y, z = (int(v) for v in voxel)
        nearest = self._found(self.bank, volume, features, position, layers, k)
        if not nearest:
            raise BadInput(
                f"All patches that the bank allows at voxel ({x}, {y}, {z}) are {volume.subject_id!r}'s own. "
                "Choose another voxel, or a scan that the bank does not hold."
            )
        others = [] if self.other is None else self._found(self.other, volume, features, position, layers, 1)
        own = int(self._own(self.bank, volume.subject_id).sum())
        return NeighbourView(
            subject_id=volume.subject_id,
            voxel=(x, y, z),
            patch_voxel=_voxel(volume.grid, self.bank.positions_mm[position]),
            position_mm=_triple(self.bank.positions_mm[position]),
            layers=layers,
            entries=len(self.bank) - own,
            candidates=self._candidates(self.bank, volume, position),
            radius_mm=_radius(self.bank, position),
            nearest=tuple(nearest),
            other=others[0] if others else None,
            other_radius_mm=None if self.other is None else _radius(self.other, position),
            other_candidates=0 if self.other is None else self._candidates(self.other, volume, position),
            unit=unit_of(self.bank),
            own=own,
        )

    def position_at(self, grid: Grid, voxel: Sequence[int]) -> int:
        """Number of the patch whose centre is nearest to a voxel; the first of several."""
        mm = grid.affine[:3, :3] @ np.array(voxel, dtype=np.float64) + grid.affine[:3, 3]
        return int(np.square(self.bank.positions_mm - mm).sum(1).argmin())

    def _found(
        self, bank: MemoryBank, volume: Volume, features: Queries, position: int, layers: LayerSet, k: int
    ) -> list[Neighbour]:
        query = patch_of(features, position, (*layers, POSITION) if bank.settings.position == "weighted" else layers)
        patches = bank.patches(layers)
        own = self._own(bank, volume.subject_id)
        if bank.settings.position == "restricted":
            numbers = bank.reach.entries(position)
            numbers = numbers[~own[numbers]]
        else:
            numbers = self._promising(patches, query, own, k)
        if not len(numbers):
            return []
        parts = layer_parts(patches, query, numbers, bank.device)
        squared = np.sum(list(parts.values()), axis=0)
        return [
            Neighbour(
                subject_id=bank.subject_ids[bank.subject_of[numbers[n]]],
                distance=float(np.sqrt(squared[n])),
                apart_mm=float(np.linalg.norm(bank.positions_mm[place] - bank.positions_mm[position])),
                voxel=_voxel(volume.grid, bank.positions_mm[place]),
                position_mm=_triple(bank.positions_mm[place]),
                shares={name: float(part[n] / squared[n]) for name, part in parts.items()} if squared[n] > 0 else {},
            )
            for n in np.argsort(squared, kind="stable")[:k]
            for place in [int(bank.position_of[numbers[n]])]
        ]

    def _own(self, bank: MemoryBank, subject_id: str) -> Bool[np.ndarray, " entries"]:
        """Which entries are patches of the subject itself."""
        number = bank.subject_ids.index(subject_id) if subject_id in bank.subject_ids else -1
        own: np.ndarray = np.asarray(bank.subject_of) == number
        return own

    def _candidates(self, bank: MemoryBank, volume: Volume, position: int) -> int:
        own = self._own(bank, volume.subject_id)
        return int((~own[bank.reach.entries(position)] if bank.settings.position == "restricted" else ~own).sum())

    def _promising(
        self, patches: Patches, query: Mapping[str, Tensor], own: Bool[np.ndarray, " entries"], k: int
    ) -> Int64[np.ndarray, " candidates"]:
        """Among the others' entries, ascending, more than k that the nearest k are among: |e|² − 2qᵀe.

        In float32: an entry is missed only where its squared distance is beaten by less than about 1e-6 of the
        features' squared length, and then `_SPARE` times.
        """
        total, device = torch.zeros(len(patches), device=self.bank.device), self.bank.device
        for layer, mine in query.items():
            if layer not in self.lengths:
                self.lengths[layer] = _in_parts(patches.rows[layer], _squared_lengths, device)
            rough = self.lengths[layer] - 2 * _in_parts(patches.rows[layer], partial(torch.mv, vec=mine), device)
            total += rough[torch.from_numpy(patches.row_of[layer]).to(device)]
        total[torch.from_numpy(own).to(device)] = torch.inf
        best = torch.topk(total, min(int((~own).sum()), k + _SPARE), largest=False).indices
        return np.sort(best.cpu().numpy())


def open_bank(run: Run) -> BankSearch:
    """The memory bank of a run, read from disk once. BadInput when the run has none."""
    refuse_no_bank(run)
    detector = load_detector(run)
    assert can(detector, KeepsPatches)
    return BankSearch.of(detector)


def patch_of(features: Queries, position: int, layers: Sequence[str]) -> dict[str, Float32[Tensor, " channels"]]:
    """One patch of a scan in the bank's scale, layer by layer."""
    rows = features.rows[0]
    return {name: rows[name][position if name == POSITION else int(features.lookup[name][position])] for name in layers}


def layer_parts(
    patches: Patches, query: Mapping[str, Tensor], numbers: Int64[np.ndarray, " entries"], device: torch.device
) -> dict[str, Float64[np.ndarray, " entries"]]:
    """What each layer adds to the squared distance between a patch and some entries; `PLACE` for where they lie."""
    return {
        PLACE if name == POSITION else name: (patches.layer_rows(name, numbers, device) - mine)
        .double()
        .square()
        .sum(1)
        .cpu()
        .numpy()
        for name, mine in query.items()
    }


def unit_of(bank: MemoryBank) -> str:
    """What a distance of 1 is, in words."""
    if bank.settings.scaling == "layer":
        return "1 is the spread of one layer's features over all healthy patches"
    return "in the encoder's own feature units"


def _under(bank: MemoryBank, changed: Mapping[str, Any]) -> MemoryBank:
    """The same entries under other settings; rows are shared."""
    other = copy.copy(bank)
    other.settings = replace(bank.settings, **changed)
    other._reach = None
    return other


def _in_parts(rows: Tensor, what: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    """One number per stored row; what is on disk or half precision is read in parts."""
    step = max(1, int(_PART_BYTES / (4 * rows.shape[1])))
    parts = [rows[start : start + step] for start in range(0, len(rows), step)]
    return torch.cat([what(part.to(device, torch.float32)) for part in parts])


def _squared_lengths(rows: Tensor) -> Tensor:
    return rows.square().sum(1)


def _radius(bank: MemoryBank, position: int) -> float | None:
    if bank.settings.position != "restricted":
        return None
    return max(bank.settings.radius_mm, round(float(bank.reach.reach_mm[position]), 2))


def _voxel(grid: Grid, position_mm: np.ndarray) -> tuple[int, int, int]:
    x, y, z = np.rint(np.linalg.solve(grid.affine[:3, :3], position_mm - grid.affine[:3, 3]))
    return int(x), int(y), int(z)


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (round(float(value), 3) for value in values)
    return x, y, z
