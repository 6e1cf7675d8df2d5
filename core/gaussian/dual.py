"""The Gaussian from its training features: an N × N problem whatever the number of features. Exact.

With X the (N−1) × d projected training features and Σ = s·XᵀX + e·I,
m² = (|δ|² − s·bᵀ(s·G + e·I)⁻¹b) / e,  G = XXᵀ,  b = Xδ,  and G, b and |δ|² are sums over layers.
"""

import functools

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from core.gaussian.shrinkage import scale_and_floor
from data.errors import BadInput

_WELL_OVERDETERMINED = 1.25
"""Features per sample below which a new point lies nearly in the span: then float64, for m² is a difference."""


@functools.cache
def helmert(n: int) -> Float64[Tensor, "n_minus_1 n"]:
    """Orthonormal rows orthogonal to the constant vector.

    Projecting n samples with it gives the scatter of centring, with one row less and without the exact null vector
    on which a float32 Cholesky of the centred Gram matrix fails at small ridges.
    """
    rows = torch.arange(1, n, dtype=torch.float64)[:, None]
    columns = torch.arange(n, dtype=torch.float64)[None, :]
    raw = (columns < rows).to(torch.float64) - rows * (columns == rows)
    return raw / torch.sqrt(rows * (rows + 1))


def project(
    samples: Float[Tensor, "positions n channels"],
) -> tuple[Float[Tensor, "positions n_minus_1 channels"], Float64[Tensor, "positions channels"]]:
    """(Helmert-projected float32 samples, float64 mean) of every position."""
    mean = samples.mean(1, dtype=torch.float64)
    centred = (samples - mean[:, None]).to(torch.float32)
    return helmert(samples.shape[1]).to(centred) @ centred, mean


def use_samples(n: int, d: int) -> bool:
    """Whether the N × N form is the smaller and accurate one; else the d × d form of the same samples."""
    return d >= n


def needs_float64(n: int, d: int) -> bool:
    """Whether the N × N form of a subset is solved in float64."""
    return d < _WELL_OVERDETERMINED * (n - 1)


def squared_distance_from_gram(
    gram: Float[Tensor, "positions m m"],
    projections: Float[Tensor, "positions m volumes"],
    norms: Float[Tensor, "positions volumes"],
    scale: Float64[Tensor, " positions"],
    floor: Float64[Tensor, " positions"],
) -> Float[Tensor, "positions volumes"]:
    """m² of every volume from G, b and |δ|²; `gram` is overwritten. May be slightly negative for training items."""
    dtype = gram.dtype
    kernel = gram.mul_(scale.to(dtype)[:, None, None])
    kernel.diagonal(dim1=-2, dim2=-1).add_(floor.to(dtype)[:, None])
    solved = torch.linalg.solve_triangular(cholesky(kernel), projections, upper=False)
    explained = solved.square_().sum(-2)
    squared: Tensor = (norms - scale.to(dtype)[:, None] * explained) / floor.to(dtype)[:, None]
    return squared


def squared_distance_from_covariance(
    covariance: Float64[Tensor, "positions d d"], deltas: Float64[Tensor, "positions volumes d"]
) -> Float64[Tensor, "positions volumes"]:
    """δᵀΣ⁻¹δ through the Cholesky factor."""
    solved = torch.linalg.solve_triangular(cholesky(covariance), deltas.transpose(1, 2), upper=False)
    squared: Tensor = solved.square_().sum(-2)
    return squared


def cholesky(matrices: Float[Tensor, "positions m m"]) -> Float[Tensor, "positions m m"]:
    """Lower factors; BadInput when a matrix is not positive definite, never a silent NaN."""
    factors, info = torch.linalg.cholesky_ex(matrices)
    failed = int((info != 0).sum())
    if failed or not bool(torch.isfinite(factors.diagonal(dim1=-2, dim2=-1)).all()):
        raise BadInput(
            f"The covariance is not positive definite at {max(failed, 1)} of {len(matrices)} positions: the ridge is "
            "too small for these features. Raise `ridge` (PaDiM uses 0.01), or scale the features to unit variance."
        )
    lower: Tensor = factors
    return lower


