"""Two distributions, one decision: where do normal and anomalous scores trade places?

Both densities are fitted on log1p(score) of validation voxels as mixtures of Gaussians: one component ("gaussian"),
a few ("mixture", fitted by EM), or one per occupied bin ("kde", Scott's bandwidth). The decision is Bayes': anomalous
where prior × density of anomalous beats (1 − prior) × density of normal. This module is given labels by its caller.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy.special import logsumexp

from data.errors import BadInput

Kind = Literal["gaussian", "mixture", "kde"]
KINDS: tuple[Kind, ...] = ("gaussian", "mixture", "kde")
_KDE_BINS = 256
_TABLE = 8192
_SMALLEST_SD = 1e-4


@dataclass(frozen=True)
class Density:
    """A mixture of Gaussians over log1p(score)."""

    weights: tuple[float, ...]
    means: tuple[float, ...]
    sds: tuple[float, ...]

    def log_density(self, x: Float[np.ndarray, " x"]) -> Float64[np.ndarray, " x"]:
        """Natural logarithm of the density at x = log1p(score)."""
        w, m, s = (np.array(v)[:, None] for v in (self.weights, self.means, self.sds))
        terms = np.log(w) - 0.5 * ((np.asarray(x, dtype=np.float64)[None, :] - m) / s) ** 2 - np.log(s)
        total: np.ndarray = logsumexp(terms, axis=0) - 0.5 * math.log(2 * math.pi)
        return total

    @property
    def reach(self) -> float:
        """Where its upper tail has faded: eight standard deviations past the last component."""
        return max(m + 8 * s for m, s in zip(self.means, self.sds, strict=True))


@dataclass(frozen=True)
class TwoDensities:
    """Fitted densities of normal and anomalous scores, and the prior share of anomalous voxels."""

    kind: Kind
    prior: float
    normal: Density
    anomalous: Density
    highest: float
    """Highest score seen in fitting: beyond it the ratio is extrapolation."""

    @classmethod
    def fit(
        cls,
        normal: Float[np.ndarray, " n"],
        anomalous: Float[np.ndarray, " a"],
        kind: Kind = "gaussian",
        prior: float | None = None,
        *,
        n_components: int = 3,
        max_samples: int = 50_000,
        seed: int = 0,
    ) -> Self:
        """Fit both densities; `prior` defaults to the share of anomalous voxels given.

        More than `max_samples` of a class are thinned at random (seeded). BadInput with fewer than two voxels of one.
        """
        if kind not in KINDS:
            raise BadInput(f"Density kind {kind!r} is unknown. Allowed: {', '.join(KINDS)}.")
        share = len(anomalous) / max(len(normal) + len(anomalous), 1) if prior is None else prior
        samples = [_logged(normal, "normal", max_samples, seed), _logged(anomalous, "anomalous", max_samples, seed + 1)]
        if not 0 < share < 1:
            raise BadInput(f"Prior is {share}. Allowed: between 0 and 1, the expected share of anomalous voxels.")
        fitted = [_fit(x, kind, n_components, seed) for x in samples]
        return cls(kind, float(share), fitted[0], fitted[1], float(np.expm1(max(x.max() for x in samples))))

    def log_ratio(self, scores: Float[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
        """Log posterior odds of anomalous: log p(s|a) − log p(s|n) + log(prior / (1 − prior)). NaN stays NaN."""
        x = np.log1p(np.maximum(np.asarray(scores, dtype=np.float64), 0)).reshape(-1)
        out = np.full(x.shape, np.nan)
        known = np.isfinite(x)
        out[known] = self._odds_fast(x[known])
        return out.reshape(np.shape(scores))

    def classify(self, scores: Float[np.ndarray, "..."]) -> Bool[np.ndarray, "..."]:
        """Where anomalous is the more probable class; NaN is not."""
        called: np.ndarray = np.nan_to_num(self.log_ratio(scores), nan=-np.inf) >= 0
        return called

    def cut_points(self) -> tuple[float, ...]:
        """Scores at which the decision changes, rising; none when one class always wins."""
        grid = np.linspace(0.0, self._reach, _TABLE)
        sign = self._odds(grid) >= 0
        changes = np.flatnonzero(sign[1:] != sign[:-1])
        return tuple(self._bisect(grid[i], grid[i + 1]) for i in changes)

    @property
    def starts_anomalous(self) -> bool:
        """Whether score 0 is called anomalous."""
        return bool(self._odds(np.zeros(1))[0] >= 0)

    @property
    def equivalent_threshold(self) -> float | None:
        """The single threshold with the same decisions (score ≥ it), or None when there is none."""
        cuts = self.cut_points()
        return cuts[0] if len(cuts) == 1 and not self.starts_anomalous else None

    @property
    def monotone(self) -> bool:
        """Whether a higher score always means higher odds, over the scores seen: then any prior gives one threshold."""
        odds = self._odds(np.linspace(0.0, math.log1p(self.highest), _TABLE))
        return bool((np.diff(odds) >= -1e-9).all())

    def explain(self) -> str:
        """What the decision amounts to, in one sentence."""
        cuts = self.cut_points()
        if not cuts:
            always = "anomalous" if self.starts_anomalous else "normal"
            return f"The densities never trade places: every score is called {always}."
        if self.equivalent_threshold is not None:
            return f"The same as one threshold: anomalous from {cuts[0]:.4g} upwards."
        points = ", ".join(f"{c:.4g}" for c in cuts)
        first = "anomalous" if self.starts_anomalous else "normal"
        return f"Not one threshold: it starts with {first} at 0 and changes at {points}."

    def to_json(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return {
            "kind": self.kind,
            "prior": self.prior,
            "highest": self.highest,
            "normal": _density_json(self.normal),
            "anomalous": _density_json(self.anomalous),
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """What `to_json` gave."""
        return cls(
            fields["kind"],
            fields["prior"],
            _density(fields["normal"]),
            _density(fields["anomalous"]),
            fields["highest"],
        )

    @property
    def _reach(self) -> float:
        return min(max(self.normal.reach, self.anomalous.reach), 80.0)

    def _odds(self, x: np.ndarray) -> np.ndarray:
        odds = math.log(self.prior / (1 - self.prior))
        total: np.ndarray = self.anomalous.log_density(x) - self.normal.log_density(x) + odds
        return total

    def _odds_fast(self, x: np.ndarray) -> np.ndarray:
        """Through a table when many voxels meet many components; exact beyond the table."""
        if len(x) * len(self.normal.means) < 2_000_000:
            return self._odds(x)
        grid = np.linspace(0.0, self._reach, _TABLE)
        values: np.ndarray = np.interp(x, grid, self._odds(grid))
        beyond = x > grid[-1]
        values[beyond] = self._odds(x[beyond])
        return values

    def _bisect(self, low: float, high: float) -> float:
        rising = bool(self._odds(np.array([high]))[0] >= 0)
        for _ in range(60):
            middle = 0.5 * (low + high)
            if bool(self._odds(np.array([middle]))[0] >= 0) == rising:
                high = middle
            else:
                low = middle
        return float(np.expm1(high))


def _fit(x: np.ndarray, kind: Kind, n_components: int, seed: int) -> Density:
    if kind == "gaussian":
        return Density((1.0,), (float(x.mean()),), (max(float(x.std(ddof=1)), _SMALLEST_SD),))
    if kind == "mixture":
        return _fit_mixture(x, min(n_components, len(np.unique(x))), seed)
    return _fit_kde(x)


def _fit_mixture(x: np.ndarray, n_components: int, seed: int) -> Density:
    from sklearn.mixture import GaussianMixture

    model = GaussianMixture(n_components, reg_covar=_SMALLEST_SD**2, random_state=seed).fit(x[:, None])
    sds = np.maximum(np.sqrt(model.covariances_.reshape(-1)), _SMALLEST_SD)
    keep = model.weights_ > 0
    return Density(_floats(model.weights_[keep]), _floats(model.means_.reshape(-1)[keep]), _floats(sds[keep]))


def _fit_kde(x: np.ndarray) -> Density:
    """Gaussian kernels on binned data; bandwidth by Scott 1992, sd · n^(−1/5), at least one bin."""
    counts, borders = np.histogram(x, bins=_KDE_BINS)
    width = float(borders[1] - borders[0])
    bandwidth = max(float(x.std(ddof=1)) * len(x) ** -0.2, width, _SMALLEST_SD)
    keep = counts > 0
    centres = (borders[:-1] + borders[1:]) / 2
    return Density(_floats(counts[keep] / len(x)), _floats(centres[keep]), (bandwidth,) * int(keep.sum()))


def _logged(scores: np.ndarray, name: str, max_samples: int, seed: int) -> np.ndarray:
    values = np.asarray(scores, dtype=np.float64).reshape(-1)
    if len(values) < 2:
        raise BadInput(f"{len(values)} {name} validation voxels: a density needs two or more. Add labelled subjects.")
    if not np.isfinite(values).all() or (values < 0).any():
        raise BadInput(f"The {name} scores are not finite distances of 0 or more. Give scores inside the brain only.")
    if len(values) > max_samples:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 0xDEC1])))
        values = values[rng.choice(len(values), max_samples, replace=False)]
    return np.log1p(values)


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


def _density_json(density: Density) -> dict[str, list[float]]:
    return {"weights": list(density.weights), "means": list(density.means), "sds": list(density.sds)}


def _density(fields: dict[str, list[float]]) -> Density:
    return Density(tuple(fields["weights"]), tuple(fields["means"]), tuple(fields["sds"]))
