"""The contrastive loss, its chance level, and the numbers that show whether an embedding collapsed."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from data.errors import BadInput

HISTOGRAM_BINS, HISTOGRAM_EVERY = 40, 10


def nt_xent(
    z1: Float[Tensor, "batch dim"], z2: Float[Tensor, "batch dim"], temperature: float = 0.1
) -> Float[Tensor, ""]:
    """Normalised, temperature-scaled cross-entropy over the 2N views of N samples.

    Each view must find its partner among the 2N − 1 others:
    ℓ_i = −log( exp(s_ij/T) / Σ_{k≠i} exp(s_ik/T) ), s the cosine. Computed in float32 whatever the autocast.
    Chen et al. 2020, arXiv:2002.05709, eq. 1.
    """
    if z1.shape != z2.shape or z1.ndim != 2 or len(z1) < 2:
        raise BadInput(f"Two views of shapes {tuple(z1.shape)} and {tuple(z2.shape)}. Allowed: (N, dim) twice, N ≥ 2.")
    if temperature <= 0:
        raise BadInput(f"Temperature {temperature} is not positive. 0.1 is usual.")
    with torch.autocast(z1.device.type, enabled=False):
        logits = _similarities(z1, z2) / temperature
        return functional.cross_entropy(logits, _partners(len(z1), z1.device))


def info_nce(
    positive: Float[Tensor, " anchors"],
    negative: Float[Tensor, "anchors negatives"],
    temperature: float,
    positive_prior: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean of −log( exp(p/T) / (exp(p/T) + Σ_k exp(n_k/T)) ) over anchors; −∞ marks what is no negative of an anchor.

    With `positive_prior` τ > 0 the sum over the N negatives is replaced by N·g, the debiased estimate
    g = max( (mean_k exp(n_k/T) − τ·exp(p/T)) / (1 − τ), exp(−1/T) ): some negatives are positives in truth.
    van den Oord et al. 2018, arXiv:1807.03748, eq. 4; Chuang et al. 2020, arXiv:2007.00224, eq. 8 with M = 1.
    """
    with torch.autocast(positive.device.type, enabled=False):
        p, n = positive.float()[:, None] / temperature, negative.float() / temperature
        if positive_prior == 0:
            return (torch.cat([p, n], dim=1).logsumexp(1) - p[:, 0]).mean()
        # Everything relative to exp(1/T), the largest possible term, so that no temperature overflows.
        found = (n > -math.inf).sum(1)
        top = 1 / temperature
        mean = (n - top).exp().sum(1) / found.clamp_min(1)
        own = (p[:, 0] - top).exp()
        g = ((mean - positive_prior * own) / (1 - positive_prior)).clamp_min(math.exp(-2 * top))
        return ((own + found * g).log() - (p[:, 0] - top)).mean()


def cosines(a: Float[Tensor, "anchors dim"], b: Float[Tensor, "others dim"]) -> Float[Tensor, "anchors others"]:
    """All cosines, in float32 whatever the autocast."""
    with torch.autocast(a.device.type, enabled=False):
        return functional.normalize(a.float(), dim=1) @ functional.normalize(b.float(), dim=1).T


def in_batch(
    z1: Float[Tensor, "batch dim"], z2: Float[Tensor, "batch dim"]
) -> tuple[Float[Tensor, " views"], Float[Tensor, "views views"]]:
    """Cosine of each of the 2N views with its partner, and with all others; −∞ with itself and the partner."""
    n = len(z1)
    z = torch.cat([z1, z2])
    similar = cosines(z, z)
    views = torch.arange(2 * n, device=z.device)
    same = views[:, None] % n == views[None, :] % n
    return similar[views, _partners(n, z.device)], similar.masked_fill(same, -math.inf)


def chance_loss(batch: int) -> float:
    """ln(2N − 1): the loss of an embedding that tells nothing apart."""
    return math.log(2 * batch - 1)


