"""Why is the score here what it is? The healthy patches of a memory bank that are nearest to one place of a scan.

A score of PatchCore is a distance to one real patch of one healthy subject: so it can be looked at. The other rule of
place is searched too (anywhere for a bank that minds the place, near for one that does not), because normal but rare
tissue elsewhere in the brain can stand in for what should be here, and hide a lesion.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from core.detectors import PatchCore
from core.experiment import load_detector, prepared_of
from core.lesions import components
from core.memory_bank.bank import MemoryBank
from core.memory_bank.walk import POSITION
from core.patch_pictures import Convention, brightest_of, patch_picture, refuse_outside
from core.store import Run
from core.thumbnails import centre_of
from core.types import LayerSet
from data.errors import BadInput
from data.preprocessing import Prepared
from data.volume import Grid, Volume

Rows = Mapping[str, Tensor]
"""Features of one volume: layer -> (native positions, channels)."""
NEAR_MM = 8.0
"""Reach of the other search when the bank's own goes anywhere."""
OTHER_BYTES = 2e9
"""Bank that is still searched a second time, in full, for one place."""
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
    """Patches in the bank."""
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
    unit: str
    """What a distance of 1 is."""

    @property
    def distance(self) -> float:
        """To the nearest: what the bank says of this place."""
        return self.nearest[0].distance


@dataclass(frozen=True, eq=False)
class BankSearch:
    """A fitted bank, and the same patches under the other rule of place. Share it; nothing in it changes."""

    detector: PatchCore
    bank: MemoryBank
    other: MemoryBank | None
    """None when it would go through more than `OTHER_BYTES` for each place."""

    @classmethod
    def of(cls, detector: PatchCore) -> "BankSearch":
        """Ready to look up neighbours."""
        bank = detector.bank_
        assert bank is not None
        changed: dict[str, Any] = {"position": "restricted", "search": "exact", "radius_mm": NEAR_MM}
        if bank.settings.position != "anywhere":
            changed = {"position": "anywhere"}
        cheap = bank.settings.position == "anywhere" or bank.n_bytes <= OTHER_BYTES
        return cls(detector, bank, _under(bank, changed) if cheap else None)

    def features(self, volume: Volume) -> Rows:
        """What `at` needs of a scan: one pass of the encoder over it. Bytes: positions times channels times 4."""
        assert self.detector.extractor_ is not None
        rows: Rows = self.detector.extractor_(volume).rows
        return rows

    def at(self, volume: Volume, rows: Rows, voxel: Sequence[int], layers: LayerSet, k: int = 3) -> NeighbourView:
        """The k nearest healthy patches of the patch at a voxel of the working grid, under one layer set.

        BadInput when the voxel is not on the grid or lies outside the brain.
        """
        _refuse_no_brain(volume, voxel)
        layers = self.bank.ordered(layers)
        position = self.position_at(volume.grid, voxel)
        x, y, z = (int(v) for v in voxel)
        others = [] if self.other is None else self._found(self.other, volume.grid, rows, position, layers, 1)
        return NeighbourView(
            subject_id=volume.subject_id,
            voxel=(x, y, z),
            patch_voxel=_voxel(volume.grid, self.bank.positions_mm[position]),
            position_mm=_triple(self.bank.positions_mm[position]),
            layers=layers,
            entries=len(self.bank),
            candidates=_candidates(self.bank, position),
            radius_mm=_radius(self.bank, position),
            nearest=tuple(self._found(self.bank, volume.grid, rows, position, layers, k)),
            other=others[0] if others else None,
            other_radius_mm=None if self.other is None else _radius(self.other, position),
            unit=unit_of(self.bank),
        )

    def position_at(self, grid: Grid, voxel: Sequence[int]) -> int:
        """Number of the patch whose centre is nearest to a voxel; the first of several."""
        mm = grid.affine[:3, :3] @ np.array(voxel, dtype=np.float64) + grid.affine[:3, 3]
        return int(np.square(self.bank.positions_mm - mm).sum(1).argmin())

    def _found(
        self, bank: MemoryBank, grid: Grid, rows: Rows, position: int, layers: LayerSet, k: int
    ) -> list[Neighbour]:
        found = bank.nearest(rows, position, layers, k)
        shares = layer_shares(bank, rows, position, layers, found.entry)
        return [
            Neighbour(
                subject_id=found.subject_id[n],
                distance=float(found.distance[n]),
                apart_mm=float(found.apart_mm[n]),
                voxel=_voxel(grid, bank.positions_mm[place]),
                position_mm=_triple(bank.positions_mm[place]),
                shares=shares[n],
            )
            for n, place in enumerate(found.position_index)
        ]


