"""Few fine features given many coarse ones: the coarse layers are factored once per coarse position. Exact.

With the features split into c (coarse) and f (fine), X the (N−1) × d projected training features and Σ = s·XᵀX + e·I,
m² = m²_c + rᵀS⁻¹r, where S = Σ_ff − Σ_fc Σ_cc⁻¹ Σ_cf and r = δ_f − Σ_fc Σ_cc⁻¹ δ_c. With the Cholesky factor L of
s·X_cX_cᵀ + e·I, W = L⁻¹X_f and z = L⁻¹X_cδ_c these are S = e·(I + s·WᵀW) and r = δ_f − s·Wᵀz, and the matrices of
fewer fine features are blocks of S. (Schur complement and Woodbury identity.)
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from core.gaussian.dual import cholesky


@dataclass(frozen=True, eq=False)
class CoarseFactor:
    """What the fine features need to know of the coarse ones, at the coarse positions."""

    lower: Float64[Tensor, "coarse m m"]
    whitened: Float64[Tensor, "coarse m volumes"]
    squared: Float64[Tensor, "coarse volumes"]


@dataclass(frozen=True, eq=False)
class FineGivenCoarse:
    """S/e of all fine features, their residuals r, and m² of the coarse features, at the fine positions."""

    schur: Float64[Tensor, "fine k k"]
    residual: Float64[Tensor, "fine k volumes"]
    squared: Float64[Tensor, "fine volumes"]
    ridge: float


def factor_coarse(
    samples: Float64[Tensor, "coarse m c"], deltas: Float64[Tensor, "coarse volumes c"], scale: float, ridge: float
) -> CoarseFactor:
    """L, z and m² of the coarse features."""
    kernel = scale * samples @ samples.transpose(1, 2)
    kernel.diagonal(dim1=-2, dim2=-1).add_(ridge)
    lower = cholesky(kernel)
    whitened = torch.linalg.solve_triangular(lower, samples @ deltas.transpose(1, 2), upper=False)
    return CoarseFactor(lower, whitened, (deltas.square().sum(-1) - scale * whitened.square().sum(-2)) / ridge)


def condition(
    coarse: CoarseFactor | None,
    back: Int64[Tensor, " fine"],
    samples: Float64[Tensor, "fine m k"],
    deltas: Float64[Tensor, "fine volumes k"],
    scale: float,
    ridge: float,
) -> FineGivenCoarse:
    """The fine features given the coarse ones of position `back`; None: nothing is given, so Σ itself."""
    residual = deltas.transpose(1, 2)
    if coarse is None:
        whitened = samples / ridge**0.5
        squared = torch.zeros_like(residual[:, 0])
    else:
        whitened = torch.linalg.solve_triangular(coarse.lower[back], samples, upper=False)
        residual = residual - scale * (whitened.transpose(1, 2) @ coarse.whitened[back])
        squared = coarse.squared[back]
    schur = scale * whitened.transpose(1, 2) @ whitened
    schur.diagonal(dim1=-2, dim2=-1).add_(1.0)
    return FineGivenCoarse(schur, residual, squared, ridge)


def squared_distance(given: FineGivenCoarse, columns: Int64[Tensor, " chosen"]) -> Float64[Tensor, "fine volumes"]:
    """m² of the coarse features together with some of the fine ones."""
    first, last = int(columns[0]), int(columns[-1]) + 1
    schur, residual = given.schur[:, first:last, first:last], given.residual[:, first:last]
    if last - first > len(columns):
        schur = schur.index_select(1, columns - first).index_select(2, columns - first)
        residual = residual.index_select(1, columns - first)
    solved = torch.linalg.solve_triangular(cholesky(schur), residual, upper=False)
    squared: Tensor = given.squared + solved.square_().sum(-2) / given.ridge
    return squared
