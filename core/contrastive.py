"""The contrastive loss, its chance level, and the numbers that show whether an embedding collapsed."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from data.errors import BadInput


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


def chance_loss(batch: int) -> float:
    """ln(2N − 1): the loss of an embedding that tells nothing apart."""
    return math.log(2 * batch - 1)


@torch.no_grad()
def diagnostics(z1: Float[Tensor, "batch dim"], z2: Float[Tensor, "batch dim"]) -> dict[str, float]:
    """How a batch of embeddings is spread, all on the unit sphere.

    top1: how often the nearest other view is the partner. alignment: mean squared distance of partners (0 best).
    uniformity: log mean exp(−2·distance²) over pairs of different samples (−4 best, 0 collapsed; Wang & Isola 2020,
    arXiv:2005.10242). embedding_std: mean standard deviation per axis times √dim (1 spread, 0 collapsed).
    effective_rank: exp of the entropy of the covariance's eigenvalues (Roy & Vetterli 2007), at most 2N − 1.
    positive_similarity, negative_similarity: mean cosines.
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


def _similarities(z1: Tensor, z2: Tensor) -> Float[Tensor, "views views"]:
    """Cosines of all pairs of views; −∞ with itself."""
    z = functional.normalize(torch.cat([z1, z2]).float(), dim=1)
    return (z @ z.T).masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -math.inf)


def _partners(n: int, device: torch.device) -> Tensor:
    return (torch.arange(2 * n, device=device) + n) % (2 * n)
