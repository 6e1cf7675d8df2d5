"""The training volumes, checked, on the device or read when their turn comes."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.simclr.settings import DENSE, SimclrSettings
from data.errors import BadInput
from data.volume import Volume


@dataclass(frozen=True, eq=False)
class Scans:
    """How to get scan and brain mask of subject i, and what all scans have in common."""

    read: Callable[[int], tuple[Tensor, Tensor]]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    identity: dict[str, Any]
    """What tells these data from others when a run is resumed."""
    subject_ids: tuple[str, ...]
    """Whose they are, in the order of `read`."""


def open_scans(volumes: Sequence[Volume], settings: SimclrSettings, device: torch.device) -> Scans:
    """The volumes on the device when they fit into `memory_gb`, else as they are asked for.

    BadInput when there are fewer than a batch, or a volume differs in shape or contrasts or is not finite.
    """
    if settings.batch < 2 or len(volumes) < settings.batch:
        raise BadInput(
            f"A batch of {settings.batch} distinct subjects cannot be drawn from {len(volumes)}. "
            f"Allowed: 2 to {len(volumes)}. Lower the batch or add healthy subjects."
        )
    first = volumes[0]
    shape, spacing = first.grid.shape, first.grid.spacing_mm
    expected = (settings.encoder.in_channels, *shape)
    if len(volumes) * first.voxels.nbytes > settings.memory_gb * 1e9:

        def read(index: int) -> tuple[Tensor, Tensor]:
            volume = volumes[index]
            scan = torch.tensor(_checked(volume, expected), device=device)
            return scan, torch.tensor(volume.brain_mask, device=device)

        ids = tuple(volume.subject_id for volume in volumes)
        return Scans(read, shape, spacing, {"subjects": len(volumes)}, ids)
    ordered = sorted(volumes, key=lambda volume: volume.subject_id)
    kept = torch.empty((len(ordered), *expected))
    brains = torch.empty((len(ordered), *shape), dtype=torch.bool)
    for number, volume in enumerate(ordered):
        kept[number] = torch.tensor(_checked(volume, expected))
        brains[number] = torch.tensor(volume.brain_mask)
    identity: dict[str, Any] = {
        "subjects": [volume.subject_id for volume in ordered],
        "voxels_sha256": hashlib.sha256(kept.numpy().data).hexdigest(),
    }
    if settings.negatives.kind in DENSE:
        identity["brains_sha256"] = hashlib.sha256(brains.numpy().data).hexdigest()
    kept, brains = kept.to(device), brains.to(device)
    ids = tuple(volume.subject_id for volume in ordered)
    return Scans(lambda i: (kept[i], brains[i]), shape, spacing, identity, ids)


def _checked(volume: Volume, expected: tuple[int, ...]) -> np.ndarray:
    voxels = np.asarray(volume.voxels)
    if voxels.shape != expected or not np.isfinite(voxels).all():
        raise BadInput(
            f"Volume of {volume.subject_id!r} has shape {voxels.shape} or holds values that are not finite. "
            f"Allowed: {expected}, the contrasts of the encoder on one grid. "
            "Prepare all volumes with the same preprocessing."
        )
    return voxels
