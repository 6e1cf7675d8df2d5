"""Whole brains against whole brains: in the batch, from a bank of earlier ones, or from a momentum encoder's keys."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from core.pretraining.contrastive import (
    chance_loss,
    cosines,
    diagnostics,
    difficulty,
    histograms,
    in_batch,
    info_nce,
    nt_xent,
)
from core.pretraining.simclr.key_queue import Bank, follow
from core.pretraining.simclr.variant import Batch, Setup, sample_view, view_draws, view_pair
from models.projection import PROJECTED, projection_head


class InBatch:
    """Plain NT-Xent: the partner must be found among the 2N − 1 other views of the step.

    Chen et al. 2020, arXiv:2002.05709.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.head = _head(setup)
        self.modules: Mapping[str, nn.Module] = {"encoder": setup.encoder, "head": self.head}

    def loss_of(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """NT-Xent; its chance level is ln(2N − 1)."""
        draws = view_draws(self.setup, batch)
        projected = self.head(self.setup.encoder(view_pair(batch.scans, draws))).float()
        z1, z2 = projected.chunk(2)
        positive, negative = in_batch(z1.detach(), z2.detach())
        logs = {
            **difficulty(positive, negative),
            **diagnostics(z1, z2),
            "chance": chance_loss(len(z1)),
            **histograms(batch.step, positive, negative),
            **sample_view(batch, draws),
        }
        return nt_xent(z1, z2, self.setup.settings.temperature), logs


class Queue:
    """NT-Xent with a first-in-first-out queue of earlier embeddings as further negatives.

    Each view must find its partner among the 2N − 1 other views and the queued embeddings of *other* subjects.
    Embeddings of both views are queued after the loss, so a step never meets its own. They come from the trained
    network as it was when they were made and grow stale; Wang et al. 2020, arXiv:1912.06798, call it cross-batch
    memory. Without a slow key encoder such a queue often does not help (google-research/simclr, issues 115, 167).
    At chance the loss is ln(2N − 1 + queued embeddings of other subjects).
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.head = _head(setup)
        self.bank = _bank(setup)
        self.modules: Mapping[str, nn.Module] = {"encoder": setup.encoder, "head": self.head, "bank": self.bank}

    def loss_of(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """The loss against batch and queue; then the embeddings of this step enter the queue."""
        subjects = _subjects(batch, self.setup)
        draws = view_draws(self.setup, batch)
        z = self.head(self.setup.encoder(view_pair(batch.scans, draws))).float()
        queued = cosines(z, self.bank.entries()).masked_fill(~self.bank.of_others(subjects), -math.inf)
        loss, logs = _against_batch_and_bank(z, queued, batch, self.setup)
        logs |= self.bank.state(batch.step)
        self.bank.put(z, subjects, batch.step)
        return loss, {**logs, **sample_view(batch, draws)}


class Slots:
    """The slot-momentum bank of Kovačević 2025 ("Feature Modeling for Anomaly Detection in Neuroimaging").

    As published:
    ℓ_i = −log [ exp(s_ij/T) / ( exp(s_ij/T) + Σ_{k≠i,j} exp(s_ik/T) + Σ_m exp(z_i·b_m/T) ) ]: in-batch and all bank
    negatives. After each step the embeddings of both views go to the slots at the pointer, which moves on in FIFO
    order: new slot = normalise(0.99·old slot + 0.01·incoming).

    Its flaw: this is not MoCo. No slow key encoder makes the entries; the old slot is mixed with an *unrelated* sample
    at 99 to 1, so once every slot is filled the bank is almost frozen, full of features of a network that no longer
    exists (the logged queue_age grows about as fast as the run). Nor are entries of the anchor's own subject left out.
    One thing differs: a slot that was never filled takes the embedding itself, where the original blended it with
    uninitialised memory. At chance the loss is ln(2N − 1 + filled slots).
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.head = _head(setup)
        self.bank = _bank(setup)
        self.modules: Mapping[str, nn.Module] = {"encoder": setup.encoder, "head": self.head, "bank": self.bank}

    def loss_of(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """The loss against batch and bank; then the embeddings of this step are mixed into the bank."""
        draws = view_draws(self.setup, batch)
        z = self.head(self.setup.encoder(view_pair(batch.scans, draws))).float()
        loss, logs = _against_batch_and_bank(z, cosines(z, self.bank.entries()), batch, self.setup)
        logs |= self.bank.state(batch.step)
        momentum = self.setup.settings.negatives.slot_momentum
        self.bank.blend(z, _subjects(batch, self.setup), batch.step, momentum)
        return loss, {**logs, **sample_view(batch, draws)}


class Moco:
    """Queries against keys: a momentum copy of encoder and head makes the keys, and a queue keeps them.

    θ_k ← m·θ_k + (1 − m)·θ_q before every step. Symmetric: both views pass both networks, and each of the 2N queries
    must find the key of its partner view. The keys of the step enter the queue first, so the negatives, all queued keys
    of *other* subjects, include those of the batch, and the first step has some. A query's own key is its subject's
    and never counts. GroupNorm mixes no samples, so the keys need no shuffling; an encoder with BatchNorm (the ResNets)
    would profit from it and does not get it. At chance the loss is ln(1 + queued keys of other subjects).
    He et al. 2020, arXiv:1911.05722; symmetric as in Chen et al. 2021, arXiv:2104.02057.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.head = _head(setup)
        self.bank = _bank(setup)
        self.key_encoder = copy.deepcopy(setup.encoder).requires_grad_(False)
        self.key_head = copy.deepcopy(self.head).requires_grad_(False)
        self.modules: Mapping[str, nn.Module] = {
            "encoder": setup.encoder,
            "head": self.head,
            "key_encoder": self.key_encoder,
            "key_head": self.key_head,
            "bank": self.bank,
        }

    def loss_of(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """Move the key networks, make and queue the keys, and the loss of the queries."""
        given = self.setup.settings.negatives
        follow(self.key_encoder, self.setup.encoder, given.key_momentum)
        follow(self.key_head, self.head, given.key_momentum)
        subjects = _subjects(batch, self.setup)
        draws = view_draws(self.setup, batch)
        views = view_pair(batch.scans, draws)
        queries = self.head(self.setup.encoder(views)).float()
        with torch.no_grad():
            keys = self.key_head(self.key_encoder(views)).float()
        self.bank.put(keys, subjects, batch.step)
        partner_keys = keys.roll(len(batch.subjects), 0)
        positive = functional.cosine_similarity(queries, partner_keys)
        negative = self.negatives(queries, subjects)
        prior = given.positive_prior if given.kind == "hard" else 0.0
        loss = info_nce(positive, negative, self.setup.settings.temperature, prior)
        logs = _logs(queries, positive, negative, batch) | self.bank.state(batch.step)
        return loss, {**logs, **sample_view(batch, draws)}

    def negatives(
        self, queries: Float[Tensor, "views dim"], subjects: Int64[Tensor, " views"]
    ) -> Float[Tensor, "views negatives"]:
        """Cosines with the queued keys that count as negatives; −∞ where one does not."""
        given = self.setup.settings.negatives
        keys, allowed = self.bank.entries(), self.bank.of_others(subjects)
        if given.kind == "hard":
            return hardest(queries, keys, allowed, given.hardest)
        return cosines(queries, keys).masked_fill(~allowed, -math.inf)


def hardest(
    queries: Float[Tensor, "views dim"], keys: Float[Tensor, "entries dim"], allowed: Tensor, count: int
) -> Float[Tensor, "views count"]:
    """Cosines of each query with the `count` nearest unit keys among those allowed, nearest first; −∞ fills up.

    The keys are found by an exact FAISS inner-product search over the detached queue; the gradient reaches the queries.
    Robinson et al. 2021, arXiv:2010.04592, weight hard negatives up; here the others are left out.
    """
    import faiss  # slow to import, and only this variant needs it

    search = faiss.IndexFlatIP(keys.shape[1])
    search.add(keys.detach().float().cpu().numpy())
    forbidden = int((~allowed).sum(1).max())
    reach = min(count + forbidden, len(keys))
    unit = functional.normalize(queries.detach().float(), dim=1)
    _, found = search.search(unit.cpu().numpy(), reach)
    nearest = torch.as_tensor(found, device=queries.device)
    usable = allowed.gather(1, nearest)
    # Allowed ones first, each group in order of similarity: a stable sort of False before True.
    order = (~usable).to(torch.int8).argsort(dim=1, stable=True)[:, :count]
    nearest, usable = nearest.gather(1, order), usable.gather(1, order)
    with torch.autocast(queries.device.type, enabled=False):
        unit = functional.normalize(queries.float(), dim=1)
        similar = torch.einsum("qd,qkd->qk", unit, keys[nearest])
    return similar.masked_fill(~usable, -math.inf)


def _against_batch_and_bank(
    z: Tensor, banked: Tensor, batch: Batch, setup: Setup
) -> tuple[Float[Tensor, ""], dict[str, Any]]:
    z1, z2 = z.chunk(2)
    positive, beside = in_batch(z1, z2)
    negative = torch.cat([beside, banked], dim=1)
    return info_nce(positive, negative, setup.settings.temperature), _logs(z, positive, negative, batch)


def _logs(z: Tensor, positive: Tensor, negative: Tensor, batch: Batch) -> dict[str, Any]:
    z1, z2 = z.detach().chunk(2)
    positive, negative = positive.detach(), negative.detach()
    return {
        **diagnostics(z1, z2),
        **difficulty(positive, negative),
        "alignment": float((2 - 2 * positive.double()).mean()),
        **histograms(batch.step, positive, negative),
    }


def _head(setup: Setup) -> nn.Sequential:
    return projection_head(setup.encoder.embedding_dim, seed=setup.settings.seed).to(setup.device).train()


def _bank(setup: Setup) -> Bank:
    return Bank(setup.settings.negatives.bank_size, PROJECTED).to(setup.device)


def _subjects(batch: Batch, setup: Setup) -> Int64[Tensor, " views"]:
    """Of both views: first all first ones."""
    return torch.tensor([*batch.subjects, *batch.subjects], device=setup.device)
