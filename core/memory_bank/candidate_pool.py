"""The candidates of a memory bank, drawn over all subjects and positions in one pass over the subjects."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from core.memory_bank.settings import BankSettings
from core.randomness import stream
from core.types import FeatureLayout, Monitor
from data.errors import BadInput


@dataclass(frozen=True, eq=False)
class Pool:
    """Unscaled candidate patches, sorted by position, then subject; each layer's distinct rows once.

    `rows[layer][row_of[layer][i]]` is candidate i: positions of one subject that share a coarse cell share its row.
    """

    rows: dict[str, Float32[Tensor, "rows channels"]]
    row_of: dict[str, Int64[np.ndarray, " candidates"]]
    subject_of: Int64[np.ndarray, " candidates"]
    position_of: Int64[np.ndarray, " candidates"]
    means: dict[str, Float32[Tensor, " channels"]]
    spreads: dict[str, float]
    """Per layer, the root mean square distance of all training features (not the drawn alone) to their mean."""


@dataclass
class _Moments:
    """Mean and total squared distance to it, of rows that come in batches (Chan et al. 1983)."""

    n: float = 0.0
    mean: Tensor | None = None
    squares: float = 0.0

    def add(self, rows: Tensor, weights: Tensor) -> None:
        values, n = rows.double(), float(weights.sum())
        mean = weights @ values / n
        squares = float(weights @ (values - mean).square().sum(1))
        if self.mean is None:
            self.n, self.mean, self.squares = n, mean, squares
            return
        apart = mean - self.mean
        self.squares += squares + float(apart.square().sum()) * self.n * n / (self.n + n)
        self.mean = self.mean + apart * (n / (self.n + n))
        self.n += n


def draw_pool(
    rows_of_subjects: Iterable[Mapping[str, Tensor]],
    subject_ids: Sequence[str],
    layout: FeatureLayout,
    settings: BankSettings,
    monitor: Monitor,
) -> Pool:
    """Read every subject once, keep the drawn patches, and learn each layer's mean and spread from all patches.

    Which patches are drawn depends on the seed and the numbers of subjects and positions alone. BadInput for other
    subjects than announced, rows that do not fit the layout, or numbers that are not finite.
    """
    subjects, positions = len(subject_ids), len(layout.positions)
    drawn = drawn_patches(subjects, positions, settings)
    subject_of, position_of = drawn // positions, drawn % positions
    moments = {layer: _Moments() for layer in layout.channels}
    kept: dict[str, list[Tensor]] = {layer: [] for layer in layout.channels}
    cells: dict[str, list[np.ndarray]] = {layer: [] for layer in layout.channels}
    number = 0
    for rows in rows_of_subjects:
        if number == subjects:
            raise BadInput(f"More subjects came than the {subjects} that were announced. Give one id per subject.")
        mine = position_of[subject_of == number]
        for layer, values in checked_rows(rows, layout.channels, layout.lookup).items():
            counts = np.bincount(layout.lookup[layer], minlength=len(values)).astype(np.float64)
            moments[layer].add(values.cpu(), torch.from_numpy(counts))
            wanted = np.unique(layout.lookup[layer][mine])
            kept[layer].append(values[torch.from_numpy(wanted).to(values.device)].cpu())
            cells[layer].append(wanted * subjects + number)
        number += 1
        monitor(number, {"total": float(subjects)})
    if number != subjects:
        raise BadInput(f"{number} subjects came, announced were {subjects}. Give one id per subject.")
    order = np.lexsort((subject_of, position_of))
    return _sorted(kept, cells, subject_of[order], position_of[order], layout, subjects, moments)


def drawn_patches(subjects: int, positions: int, settings: BankSettings) -> Int64[np.ndarray, " drawn"]:
    """The pool as numbers subject · positions + position, ascending."""
    total = subjects * positions
    if settings.subset == "all" or total <= settings.pool:
        return np.arange(total)
    drawn = stream(settings.seed, "memory bank pool").choice(total, size=settings.pool, replace=False, shuffle=False)
    return np.sort(drawn).astype(np.int64)


def checked_rows(
    rows: Mapping[str, Tensor], channels: Mapping[str, int], lookup: Mapping[str, Int64[np.ndarray, " positions"]]
) -> dict[str, Tensor]:
    """Rows of a volume as float32; BadInput when a layer is missing, has another shape or is not finite."""
    checked = {}
    for layer, count in channels.items():
        if layer not in rows:
            raise BadInput(f"A volume lacks layer {layer!r}; it has {list(rows)}. Extract the same layers for all.")
        values = rows[layer].detach()
        needed = int(lookup[layer].max()) + 1
        if values.ndim != 2 or values.shape[1] != count or len(values) < needed:
            raise BadInput(
                f"Features of layer {layer!r} have shape {tuple(values.shape)}. Allowed is (at least {needed} native "
                f"positions, {count} channels). Extract them with the layout of the bank."
            )
        if not all(bool(torch.isfinite(end)) for end in torch.aminmax(values)):
            raise BadInput(
                f"Features of layer {layer!r} are not finite. Allowed are numbers. Check that volume's intensities."
            )
        checked[layer] = values.to(torch.float32)
    return checked


def _sorted(
    kept: dict[str, list[Tensor]],
    cells: dict[str, list[np.ndarray]],
    subject_of: np.ndarray,
    position_of: np.ndarray,
    layout: FeatureLayout,
    subjects: int,
    moments: dict[str, _Moments],
) -> Pool:
    """Stack the subjects' rows, each layer sorted by (cell, subject), and say which row each candidate has."""
    rows, row_of, means, spreads = {}, {}, {}, {}
    for layer, learnt in moments.items():
        keys = np.concatenate(cells.pop(layer))
        order = np.argsort(keys, kind="stable")
        rows[layer] = torch.cat(kept.pop(layer))[torch.from_numpy(order)]
        row_of[layer] = np.searchsorted(keys[order], layout.lookup[layer][position_of] * subjects + subject_of)
        assert learnt.mean is not None
        means[layer], spreads[layer] = learnt.mean.float(), float(np.sqrt(learnt.squares / learnt.n))
    return Pool(rows, row_of, subject_of, position_of, means, spreads)
