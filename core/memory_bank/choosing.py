"""Which candidates a bank keeps, and in which scale and precision."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from core.memory_bank.candidate_pool import Pool
from core.memory_bank.coreset import select_coreset
from core.memory_bank.settings import BankSettings
from core.types import FeatureLayout, Monitor
from data.errors import BadInput


def divisors_of(spreads: Mapping[str, float], settings: BankSettings) -> dict[str, float]:
    """By what each layer is divided: its spread, or 1."""
    if settings.scaling == "none":
        return dict.fromkeys(spreads, 1.0)
    return {layer: spread if spread > 0 else 1.0 for layer, spread in spreads.items()}


def kept_candidates(
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


def stored_rows(rows: Tensor, settings: BankSettings, layer: str) -> Tensor:
    """Rows in the precision that is kept. BadInput where float16 does not reach."""
    if settings.precision == "float32":
        return rows
    largest = float(rows.abs().max()) if len(rows) else 0.0
    if largest > torch.finfo(torch.float16).max:
        raise BadInput(
            f"Features of layer {layer!r} reach {largest:.3g}, float16 ends at 65504. "
            "Choose precision 'float32', or scaling 'layer'."
        )
    return rows.half()