def open_bank(run: Run) -> BankSearch:
    """The memory bank of a run, read from disk once. BadInput when the run has none."""
    refuse_no_bank(run)
    detector = load_detector(run)
    assert isinstance(detector, PatchCore)
    return BankSearch.of(detector)


def start_voxel(prepared: Prepared) -> tuple[int, int, int]:
    """A place to begin with: the voxel of the largest lesion that is nearest to its centroid, else `centre_of`."""
    if prepared.lesion is None or not prepared.lesion.voxels.any():
        return centre_of(prepared)
    labels = components(prepared.lesion, min_volume_mm3=0.0)
    voxels = np.argwhere(labels == 1 + int(np.bincount(labels.ravel())[1:].argmax()))
    x, y, z = voxels[np.square(voxels - voxels.mean(axis=0)).sum(1).argmin()]
    return int(x), int(y), int(z)


def refuse_no_bank(run: Run) -> None:
    """BadInput when a run's detector is not a memory bank."""
    kind = run.record["recipe"]["kind"]
    if kind != PatchCore.__name__:
        raise BadInput(
            f"Run {run.run_id} is a {kind}: its scores are not distances to single patches, so there are no "
            "neighbours to show. Fit a memory bank: python cli.py fit COHORT --detector patchcore"
        )


def layer_shares(
    bank: MemoryBank, rows: Rows, position: int, layers: LayerSet, entries: Sequence[int] | np.ndarray
) -> list[dict[str, float]]:
    """How much of the squared distance between a patch and some entries each layer makes up; sums to 1.

    Empty for a patch at distance 0.
    """
    queries, patches = bank.queries([rows], layers), bank.patches(layers)
    numbers = np.asarray(entries, dtype=np.int64)
    parts = {}
    for layer, values in queries.rows[0].items():
        mine = values[position if layer == POSITION else int(queries.lookup[layer][position])]
        theirs = patches.layer_rows(layer, numbers, bank.device)
        parts[PLACE if layer == POSITION else layer] = (theirs - mine).double().square().sum(1).cpu().numpy()
    total = np.sum(list(parts.values()), axis=0)
    return [
        {name: float(part[n] / total[n]) for name, part in parts.items()} if total[n] > 0 else {}
        for n in range(len(numbers))
    ]


def unit_of(bank: MemoryBank) -> str:
    """What a distance of 1 is, in words."""
    if bank.settings.scaling == "layer":
        return "1 is the spread of one layer's features over all healthy patches"
    return "in the encoder's own feature units"


def pictures_of(
    run: Run, view: NeighbourView, convention: Convention = "radiological"
) -> tuple[UInt8[np.ndarray, "rows columns 3"], list[UInt8[np.ndarray, "rows columns 3"]]]:
    """The place itself, and its neighbours (the one under the other rule last, where there is one): one grey window."""
    here = prepared_of(run, view.subject_id).volume
    brightest = brightest_of(here)
    neighbours = [*view.nearest, *([] if view.other is None else [view.other])]
    shown = [
        patch_picture(prepared_of(run, one.subject_id).volume, one.voxel, brightest, convention=convention)
        for one in neighbours
    ]
    return patch_picture(here, view.patch_voxel, brightest, convention=convention), shown


