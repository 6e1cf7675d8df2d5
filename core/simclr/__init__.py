"""Contrastive pretraining: an encoder that tells brains apart through random views, without labels."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from core import distributed
from core.contrastive import chance_loss, diagnostics, nt_xent
from core.randomness import stream
from core.training import Optimisation, minimise
from core.types import Monitor, silent
from core.views import ViewSettings, apply_view, draw_view
from data.errors import BadInput
from data.files import committed_directory
from data.volume import Volume
from models.encoder import EncoderSettings, make_encoder, save_encoder
from models.projection import projection_head


@dataclass(frozen=True)
class SimclrSettings:
    """Everything that determines a pretraining run."""

    encoder: EncoderSettings = field(default_factory=lambda: EncoderSettings(width=16))
    """The network to train."""
    views: ViewSettings = field(default_factory=ViewSettings)
    """How the two sides of a pair differ."""
    temperature: float = 0.1
    """Of the softmax over cosines; lower looks harder at the nearest brains."""
    batch: int = 12
    """Subjects per step, all distinct; the loss at chance is ln(2·batch − 1)."""
    steps: int = 300
    """Optimiser steps."""
    lr: float = 3e-4
    """Learning rate of AdamW at its peak."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    warmup_steps: int = 0
    """Steps of linear rise to the peak."""
    gradient_clip: float = 1.0
    """Largest L2 norm of the gradient; 0 leaves it as it is."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on an accelerator that has it, float32 on a CPU."""
    log_every: int = 1
    """Steps per logged line."""
    checkpoint_every: int = 50
    """Steps between checkpoints."""
    memory_gb: float = 4.0
    """Volumes stay in memory when they fit into this many GB, else each is read when its turn comes."""
    seed: int = 0
    """Of the order of subjects, the views and the projection head."""


def pretrain_encoder(
    volumes: Sequence[Volume], settings: SimclrSettings, directory: Path, monitor: Monitor = silent
) -> Path:
    """Train an encoder on healthy volumes; the path of the saved encoder, `directory`/encoder.

    Run again after an interruption, it goes on from the last checkpoint (see `core.training.minimise`). The
    projection head is used in training and left out of the result. When the volumes fit into memory they are put in
    the order of their subject ids, so their order does not matter; a lazy sequence is used as it is ordered.
    BadInput when volumes differ in shape, contrasts do not fit the encoder, or there are fewer subjects than `batch`.
    SimCLR: Chen et al. 2020, arXiv:2002.05709; without the memory bank.
    """
    device = distributed.device()
    read, shape, data = _reader(volumes, settings, device)
    encoder = make_encoder(settings.encoder).to(device).train()
    if not encoder.slicewise:  # half as fast again on a CPU, faster with bfloat16 everywhere
        encoder.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    head = projection_head(encoder.embedding_dim, seed=settings.seed).to(device).train()
    chance = chance_loss(settings.batch)

    def loss_of_step(step: int) -> tuple[Tensor, dict[str, Any]]:
        chosen = batch_indices(settings.seed, step, len(volumes), settings.batch)
        scans = [read(index) for index in chosen]
        draws = [
            [draw_view(settings.views, shape, settings.seed, step, index, view) for index in chosen] for view in (0, 1)
        ]
        views = [apply_view(scan, draw) for side in draws for scan, draw in zip(scans, side, strict=True)]
        projected = head(encoder(torch.stack(views))).float()
        z1, z2 = projected.chunk(2)
        logs: dict[str, Any] = {"chance": chance, **diagnostics(z1, z2)}
        if step == 1 or step % 50 == 0:
            logs["sample_view"] = {"subject": chosen[0], **draws[1][0].as_json()}
        return nt_xent(z1, z2, settings.temperature), logs

    minimise(
        {"encoder": encoder, "head": head},
        loss_of_step,
        optimisation(settings),
        directory,
        config={"settings": asdict(settings), "shape": list(shape), **data},
        device=device,
        examples_per_step=settings.batch,
        monitor=monitor,
    )
    with committed_directory(directory / "encoder") as scratch:
        save_encoder(encoder, settings.encoder, scratch)
    return directory / "encoder"


def optimisation(settings: SimclrSettings) -> Optimisation:
    """The part of the settings that the training loop reads."""
    return Optimisation(
        steps=settings.steps,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        schedule=settings.schedule,
        warmup_steps=settings.warmup_steps,
        gradient_clip=settings.gradient_clip,
        precision=settings.precision,
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
    )


def batch_indices(seed: int, step: int, subjects: int, batch: int) -> list[int]:
    """The subjects of step 1, 2, ...: every epoch is a new permutation, and its incomplete last batch is left out."""
    per_epoch = subjects // batch
    epoch, place = divmod(step - 1, per_epoch)
    order = stream(seed, "order", epoch).permutation(subjects)
    return [int(index) for index in order[place * batch : (place + 1) * batch]]


def _reader(
    volumes: Sequence[Volume], settings: SimclrSettings, device: torch.device
) -> tuple[Callable[[int], Float[Tensor, "contrasts x y z"]], tuple[int, int, int], dict[str, Any]]:
    """How to get volume i onto the device, the common shape, and what identifies the data on resume."""
    if settings.batch < 2 or len(volumes) < settings.batch:
        raise BadInput(
            f"A batch of {settings.batch} distinct subjects cannot be drawn from {len(volumes)}. "
            f"Allowed: 2 to {len(volumes)}. Lower the batch or add healthy subjects."
        )
    first = volumes[0]
    shape = first.grid.shape

    def checked(volume: Volume) -> np.ndarray:
        voxels = np.asarray(volume.voxels)
        if voxels.shape != (settings.encoder.in_channels, *shape) or not np.isfinite(voxels).all():
            raise BadInput(
                f"Volume of {volume.subject_id!r} has shape {voxels.shape} or holds values that are not finite. "
                f"Allowed: {(settings.encoder.in_channels, *shape)}, the contrasts of the encoder on one grid. "
                "Prepare all volumes with the same preprocessing."
            )
        return voxels

    if len(volumes) * first.voxels.nbytes > settings.memory_gb * 1e9:
        return lambda i: torch.tensor(checked(volumes[i]), device=device), shape, {"subjects": len(volumes)}
    ordered = sorted(volumes, key=lambda volume: volume.subject_id)
    kept = torch.empty((len(ordered), settings.encoder.in_channels, *shape))
    for number, volume in enumerate(ordered):
        kept[number] = torch.tensor(checked(volume))
    data = {
        "subjects": [volume.subject_id for volume in ordered],
        "voxels_sha256": hashlib.sha256(kept.numpy().data).hexdigest(),
    }
    kept = kept.to(device)
    return lambda i: kept[i], shape, data
