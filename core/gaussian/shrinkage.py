"""How far a covariance is pulled towards a multiple of the identity, from three traces and no covariance matrix.

Every rule ends as two numbers per position, Σ = scale · XᵀX + floor · I, with X the centred training features.
"""

import torch
from jaxtyping import Float64
from torch import Tensor

from core.memory_plan import Shrinkage

_FLOOR_OF_RIDGE = 1e-6
"""Ledoit-Wolf and OAS leave a constant feature without any variance; this share of `ridge` keeps it solvable."""


def ledoit_wolf_intensity(
    trace: Float64[Tensor, " *n"],
    squared_norm: Float64[Tensor, " *n"],
    quartic: Float64[Tensor, " *n"],
    n: int,
    d: int,
) -> Float64[Tensor, " *n"]:
    """Share of the identity, 0 to 1, that minimises the expected squared error.

    `trace` is tr(XᵀX), `squared_norm` ‖XᵀX‖²_F and `quartic` Σᵢ|xᵢ|⁴ of n centred samples with d features.
    The covariance has divisor n, as in scikit-learn's LedoitWolf; one feature is not shrunk.
    Ledoit & Wolf 2004, A well-conditioned estimator for large-dimensional covariance matrices.
    """
    if d == 1:
        return torch.zeros_like(trace)
    mean_variance = trace / n / d
    dispersion = (squared_norm / n**2 - d * mean_variance**2) / d
    noise = (quartic / n - squared_norm / n**2) / (d * n)
    noise = torch.minimum(noise, dispersion).clamp_min(0)
    return torch.where(noise > 0, noise / torch.where(noise > 0, dispersion, 1.0), 0.0)


def oas_intensity(
    trace: Float64[Tensor, " *n"], squared_norm: Float64[Tensor, " *n"], n: int, d: int
) -> Float64[Tensor, " *n"]:
    """Oracle approximating share of the identity, 0 to 1, for Gaussian features; notation and divisor as above.

    Chen, Wiesel, Eldar & Hero 2010, Shrinkage algorithms for MMSE covariance estimation, in the form of
    scikit-learn's OAS; one feature is not shrunk.
    """
    if d == 1:
        return torch.zeros_like(trace)
    mean_variance = trace / n / d
    alpha = squared_norm / n**2 / d**2
    denominator = (n + 1) * (alpha - mean_variance**2 / d)
    usable = denominator > 0
    ratio = (alpha + mean_variance**2) / torch.where(usable, denominator, 1.0)
    return torch.where(usable, ratio.clamp(max=1.0), 1.0)


def scale_and_floor(
    shrinkage: Shrinkage,
    ridge: float,
    n: int,
    d: int,
    trace: Float64[Tensor, " *n"],
    squared_norm: Float64[Tensor, " *n"],
    quartic: Float64[Tensor, " *n"] | None,
) -> tuple[Float64[Tensor, " *n"], Float64[Tensor, " *n"]]:
    """(scale, floor) of Σ = scale · XᵀX + floor · I.

    `ridge`: divisor n − 1 and a fixed floor. `ledoit_wolf`, `oas`: divisor n as in scikit-learn, floor the shrunk
    share of the mean variance, but at least 1e-6 of `ridge` so that a constant feature stays solvable.
    """
    if shrinkage == "ridge":
        return torch.full_like(trace, 1 / (n - 1)), torch.full_like(trace, ridge)
    if shrinkage == "oas":
        intensity = oas_intensity(trace, squared_norm, n, d)
    else:
        assert quartic is not None
        intensity = ledoit_wolf_intensity(trace, squared_norm, quartic, n, d)
    return (1 - intensity) / n, (intensity * trace / n / d).clamp_min(_FLOOR_OF_RIDGE * ridge)
