"""Constrained contrastive distribution learning: strongly shifted copies of a scan are other scans."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from core.pretraining.contrastive import chance_loss, diagnostics, difficulty, histograms, in_batch, nt_xent
from core.pretraining.simclr.variant import Batch, Setup, sample_view, view_draws, view_pair
from core.randomness import stream
from data.errors import BadInput
from models.projection import class_head, projection_head

Blocks = tuple[int, ...]
"""Which of the eight octants goes to octant 0, 1, ..., 7."""
OCTANTS = 8
MOST_SHIFTS = 1000


class Ccd:
    """Each subject in `shifts` versions, itself and copies with permuted octants; each version in two views.

    Loss: NT-Xent over all 2·N·shifts views, in which a shifted copy is a negative of its original, plus class_weight
    times the cross-entropy of a linear head that tells the shift from the embedding. The permutations are drawn from
    the seed and stay the same over the whole run. At chance: ln(2·N·shifts − 1) + class_weight·ln(shifts).
    Tian et al. 2021, arXiv:2103.03423, as the pretraining of Lagogiannis et al. 2024 (UPD).
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        given, seed = setup.settings.negatives, setup.settings.seed
        self.permutations = shift_permutations(given.shifts, seed)
        width = setup.encoder.embedding_dim
        self.head = projection_head(width, seed=seed).to(setup.device).train()
        self.class_head = class_head(width, given.shifts, seed=seed).to(setup.device).train()
        self.modules: Mapping[str, nn.Module] = {
            "encoder": setup.encoder,
            "head": self.head,
            "class_head": self.class_head,
        }

    def loss_of(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """Contrastive and class loss of all versions of the subjects of a step."""
        settings = self.setup.settings
        weight, shifts, subjects = settings.negatives.class_weight, len(self.permutations), len(batch.subjects)
        scans, draws = [], [[], []]  # type: ignore[var-annotated]
        for number, blocks in enumerate(self.permutations):
            scans += [permuted(scan, blocks) for scan in batch.scans]
            for view, side in enumerate(view_draws(self.setup, batch, offset=number * self.setup.cohort)):
                draws[view] += side
        embedded = self.setup.encoder(view_pair(scans, draws))
        z1, z2 = self.head(embedded).float().chunk(2)
        classes = torch.arange(shifts, device=embedded.device).repeat_interleave(subjects).repeat(2)
        guesses = self.class_head(embedded).float()
        contrastive, classified = nt_xent(z1, z2, settings.temperature), functional.cross_entropy(guesses, classes)
        positive, negative = in_batch(z1.detach(), z2.detach())
        logs = {
            **difficulty(positive, negative),
            **diagnostics(z1, z2),
            "chance": chance_loss(subjects * shifts) + weight * math.log(shifts),
            "contrastive_loss": float(contrastive.detach()),
            "class_loss": float(classified.detach()),
            "class_accuracy": float((guesses.argmax(1) == classes).double().mean()),
            **histograms(batch.step, positive, negative),
            **sample_view(batch, draws),
        }
        return contrastive + weight * classified, logs


def shift_permutations(shifts: int, seed: int) -> list[Blocks]:
    """One permutation of the octants per class, all different; class 0 leaves every octant where it is."""
    if not 2 <= shifts <= MOST_SHIFTS:
        raise BadInput(f"{shifts} classes of shifted copies. Allowed: 2 to {MOST_SHIFTS}; UPD has 4.")
    generator = stream(seed, "shift")
    found: list[Blocks] = [tuple(range(OCTANTS))]
    while len(found) < shifts:
        drawn = tuple(int(octant) for octant in generator.permutation(OCTANTS))
        if drawn not in found:
            found.append(drawn)
    return found


def permuted(scan: Float[Tensor, "contrasts x y z"], blocks: Blocks) -> Float[Tensor, "contrasts x y z"]:
    """The scan cut at the middle of each axis and its octants put elsewhere; the last plane of an odd axis stays."""
    if blocks == tuple(range(OCTANTS)):
        return scan
    half = [n // 2 for n in scan.shape[1:]]
    result = scan.clone()
    for target, origin in enumerate(blocks):
        result[_octant(target, half)] = scan[_octant(origin, half)]
    return result


def _octant(number: int, half: list[int]) -> tuple[slice, ...]:
    bits = (number >> 2 & 1, number >> 1 & 1, number & 1)
    return (slice(None), *(slice(bit * n, (bit + 1) * n) for bit, n in zip(bits, half, strict=True)))
