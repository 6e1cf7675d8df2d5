"""Levels at which scores are shown: 255 of them, exact at every threshold and dense where scores are high."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from data.json_files import write_json

N_LEVELS = 255


def score_levels(samples: np.ndarray, thresholds: Iterable[float]) -> Float64[np.ndarray, " levels"]:
    """255 ascending levels: dense where scores are high, and exactly at every given threshold.

    `samples` are in-brain scores. Half of the levels lie in the top 5 % of them.
    """
    exact = np.unique([np.float32(t) for t in thresholds if np.isfinite(t)]).astype(np.float64)
    n = N_LEVELS - len(exact)
    upper = 1 - np.geomspace(5e-2, 2e-6, n // 2)
    lower = np.linspace(0.0, 0.95, n - n // 2, endpoint=False)
    between = np.quantile(samples.astype(np.float64), np.concatenate([lower, upper]))
    merged = np.unique(np.concatenate([exact, between]))
    if len(merged) < N_LEVELS:
        top = max(float(merged[-1]), 1e-6)
        extra = top * (1 + np.arange(1, N_LEVELS - len(merged) + 1) * 1e-3)
        merged = np.concatenate([merged, extra])
    return np.asarray(merged[:N_LEVELS], dtype=np.float64)


def save_levels(path: Path, levels: dict[str, list[float]]) -> None:
    """Write the levels of every layer set."""
    write_json(path, levels)
