"""Intervals for means over subjects: resample subjects, never voxels."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from data.errors import BadInput

_CHUNK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A mean over subjects and its percentile bootstrap interval; no interval below two subjects."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    """Subjects behind the mean. Below 50 an interval is itself uncertain."""
    level: float = 0.95


def mean_interval(
    values: Sequence[float] | Float64[np.ndarray, " subjects"],
    *,
    seed: int,
    n_resamples: int = 10_000,
    level: float = 0.95,
    strata: Sequence[str] | None = None,
    purpose: str = "mean",
) -> Interval:
    """Mean with percentile bootstrap interval over subjects; with `strata`, resampled within each (site).

    Means only: percentile bootstrap of a median can fail badly. Efron & Tibshirani 1993, chapter 13.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not np.isfinite(sample).all():
        raise BadInput("Values for an interval must be one finite number per subject. Leave out what is undefined.")
    if len(sample) == 0:
        return Interval(None, None, None, 0, level)
    if len(sample) < 2:
        return Interval(float(sample[0]), None, None, 1, level)
    means = resampled_means(sample, seed=seed, n_resamples=n_resamples, strata=strata, purpose=purpose)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sample.mean()), float(low), float(high), len(sample), level)


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    *,
    seed: int,
    n_resamples: int = 10_000,
    level: float = 0.95,
    strata: Sequence[str] | None = None,
) -> Interval:
    """Interval of mean(first − second) over the same subjects in the same order, resampled in pairs."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise BadInput(f"Paired comparison needs the same subjects: {len(a)} against {len(b)} values.")
    return mean_interval(
        a - b, seed=seed, n_resamples=n_resamples, level=level, strata=strata, purpose="paired difference"
    )


def resampled_means(
    values: Float64[np.ndarray, " subjects"],
    *,
    seed: int,
    n_resamples: int,
    strata: Sequence[str] | None = None,
    purpose: str = "mean",
) -> Float64[np.ndarray, " resamples"]:
    """Means of `n_resamples` resamples with replacement."""
    groups = _groups(len(values), strata)
    totals = np.zeros(n_resamples)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(purpose.encode())])))
    for group in groups:
        rows = max(1, _CHUNK // len(group))
        for start in range(0, n_resamples, rows):
            stop = min(start + rows, n_resamples)
            draws = rng.integers(0, len(group), size=(stop - start, len(group)))
            totals[start:stop] += values[group][draws].sum(axis=1)
    return totals / len(values)


def _groups(n: int, strata: Sequence[str] | None) -> list[np.ndarray]:
    if strata is None:
        return [np.arange(n)]
    names = np.asarray(strata)
    if len(names) != n:
        raise BadInput(f"{len(names)} strata for {n} subjects. Give one stratum per subject.")
    return [np.flatnonzero(names == name) for name in np.unique(names)]
