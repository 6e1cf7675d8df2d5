"""The Gaussian against the straightforward estimator: same tensors, one run, interleaved, CPU time, one thread.

The reference is our own writing of what the field does: per position a covariance with 0.01 I, put one position at a
time into a (d, d, L) array and permuted, a batched inverse, and a new fit for every combination of layers.
Run: python -m benchmarks --only NAME. As a program, this file is one side of the comparison of memory.
"""

import itertools
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from benchmarks.clock import one_thread, side_by_side
from core.gaussian.running import fit_gaussian
from core.memory_plan import GaussianSettings

Rows = dict[str, torch.Tensor]


def subset_scoring_vs_refit(repeats: int = 3, side: int = 32) -> dict[str, float]:
    """Fit and score one volume for all 7 combinations of layers 64/128/256 on 32², 16², 8² grids, 32 subjects."""
    channels = {"layer1": 64, "layer2": 128, "layer3": 256}
    lookup = {f"layer{i + 1}": _nested(side, 2**i) for i in range(3)}
    volumes = [_volume(channels, lookup, seed) for seed in range(33)]
    train, test = volumes[:32], volumes[32]
    subsets = [s for k in (1, 2, 3) for s in itertools.combinations(channels, k)]

    def ours() -> np.ndarray:
        gaussian = fit_gaussian(train, lookup, channels, GaussianSettings(), n_subjects=32)
        return gaussian.mahalanobis_subsets([test], subsets)[:, 0]

    def reference() -> np.ndarray:
        scores = []
        for subset in subsets:
            X = torch.stack([torch.cat([v[x][lookup[x]] for x in subset], 1) for v in train])
            mean, inverse = reference_fit(X)
            scores.append(reference_score(mean, inverse, torch.cat([test[x][lookup[x]] for x in subset], 1)))
        return np.stack(scores)

    return _compare(ours, reference, repeats, reference_repeats=1)


def fit_vs_explicit_inverse(d: int, positions: int = 1024, n: int = 32, repeats: int = 3) -> dict[str, float]:
    """Fit only, d features at each position; agreement is of the scores of one new volume."""
    channels, lookup = {"layer": d}, {"layer": np.arange(positions)}
    volumes = [_volume(channels, lookup, seed) for seed in range(n + 1)]
    X = torch.stack([v["layer"] for v in volumes[:n]])

    def ours() -> Callable[[], np.ndarray]:
        gaussian = fit_gaussian(volumes[:n], lookup, channels, GaussianSettings(form="dual"), n_subjects=n)
        return lambda: gaussian.mahalanobis(volumes[n]).numpy()

    def reference() -> Callable[[], np.ndarray]:
        mean, inverse = reference_fit(X)
        return lambda: reference_score(mean, inverse, volumes[n]["layer"])

    return _compare(ours, reference, repeats, reference_repeats=max(1, repeats // 2))


def fit_peak_memory(d: int, positions: int, n: int = 32) -> dict[str, float]:
    """Peak resident memory above the data, each side in a fresh process; `ratio` is reference over ours."""
    ours, reference = (_peak_in_child(side, d, positions, n) for side in ("ours", "reference"))
    return {"ratio": reference / max(ours, 1.0), "ours_mb": ours, "reference_mb": reference}


def reference_fit(X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, inverse covariance) of every position of (volumes, positions, features), as the field writes it."""
    n, positions, d = X.shape
    mean = X.mean(0)
    covariance = torch.zeros(d, d, positions)
    identity = torch.eye(d)
    for i in range(positions):
        centred = X[:, i] - mean[i]
        covariance[:, :, i] = centred.T @ centred / (n - 1) + 0.01 * identity
    return mean, torch.linalg.inv(covariance.permute(2, 0, 1))


def reference_score(mean: torch.Tensor, inverse: torch.Tensor, rows: torch.Tensor) -> np.ndarray:
    """Mahalanobis distance of one volume's (positions, features)."""
    delta = rows - mean
    squared = torch.einsum("pd,pde,pe->p", delta, inverse, delta)
    return np.asarray(squared.clamp_min(0).sqrt().numpy())


def _compare(
    ours: Callable[[], object], reference: Callable[[], object], repeats: int, reference_repeats: int
) -> dict[str, float]:
    timing = side_by_side(ours, reference, repeats, reference_repeats)
    a, b = (np.asarray(v() if callable(v) else v, dtype=np.float64) for v in (timing.value, timing.reference))
    return {
        "ratio": timing.ratio,
        "ours_s": timing.seconds,
        "reference_s": timing.reference_seconds,
        "max_rel_difference": float(np.max(np.abs(a - b) / np.abs(b))),
    }


def _nested(side: int, factor: int) -> np.ndarray:
    row, column = np.divmod(np.arange(side * side), side)
    return (row // factor) * (side // factor) + column // factor


def _volume(channels: Mapping[str, int], lookup: Mapping[str, np.ndarray], seed: int) -> Rows:
    random = np.random.default_rng(seed)
    return {
        x: torch.from_numpy(random.normal(size=(int(lookup[x].max()) + 1, c)).astype(np.float32))
        for x, c in channels.items()
    }


def _peak_in_child(side: str, d: int, positions: int, n: int) -> float:
    command = [sys.executable, "-m", "benchmarks.bench_gaussian", side, str(d), str(positions), str(n)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def _child(side: str, d: int, positions: int, n: int) -> None:
    channels, lookup = {"layer": d}, {"layer": np.arange(positions)}
    small = [_volume(channels, {"layer": np.arange(2)}, seed) for seed in range(3)]
    fit_gaussian(small, {"layer": np.arange(2)}, channels, GaussianSettings(form="dual"), n_subjects=3)
    reference_fit(torch.stack([v["layer"] for v in small]))
    volumes = [_volume(channels, lookup, seed) for seed in range(n)]
    if side == "reference":
        X = torch.stack([v["layer"] for v in volumes])
    before = _resident_kilobytes("VmRSS", forget_peak=True)
    if side == "ours":
        fit_gaussian(volumes, lookup, channels, GaussianSettings(form="dual"), n_subjects=n)
    else:
        reference_fit(X)
    print((_resident_kilobytes("VmHWM") - before) / 1024)


def _resident_kilobytes(field: str, forget_peak: bool = False) -> int:
    # Not ru_maxrss: Linux carries the parent's peak over into a new program.
    if forget_peak:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    with one_thread():
        _child(sys.argv[1], *(int(size) for size in sys.argv[2:]))
