"""Contrastive pretraining: an encoder that tells brains, or places in them, apart through random views, without labels.

One variant per kind of `NegativesSettings`, in the table VARIANTS; all share views, order, loop and checkpoints.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core import devices
from core.pretraining.checkpoints import Optimisation, planned_bytes
from core.pretraining.minimise import check_optimisation, minimise
from core.pretraining.simclr.allowed import DENSE, check_negatives
from core.pretraining.simclr.atlas import Atlas
from core.pretraining.simclr.ccd import Ccd
from core.pretraining.simclr.dense import Dense, tap_of
from core.pretraining.simclr.scans import open_scans
from core.pretraining.simclr.variant import Batch, Setup, Variant
from core.pretraining.simclr.whole_brains import InBatch, Moco, Queue, Slots
from core.pretraining.simclr_settings import NegativesSettings, SimclrSettings
from core.randomness import number_of, stream
from core.types import Monitor, silent
from data.errors import BadInput
from data.files import committed_directory
from data.json_files import read_json
from data.ranges import refuse_out_of_range
from data.volume import Volume
from models.encoder import make_encoder, save_encoder

__all__ = [
    "VARIANTS",
    "NegativesSettings",
    "SimclrSettings",
    "batch_indices",
    "bytes_to_train",
    "check_settings",
    "optimisation",
    "pretrain_encoder",
]

VARIANTS: Mapping[str, Callable[[Setup], Variant]] = {
    "in-batch": InBatch,
    "queue": Queue,
    "slots": Slots,
    "moco": Moco,
    "hard": Moco,
    "ccd": Ccd,
    "dense": Dense,
    "dense-shift": Dense,
    "atlas": Atlas,
    "atlas-shift": Atlas,
}


def pretrain_encoder(
    volumes: Sequence[Volume],
    settings: SimclrSettings,
    directory: Path,
    monitor: Monitor = silent,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Train an encoder on healthy volumes; the path of the saved encoder, `directory`/encoder.

    Run again after an interruption, it goes on from the last checkpoint (see `pretraining.minimise`), banks and
    momentum encoder included. Heads, banks and the momentum encoder are used in training and left out of the result.
    The volumes are put in the order of their subject ids, so their order does not matter, nor whether they fit into
    memory. Views and places of a subject are drawn by its id. `about` is what the saved encoder's manifest says of
    itself.
    BadInput when volumes differ in shape, contrasts do not fit the encoder, there are fewer subjects than `batch`, or
    a setting is out of its range. SimCLR: Chen et al. 2020, arXiv:2002.05709; the variants name their own sources.
    """
    check_settings(settings)
    device = devices.device()
    scans = open_scans(volumes, settings, device)
    encoder = make_encoder(settings.encoder).to(device).train()
    if not encoder.slicewise:  # half as fast again on a CPU, faster with bfloat16 everywhere
        encoder.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    drawn_by = _drawn_by(directory)
    samples = tuple(number_of(i) for i in scans.subject_ids) if drawn_by else ()
    setup = Setup(settings, encoder, device, scans.shape, scans.spacing_mm, len(volumes), samples)
    variant = VARIANTS[settings.negatives.kind](setup)
    dense = settings.negatives.kind in DENSE

    def loss_of_step(step: int) -> tuple[Tensor, dict[str, Any]]:
        chosen = batch_indices(settings.seed, step, len(volumes), settings.batch)
        found = [scans.read(index) for index in chosen]
        brains = [brain for _, brain in found] if dense else []
        return variant.loss_of(Batch(step, chosen, [scan for scan, _ in found], brains))

    minimise(
        variant.modules,
        loss_of_step,
        optimisation(settings),
        directory,
        config={"settings": asdict(settings), "shape": list(scans.shape), **scans.identity, **drawn_by},
        defaults={"settings": asdict(SimclrSettings())},
        device=device,
        examples_per_step=settings.batch,
        monitor=monitor,
    )
    with committed_directory(directory / "encoder", within=directory, about=about) as scratch:
        save_encoder(encoder, settings.encoder, scratch)
    return directory / "encoder"


def bytes_to_train(volumes: Sequence[Volume], settings: SimclrSettings, directory: Path) -> int:
    """What training in `directory` still has to write at its peak: checkpoints with moments and banks, the encoder."""
    encoder, grid = make_encoder(settings.encoder), volumes[0].grid
    setup = Setup(settings, encoder, torch.device("cpu"), grid.shape, grid.spacing_mm, len(volumes))
    with torch.random.fork_rng(devices=[]):
        modules = VARIANTS[settings.negatives.kind](setup).modules
    unreached: tuple[str, ...] = ()
    if settings.negatives.kind in DENSE:  # no loss reaches the stages behind the layer
        names = [tap.name for tap in encoder.taps]
        unreached = tuple(f"encoder.stages.{n}." for n in names[names.index(tap_of(encoder, settings).name) + 1 :])
    return planned_bytes(modules, encoder, optimisation(settings), directory, unreached)


def _drawn_by(directory: Path) -> dict[str, str]:
    """How draws are keyed: by subject id. Nothing for a run that was begun by place and goes on that way."""
    begun = directory / "training.json"
    older = begun.is_file() and "draws" not in read_json(begun)
    return {} if older else {"draws": "by subject id"}


def check_settings(settings: SimclrSettings, subjects: int | None = None) -> None:
    """BadInput for what can be refused before a scan is read: ranges, the layer, the batch against `subjects`."""
    check_negatives(settings.negatives, settings.batch)
    refuse_out_of_range(settings)
    check_optimisation(optimisation(settings))
    try:
        encoder = make_encoder(settings.encoder)
    except ValueError as error:  # models knows no error of ours
        raise BadInput(str(error)) from error
    if settings.negatives.kind in DENSE:
        tap_of(encoder, settings)
    if subjects is not None and settings.batch > subjects:
        raise BadInput(
            f"A batch of {settings.batch} distinct subjects cannot be drawn from {subjects}. "
            f"Allowed: 2 to {subjects}. Lower the batch or add healthy subjects."
        )


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