def gram_shrinkage(
    shrinkage: str, ridge: float, gram: Float[Tensor, "positions m m"], d: int
) -> tuple[Float64[Tensor, " positions"], Float64[Tensor, " positions"]]:
    """(scale, floor) of Σ from the projected Gram matrix of a subset of layers with d features."""
    m = gram.shape[-1]
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=torch.float64)
    if shrinkage == "ridge":
        return scale_and_floor("ridge", ridge, m + 1, d, trace, trace, None)
    squared = gram.to(torch.float64).square().sum((-2, -1))
    if shrinkage == "oas":
        return scale_and_floor("oas", ridge, m + 1, d, trace, squared, None)
    quartic = centred_norms(gram).square().sum(-1)
    return scale_and_floor("ledoit_wolf", ridge, m + 1, d, trace, squared, quartic)


def centred_norms(gram: Float[Tensor, "positions m m"]) -> Float64[Tensor, "positions n"]:
    """|cᵢ|² of every centred training item."""
    H = helmert(gram.shape[-1] + 1).to(gram.device)
    return ((gram.to(torch.float64) @ H) * H).sum(-2)


def squared_leave_one_out(
    gram: Float[Tensor, "positions m m"], shrinkage: str, ridge: float, d: int
) -> Float[Tensor, "positions n"]:
    """m² of every training item to the Gaussian of the others, as a refit would give it.

    Σ₋ᵢ = s·(XᵀX − κ·cᵢcᵢᵀ) + e·I with κ = N/(N−1), and Sherman-Morrison leaves
    m²ᵢ = (1/(e·tᵢ) − κ)/s with tᵢ = hᵢᵀ(s·G + e·I)⁻¹hᵢ and hᵢ the i-th Helmert column.
    """
    n = gram.shape[-1] + 1
    kappa = n / (n - 1)
    H = helmert(n).to(gram)
    if shrinkage == "ridge":
        scale = 1 / (n - 2)
        kernel = gram * scale
        kernel.diagonal(dim1=-2, dim2=-1).add_(ridge)
        solved = torch.linalg.solve_triangular(cholesky(kernel), H.expand(len(gram), -1, -1), upper=False)
        squared: Tensor = (1 / (ridge * solved.square_().sum(-2)) - kappa) / scale
        return squared
    return _leave_one_out_shrunk(gram.to(torch.float64), shrinkage, ridge, d)


def _leave_one_out_shrunk(gram: Tensor, shrinkage: str, ridge: float, d: int) -> Tensor:
    # The intensity changes with the item left out, so one eigendecomposition serves all N kernels.
    n = gram.shape[-1] + 1
    kappa = n / (n - 1)
    H = helmert(n).to(gram)
    centred = H.T @ gram @ H
    norms = centred.diagonal(dim1=-2, dim2=-1)
    trace = norms.sum(-1, keepdim=True) - kappa * norms
    squared = gram.square().sum((-2, -1))[:, None] - 2 * kappa * centred.square().sum(-1) + (kappa * norms).square()
    others = norms[:, :, None] + 2 * centred / (n - 1) + norms[:, None, :] / (n - 1) ** 2
    quartic = others.square().sum(-2) - others.diagonal(dim1=-2, dim2=-1).square()
    scale, floor = scale_and_floor(
        "oas" if shrinkage == "oas" else "ledoit_wolf", ridge, n - 1, d, trace, squared, quartic
    )
    values, vectors = torch.linalg.eigh(gram)
    loads = (vectors.transpose(-2, -1) @ H).square()
    kernel = scale[:, None, :] * values.clamp_min(0)[:, :, None] + floor[:, None, :]
    t = (loads / kernel).sum(-2)
    vanishing = scale * values[:, -1:] < 1e-12 * floor
    isotropic = kappa**2 * norms / floor
    return torch.where(vanishing, isotropic, (1 / (floor * t) - kappa) / torch.where(vanishing, 1.0, scale))
