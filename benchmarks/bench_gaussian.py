"""The Gaussian against the straightforward estimator: same tensors, one run, interleaved, CPU time, one thread.

The reference is our own writing of what the field does: per position a covariance with 0.01 I, put one position at a
time into a (d, d, L) array and permuted, a batched inverse, and a new fit for every combination of layers.
`python -m benchmarks.bench_gaussian [--quick]` prints JSON.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from core.gaussian import GaussianSettings, fit_gaussian

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
            mean, inverse = _reference_fit(X)
            scores.append(_reference_score(mean, inverse, torch.cat([test[x][lookup[x]] for x in subset], 1)))
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
        mean, inverse = _reference_fit(X)
        return lambda: _reference_score(mean, inverse, volumes[n]["layer"])

    return _compare(ours, reference, repeats, reference_repeats=max(1, repeats // 2))


def fit_peak_memory(d: int, positions: int, n: int = 32) -> dict[str, float]:
    """Peak resident memory above the data, each side in a fresh process; `ratio` is reference over ours."""
    ours, reference = (_peak_in_child(side, d, positions, n) for side in ("ours", "reference"))
    return {"ratio": reference / max(ours, 1.0), "ours_mb": ours, "reference_mb": reference}


def _reference_fit(X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    n, positions, d = X.shape
    mean = X.mean(0)
    covariance = torch.zeros(d, d, positions)
    identity = torch.eye(d)
    for i in range(positions):
        centred = X[:, i] - mean[i]
        covariance[:, :, i] = centred.T @ centred / (n - 1) + 0.01 * identity
    return mean, torch.linalg.inv(covariance.permute(2, 0, 1))


def _reference_score(mean: torch.Tensor, inverse: torch.Tensor, rows: torch.Tensor) -> np.ndarray:
    delta = rows - mean
    squared = torch.einsum("pd,pde,pe->p", delta, inverse, delta)
    return np.asarray(squared.clamp_min(0).sqrt().numpy())


def _compare(
    ours: Callable[[], object], reference: Callable[[], object], repeats: int, reference_repeats: int
) -> dict[str, float]:
    torch.set_num_threads(1)
    ours()
    times: dict[str, list[float]] = {"ours": [], "reference": []}
    results: dict[str, object] = {}
    for i in range(repeats):
        results["ours"] = _timed(ours, times["ours"])
        if i < reference_repeats:
            results["reference"] = _timed(reference, times["reference"])
    a, b = (value() if callable(value) else value for value in (results["ours"], results["reference"]))
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    fast, slow = statistics.median(times["ours"]), statistics.median(times["reference"])
    return {
        "ratio": slow / fast,
        "ours_s": fast,
        "reference_s": slow,
        "max_rel_difference": float(np.max(np.abs(a - b) / np.abs(b))),
    }


def _timed(function: Callable[[], object], times: list[float]) -> object:
    start = time.process_time()
    value = function()
    times.append(time.process_time() - start)
    return value


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
    command = [sys.executable, "-m", "benchmarks.bench_gaussian", "--child", side, str(d), str(positions), str(n)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def _child(side: str, d: int, positions: int, n: int) -> None:
    torch.set_num_threads(1)
    channels, lookup = {"layer": d}, {"layer": np.arange(positions)}
    small = [_volume(channels, {"layer": np.arange(2)}, seed) for seed in range(3)]
    fit_gaussian(small, {"layer": np.arange(2)}, channels, GaussianSettings(form="dual"), n_subjects=3)
    _reference_fit(torch.stack([v["layer"] for v in small]))
    volumes = [_volume(channels, lookup, seed) for seed in range(n)]
    if side == "reference":
        X = torch.stack([v["layer"] for v in volumes])
    before = _resident_kilobytes("VmRSS", forget_peak=True)
    if side == "ours":
        fit_gaussian(volumes, lookup, channels, GaussianSettings(form="dual"), n_subjects=n)
    else:
        _reference_fit(X)
    print((_resident_kilobytes("VmHWM") - before) / 1024)


def _resident_kilobytes(field: str, forget_peak: bool = False) -> int:
    # Not ru_maxrss: Linux carries the parent's peak over into a new program.
    if forget_peak:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def main() -> None:
    """Run all comparisons, or a small version of each with `--quick`, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run, not how fast")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        side, *sizes = arguments.child
        _child(side, *(int(size) for size in sizes))
        return
    if arguments.quick:
        results = {
            "subset_scoring_vs_refit": subset_scoring_vs_refit(repeats=1, side=8),
            "fit_vs_explicit_inverse_d128": fit_vs_explicit_inverse(128, positions=32, repeats=1),
            "fit_peak_memory_d128": fit_peak_memory(128, 256),
        }
    else:
        results = {
            "subset_scoring_vs_refit": subset_scoring_vs_refit(),
            "fit_vs_explicit_inverse_d128": fit_vs_explicit_inverse(128),
            "fit_vs_explicit_inverse_d448": fit_vs_explicit_inverse(448),
            "fit_peak_memory_d128": fit_peak_memory(128, 4096),
            "fit_peak_memory_d448": fit_peak_memory(448, 1024),
        }
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