def sheet(pictures: Sequence[UInt8[np.ndarray, "rows columns 3"]]) -> UInt8[np.ndarray, "all_rows columns 3"]:
    """Pictures below each other."""
    gap = np.zeros((6, pictures[0].shape[1], 3), dtype=np.uint8)
    return np.concatenate([part for picture in pictures for part in (picture, gap)][:-1])


def save_sheet(path: Path, run: Run, view: NeighbourView) -> None:
    """One PNG: the place, then its neighbours, then the one under the other rule."""
    here, shown = pictures_of(run, view)
    Image.fromarray(sheet([here, *shown])).save(path, format="PNG")


def share_text(shares: Mapping[str, float]) -> str:
    """Largest first: 'stage2 61 %, stage1 39 %'."""
    parts = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in parts)


def distance_text(distance: float) -> str:
    """A feature distance to three digits."""
    return f"{distance:.0f}" if distance >= 1000 else f"{distance:#.3g}".removesuffix(".")


def apart_text(apart_mm: float) -> str:
    """'6 mm away', or the same place."""
    return "at the same place" if apart_mm < 0.5 else f"{apart_mm:.0f} mm away"


def sentences(view: NeighbourView, plain: Callable[[str], str] = str) -> list[str]:
    """What a view says, in plain lines: the score, which patches were allowed, and what the other rule would find.

    `plain` turns a subject's id into text that is shown as it stands.
    """
    first = view.nearest[0]
    lines = [
        f"The score here is {distance_text(first.distance)}: its distance to the nearest of {view.entries:,} healthy "
        f"patches. Nearest: {plain(first.subject_id)}, {apart_text(first.apart_mm)}."
    ]
    if view.radius_mm is not None:
        lines.append(
            f"Only patches within {view.radius_mm:g} mm are allowed: {view.candidates:,} of {view.entries:,} here."
        )
    elif PLACE in first.shares:
        lines.append("The way to a patch counts too: each distance is made of features and of place.")
    return [*lines, *_other_sentence(view, plain)]


def mm_text(position_mm: Sequence[float]) -> str:
    """Millimetres to the right, front and top."""
    return "({}) mm".format(", ".join(f"{value:.0f}".replace("-", "−") for value in position_mm))


def _other_sentence(view: NeighbourView, plain: Callable[[str], str]) -> list[str]:
    first, other = view.nearest[0], view.other
    if other is None:
        return []
    found = f"{plain(other.subject_id)}, {apart_text(other.apart_mm)}, at distance {distance_text(other.distance)}"
    same = (other.subject_id, other.voxel) == (first.subject_id, first.voxel)
    if view.other_radius_mm is None:
        if same:
            return ["If the place did not matter, the nearest would be the same patch."]
        far = other.apart_mm > (view.radius_mm or 0.0)
        hidden = far and other.distance < 0.9 * first.distance
        why = " What is normal there would hide what is strange here." if hidden else ""
        return [f"If the place did not matter, the nearest would be {found}.{why}"]
    if same:
        return [f"It is also the nearest of the patches within {view.other_radius_mm:g} mm."]
    hidden = first.distance < 0.9 * other.distance
    why = " What is normal elsewhere makes this place look less strange than its own surroundings do." if hidden else ""
    return [f"Of the patches within {view.other_radius_mm:g} mm alone, the nearest is {found}.{why}"]


def _under(bank: MemoryBank, changed: Mapping[str, Any]) -> MemoryBank:
    """The same entries under other settings; rows are shared."""
    other = copy.copy(bank)
    other.settings = replace(bank.settings, **changed)
    other._reach = None
    return other


def _refuse_no_brain(volume: Volume, voxel: Sequence[int]) -> None:
    refuse_outside(volume, voxel)
    x, y, z = (int(v) for v in voxel)
    if not volume.brain_mask[x, y, z]:
        raise BadInput(
            f"Voxel ({x}, {y}, {z}) of {volume.subject_id!r} lies outside the brain: nothing is scored there. "
            "Choose a voxel of the brain."
        )


def _candidates(bank: MemoryBank, position: int) -> int:
    return len(bank.reach.entries(position)) if bank.settings.position == "restricted" else len(bank)


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
