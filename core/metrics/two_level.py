"""Intervals when several networks are judged on the same subjects: subjects and training seeds are resampled together.

The pigeonhole bootstrap of Owen 2007 ("The pigeonhole bootstrap", Annals of Applied Statistics 1(2), 386-411):
subjects are drawn with replacement, training seeds are drawn with replacement, and a resample is every drawn seed on
every drawn subject. The same draws serve every network and every figure, so differences are paired in both. With one
seed only subjects are drawn, and the interval says nothing about another training. With two or three seeds the spread
between seeds is underestimated: by a factor (S − 1) / S in variance.
"""

import functools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from data.errors import BadInput

N_RESAMPLES = 4_000
LEVEL = 0.95


@dataclass(frozen=True)
class Resamples:
    """How often each subject and each seed is drawn; made anew, equal, whenever asked."""

    n_subjects: int
    n_resamples: int = N_RESAMPLES
    seed: int = 0

    @functools.cached_property
    def subjects(self) -> Float64[np.ndarray, "resamples subjects"]:
        """Times each subject stands in each resample; every row sums to the number of subjects."""
        return _times(self.n_subjects, self.n_resamples, self.seed, "subjects")

    def seeds(self, count: int) -> Float64[np.ndarray, "resamples seeds"]:
        """Times each of `count` training seeds stands in each resample."""
        return _times(count, self.n_resamples, self.seed, "training seeds")

    def means(self, values: Float64[np.ndarray, " subjects"]) -> Float64[np.ndarray, " resamples"]:
        """Mean over the drawn subjects, for each resample."""
        if values.shape != (self.n_subjects,):
            raise BadInput(f"{len(values)} values for {self.n_subjects} subjects. Give one per subject.")
        found: np.ndarray = self.subjects @ values / self.n_subjects
        return found


@dataclass(frozen=True, eq=False)
class Figure:
    """One figure of one network: its value on all subjects, and on each resample of them."""

    value: float
    replicates: Float64[np.ndarray, " resamples"]


def over_seeds(figures: Sequence[Figure], resamples: Resamples) -> dict[str, Any]:
    """Mean over training seeds with its two-level interval, and the standard deviation between seeds.

    `seed_sd` is None with one seed; `low` and `high` are None with one subject.
    """
    values = np.array([figure.value for figure in figures])
    low, high = _ends(np.stack([figure.replicates for figure in figures]), resamples)
    return {
        "mean": float(values.mean()),
        "low": low,
        "high": high,
        "n": resamples.n_subjects,
        "seeds": len(values),
        "seed_sd": float(values.std(ddof=1)) if len(values) > 1 else None,
        "by_seed": values.tolist(),
    }


def paired_over_seeds(first: Sequence[Figure], second: Sequence[Figure], resamples: Resamples) -> dict[str, Any]:
    """`over_seeds` of first − second, seed by seed on the same subjects; a single `second` serves every seed."""
    others = list(second) * len(first) if len(second) == 1 else list(second)
    if len(others) != len(first):
        raise BadInput(f"{len(first)} networks against {len(others)}. Give one partner per seed, or one for all.")
    gains = [Figure(a.value - b.value, a.replicates - b.replicates) for a, b in zip(first, others, strict=True)]
    return over_seeds(gains, resamples)


def said(found: Mapping[str, Any] | None) -> str:
    """What an interval of a difference says: better, worse, or no difference that can be shown."""
    if not found or found["low"] is None or found["low"] <= 0 <= found["high"]:
        return "no difference that these subjects and seeds can show"
    return "better" if found["low"] > 0 else "worse"


def number_text(value: float | None, decimals: int = 3, *, signed: bool = False) -> str:
    """A number with a real minus sign, or nothing; what rounds to zero has no sign."""
    if value is None:
        return ""
    rounded = round(value, decimals)
    if not rounded:
        return f"{0:.{decimals}f}"
    return f"{rounded:{'+' if signed else ''}.{decimals}f}".replace("-", "−")


def span_text(found: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    """A mean with its interval, or nothing."""
    if not found:
        return ""
    text = number_text(found["mean"], signed=signed)
    if found["low"] is None:
        return text
    return f"{text} [{number_text(found['low'], signed=signed)}, {number_text(found['high'], signed=signed)}]"


def _ends(
    replicates: Float64[np.ndarray, "seeds resamples"], resamples: Resamples
) -> tuple[float | None, float | None]:
    if resamples.n_subjects < 2:
        return None, None
    drawn = (resamples.seeds(len(replicates)) * replicates.T).sum(axis=1) / len(replicates)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _times(n: int, n_resamples: int, seed: int, purpose: str) -> Float64[np.ndarray, "resamples n"]:
    if n < 1:
        raise BadInput(f"Nothing to resample: {n} {purpose}.")
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(purpose.encode())])))
    drawn: np.ndarray = rng.multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(np.float64)
    return drawn
