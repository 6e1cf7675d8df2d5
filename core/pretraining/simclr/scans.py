"""The training volumes, checked, on the device or read when their turn comes."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.pretraining.simclr.allowed import DENSE
from core.pretraining.simclr_settings import SimclrSettings
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
    """The volumes on the device when they fit into `memory_gb`, else as they are asked for; in the order of their ids.

    Order, bits and identity are the same either way, so a training may go on with more memory or with less. Every
    volume is read once here. BadInput when there are fewer than a batch, or a volume differs in shape or contrasts or
    is not finite.
    """
    if settings.batch < 2 or len(volumes) < settings.batch:
        raise BadInput(
            f"A batch of {settings.batch} distinct subjects cannot be drawn from {len(volumes)}. "
            f"Allowed: 2 to {len(volumes)}. Lower the batch or add healthy subjects."
        )
    first = volumes[0]
    shape, spacing = first.grid.shape, first.grid.spacing_mm
    expected = (settings.encoder.in_channels, *shape)
    ids = [volumes[number].subject_id for number in range(len(volumes))]
    order = sorted(range(len(volumes)), key=ids.__getitem__)

    def load(index: int) -> tuple[Tensor, Tensor]:
        volume = volumes[order[index]]
        scan = torch.tensor(_checked(volume, expected), dtype=torch.float32)
        return scan, torch.tensor(volume.brain_mask, dtype=torch.bool)

    resident = len(volumes) * first.voxels.nbytes <= settings.memory_gb * 1e9
    kept, (voxels, brains) = [], (hashlib.sha256(), hashlib.sha256())
    for index in range(len(volumes)):
        scan, brain = load(index)
        voxels.update(scan.numpy().data)
        brains.update(brain.numpy().data)
        if resident:
            kept.append((scan.to(device), brain.to(device)))
    identity: dict[str, Any] = {"subjects": [ids[number] for number in order], "voxels_sha256": voxels.hexdigest()}
    if settings.negatives.kind in DENSE:
        identity["brains_sha256"] = brains.hexdigest()

    def read(index: int) -> tuple[Tensor, Tensor]:
        scan, brain = kept[index] if resident else load(index)
        return scan.to(device), brain.to(device)

    return Scans(read, shape, spacing, identity, tuple(ids[number] for number in order))


def _checked(volume: Volume, expected: tuple[int, ...]) -> np.ndarray:
    voxels = np.asarray(volume.voxels)
    if voxels.shape != expected or not np.isfinite(voxels).all():
        raise BadInput(
            f"Volume of {volume.subject_id!r} has shape {voxels.shape} or holds values that are not finite. "
            f"Allowed: {expected}, the contrasts of the encoder on one grid. "
            "Prepare all volumes with the same preprocessing."
        )
    return voxels
