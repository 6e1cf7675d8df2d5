"""What every contrastive variant is given, and what it gives back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from core.pretraining.simclr_settings import SimclrSettings
from core.pretraining.views import ViewDraw, apply_view, draw_view
from models.encoder import Encoder


@dataclass(frozen=True, eq=False)
class Setup:
    """What is fixed for a whole run."""

    settings: SimclrSettings
    encoder: Encoder
    device: torch.device
    shape: tuple[int, int, int]
    """Of every volume, in voxels."""
    spacing_mm: tuple[float, float, float]
    cohort: int
    """Subjects in the training set."""
    samples: tuple[int, ...] = ()
    """What the draws of each subject are keyed by; empty: its place in the training set."""

    def sample(self, subject: int) -> int:
        """The number that keys the draws of a subject, given its place in the training set."""
        return self.samples[subject] if self.samples else subject


@dataclass(frozen=True, eq=False)
class Batch:
    """The subjects of one step."""

    step: int
    subjects: Sequence[int]
    scans: Sequence[Float[Tensor, "contrasts x y z"]]
    brains: Sequence[Bool[Tensor, "x y z"]]
    """Brain masks; empty for variants that compare whole brains."""


class Variant(Protocol):
    """One way of being contrastive: `modules` are trained (where they require a gradient) and checkpointed.

    `loss_of` gives the loss of a step in float32, and what to log: `chance`, the loss of an embedding that tells
    nothing apart; `candidates`, among how many the partner must be found; `hardness`; `queue_fill` and `queue_age`
    of a bank. It depends on the batch and the modules alone.
    """

    modules: Mapping[str, nn.Module]

    def loss_of(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """The loss of one step and what to log; a bank is written to after it was read."""
        ...


def view_draws(setup: Setup, batch: Batch, offset: int = 0) -> list[list[ViewDraw]]:
    """The draws of the first and of the second view of every subject; another `offset` gives other draws."""
    views, seed = setup.settings.views, setup.settings.seed
    return [
        [draw_view(views, setup.shape, seed, batch.step, offset + setup.sample(i), view) for i in batch.subjects]
        for view in (0, 1)
    ]


def view_pair(scans: Sequence[Tensor], draws: Sequence[Sequence[ViewDraw]]) -> Float[Tensor, "views c x y z"]:
    """All first views, then all second ones."""
    return torch.stack([apply_view(scan, draw) for side in draws for scan, draw in zip(scans, side, strict=True)])


def sample_view(batch: Batch, draws: Sequence[Sequence[ViewDraw]]) -> dict[str, Any]:
    """For the log of a few steps: one drawn view, so that it can be made again and shown."""
    if batch.step == 1 or batch.step % 50 == 0:
        return {"sample_view": {"subject": batch.subjects[0], **draws[1][0].as_json()}}
    return {}