@torch.no_grad()
def difficulty(positive: Float[Tensor, " anchors"], negative: Float[Tensor, "anchors negatives"]) -> dict[str, Any]:
    """How hard it is to find the partner; −∞ marks what is no negative of an anchor.

    chance: the loss at chance, mean ln(1 + negatives) over anchors. candidates: among how many the partner must be
    found, itself counted, mean over anchors. top1: how often it is more similar than every negative; a tie is not
    found. hardness: mean of the highest negative cosine. positive_similarity, negative_similarity: mean cosines.
    """
    real = negative > -math.inf
    found = real.sum(1).double()
    highest = torch.cat([negative, torch.full_like(positive[:, None], -1.0)], dim=1).max(1).values
    total = float(found.sum())
    return {
        "chance": float((1 + found).log().mean()),
        "candidates": round(float((1 + found).mean())),
        "top1": float((positive > highest).double().mean()),
        "hardness": float(highest.double().mean()),
        "positive_similarity": float(positive.double().mean()),
        "negative_similarity": float(negative.masked_fill(~real, 0).double().sum() / max(total, 1.0)),
    }


@torch.no_grad()
def histograms(
    step: int, positive: Float[Tensor, " anchors"], negative: Float[Tensor, "anchors negatives"]
) -> dict[str, list[int]]:
    """At step 1 and every tenth: counts of positive and negative cosines in 40 equal bins over −1 to 1."""
    if step != 1 and step % HISTOGRAM_EVERY:
        return {}
    return {
        "positive_histogram": _counts(positive),
        "negative_histogram": _counts(negative[negative > -math.inf]),
    }


@torch.no_grad()
def diagnostics(z1: Float[Tensor, "batch dim"], z2: Float[Tensor, "batch dim"]) -> dict[str, float]:
    """How a batch of embeddings is spread, all on the unit sphere.

    top1: how often the nearest other view is the partner. alignment: mean squared distance of partners (0 best).
    uniformity: log mean exp(−2·distance²) over pairs of different samples (−4 best, 0 collapsed; Wang & Isola 2020,
    arXiv:2005.10242). embedding_std: mean standard deviation per axis times √dim (1 spread, 0 collapsed).
    effective_rank: exp of the entropy of the covariance's eigenvalues (Roy & Vetterli 2007), at most 2N − 1.
    positive_similarity, negative_similarity: mean cosines.

    With keys of a slow encoder (moco, hard) these are views of the trained encoder alone; the journal replaces top1,
    alignment and the cosines by those of its views against the keys.
    """
    n, dim = z1.shape
    cosines = _similarities(z1, z2)
    partners = _partners(n, z1.device)
    positive = cosines[torch.arange(2 * n, device=z1.device), partners]
    samples = torch.arange(2 * n, device=z1.device) % n
    negative = cosines[samples[:, None] != samples[None, :]].double()
    z = functional.normalize(torch.cat([z1, z2]).double(), dim=1)
    spread = torch.linalg.svdvals(z - z.mean(0)).square()
    total = float(spread.sum())
    shares = spread[spread > 0] / total if total > 1e-12 else torch.ones(1, dtype=torch.float64)
    return {
        "top1": float((cosines.argmax(1) == partners).double().mean()),
        "alignment": float((2 - 2 * positive.double()).mean()),
        "uniformity": float((-2 * (2 - 2 * negative)).exp().mean().log()),
        "embedding_std": float(z.std(0, correction=0).mean() * math.sqrt(dim)),
        "effective_rank": float((-(shares * shares.log()).sum()).exp()),
        "positive_similarity": float(positive.double().mean()),
        "negative_similarity": float(negative.mean()),
    }


def _counts(cosines: Tensor) -> list[int]:
    counts = torch.histc(cosines.float().clamp(-1, 1).cpu(), bins=HISTOGRAM_BINS, min=-1, max=1)
    return [int(count) for count in counts]


def _similarities(z1: Tensor, z2: Tensor) -> Float[Tensor, "views views"]:
    """Cosines of all pairs of views; −∞ with itself. In float32 whatever the autocast."""
    with torch.autocast(z1.device.type, enabled=False):
        z = functional.normalize(torch.cat([z1, z2]).float(), dim=1)
        return (z @ z.T).masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -math.inf)


def _partners(n: int, device: torch.device) -> Tensor:
    return (torch.arange(2 * n, device=device) + n) % (2 * n)
