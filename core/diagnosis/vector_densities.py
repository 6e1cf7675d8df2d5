"""Two densities of feature distances, of lesion and of healthy voxels."""

import math
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from jaxtyping import Float, Float64
from scipy.linalg import solve_triangular
from scipy.special import logsumexp

from data.errors import BadInput

VectorKind = Literal["gaussian", "mixture"]
VECTOR_KINDS: tuple[VectorKind, ...] = ("gaussian", "mixture")
NO_KDE = (
    "A kernel density is not offered over several layers: its error falls only like n^(-4/(4+d)) in d dimensions, "
    "too slowly for the lesion voxels of a study."
)
_COMPONENTS = 3
_SMALLEST_SD = 1e-4


@dataclass(frozen=True, eq=False)
class VectorDensity:
    """A mixture of Gaussians over the vector log1p(distance of each layer)."""

    weights: Float64[np.ndarray, " k"]
    means: Float64[np.ndarray, "k d"]
    factors: Float64[np.ndarray, "k d d"]
    """Lower Cholesky factors of the covariances."""

    def log_density(self, x: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
        """Natural logarithm of the density at each row."""
        points = np.asarray(x, dtype=np.float64)
        terms = np.empty((len(self.weights), len(points)))
        for k, (weight, mean, factor) in enumerate(zip(self.weights, self.means, self.factors, strict=True)):
            white = solve_triangular(factor, (points - mean).T, lower=True, check_finite=False)
            terms[k] = math.log(weight) - 0.5 * (white**2).sum(axis=0) - np.log(np.diag(factor)).sum()
        total: np.ndarray = logsumexp(terms, axis=0) if len(terms) > 1 else terms[0]
        total -= 0.5 * points.shape[1] * math.log(2 * math.pi)
        return total


@dataclass(frozen=True, eq=False)
class TwoVectorDensities:
    """Densities of normal and anomalous voxels over the layers' distances, and the prior share of anomalous ones."""

    kind: VectorKind
    prior: float
    normal: VectorDensity
    anomalous: VectorDensity

    @classmethod
    def fit(
        cls,
        normal: Float[np.ndarray, "n layers"],
        anomalous: Float[np.ndarray, "a layers"],
        kind: VectorKind,
        prior: float,
        *,
        seed: int = 0,
    ) -> Self:
        """Fit both on distances (0 or more), one row per voxel. BadInput below 2 (d + 1) voxels of a class.

        "gaussian" is mean and covariance, "mixture" up to three Gaussians with full covariances, by EM.
        """
        if kind not in VECTOR_KINDS:
            raise BadInput(f"Density kind {kind!r} is not for vectors. Allowed: {', '.join(VECTOR_KINDS)}. {NO_KDE}")
        if not 0 < prior < 1:
            raise BadInput(f"Prior is {prior}. Allowed: between 0 and 1, the expected share of anomalous voxels.")
        needed = 2 * (np.shape(normal)[1] + 1)
        for name, rows in (("normal", normal), ("anomalous", anomalous)):
            if len(rows) < needed:
                raise BadInput(
                    f"{len(rows)} {name} validation voxels: a density over {np.shape(normal)[1]} layers needs "
                    f"{needed} or more. Add labelled validation subjects."
                )
        return cls(kind, float(prior), *(_fit_density(np.log1p(x), kind, seed) for x in (normal, anomalous)))

    def log_ratio(self, distances: Float[np.ndarray, "n layers"]) -> Float64[np.ndarray, " n"]:
        """Log posterior odds of anomalous, log p(d|a) − log p(d|n) + log(prior / (1 − prior))."""
        x = np.log1p(np.asarray(distances, dtype=np.float64))
        odds: np.ndarray = self.anomalous.log_density(x) - self.normal.log_density(x) + logit(self.prior)
        return odds


def _fit_density(x: np.ndarray, kind: VectorKind, seed: int) -> VectorDensity:
    values = np.asarray(x, dtype=np.float64)
    d = values.shape[1]
    if kind == "gaussian":
        covariance = np.atleast_2d(np.cov(values, rowvar=False)) + _SMALLEST_SD**2 * np.eye(d)
        return VectorDensity(np.ones(1), values.mean(axis=0)[None], np.linalg.cholesky(covariance)[None])
    from sklearn.mixture import GaussianMixture

    components = max(1, min(_COMPONENTS, len(values) // (2 * (d + 1)), len(np.unique(values, axis=0))))
    model = GaussianMixture(components, reg_covar=_SMALLEST_SD**2, random_state=seed).fit(values)
    keep = model.weights_ > 0
    return VectorDensity(model.weights_[keep], model.means_[keep], np.linalg.cholesky(model.covariances_[keep]))


def logit(prior: float) -> float:
    """Log odds of a probability."""
    return math.log(prior / (1 - prior))
