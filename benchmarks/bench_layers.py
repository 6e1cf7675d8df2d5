"""A change of layers on the Layers page, from the click to the pooled best Dice of eight subjects.

`unseen`: distances of a layer set that was never asked for, from the one fit and the subjects' features; `seen`: from
the distances that scoring has stored. Both go on to 80x96x80 score maps, histograms and the best Dice. The naive way
is a refit with an explicit inverse per position, scipy's linear zoom, and scikit-learn's precision-recall curve.
Features and lesions are random, the brain is that of MNI152. Run: python -m benchmarks --only layer_change_unseen
"""

import functools
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import affine_transform
from sklearn.metrics import precision_recall_curve

from benchmarks.bench_gaussian import reference_fit, reference_score
from benchmarks.clock import cpu_seconds, median_seconds
from core.features.layout import feature_layout, positions_near
from core.features.score_maps import Upsampler
from core.features.settings import every_layer_set
from core.gaussian.running import fit_gaussian
from core.gaussian.voxel_gaussian import VoxelGaussian
from core.memory_plan import GaussianSettings
from core.metrics.score_histogram import ScoreHistogram, pooled
from core.types import FeatureLayout
from data.template import working_template
from data.volume import Volume

Rows = dict[str, torch.Tensor]
CHANNELS = {"input": 1, "stage0": 16, "stage1": 32, "stage2": 64, "stage3": 128}
STRIDES = {"input": 1, "stage0": 1, "stage1": 2, "stage2": 4, "stage3": 4}
"""In voxels of the working grid; the feature grid has 2."""
NAIVE_BLOCK = 1024
"""The naive fit goes in blocks of positions: all at once would hold three arrays of 7 GB."""


@dataclass(frozen=True, eq=False)
class LayersCase:
    """What is there before the click."""

    layout: FeatureLayout
    brain: Volume
    lesions: list[np.ndarray]
    """Per subject, which in-brain voxels are lesion."""
    train: list[Rows]
    test: list[Rows]
    gaussian: VoxelGaussian
    upsampler: Upsampler


@functools.lru_cache(maxsize=1)
def layers_case(spacing_mm: float = 2.0, n_train: int = 32, n_test: int = 8) -> LayersCase:
    """A fit of five layers on 4 mm and 8 mm grids inside the MNI152 brain, and subjects with one lesion each."""
    brain = working_template(spacing_mm)
    strides = {layer: (s, s, s) for layer, s in STRIDES.items()}
    layout = feature_layout(brain.grid, (2, 2, 2), strides, CHANNELS, positions_near(brain.brain_mask, (2, 2, 2)))
    train = [_features(layout, [0, i]) for i in range(n_train)]
    test = [_features(layout, [1, i]) for i in range(n_test)]
    lesions = []
    where = np.argwhere(brain.brain_mask)
    for i, rows in enumerate(test):
        centre = where[_random([2, i]).integers(len(where))]
        lesions.append(np.linalg.norm((where - centre) * spacing_mm, axis=1) < 12)
        for layer, positions in layout.layer_positions.items():
            near = np.linalg.norm((positions * max(2, STRIDES[layer]) - centre) * spacing_mm, axis=1) < 12
            rows[layer][torch.from_numpy(near)] += 0.4
    gaussian = fit_gaussian(train, layout.lookup, CHANNELS, GaussianSettings(), n_subjects=n_train)
    return LayersCase(layout, brain, lesions, train, test, gaussian, Upsampler(layout))


def layer_change_unseen(case: LayersCase, rounds: int = 5, chosen: tuple[str, ...] = tuple(CHANNELS)) -> dict[str, Any]:
    """All five layers, never scored before; target 0.5 s. The reference runs once."""

    def ours() -> tuple[np.ndarray, float]:
        distances = case.gaussian.mahalanobis_subsets(case.test, [chosen])[0]
        return distances, _pooled_best_dice(case, list(distances))

    seconds, (distances, dice) = median_seconds(ours, rounds)
    naive_seconds, (reference, reference_dice) = _timed_naive(case, chosen)
    return {
        "ratio": naive_seconds / seconds,
        "seconds": seconds,
        "target_seconds": 0.5,
        "naive_seconds": naive_seconds,
        **_sizes(case, chosen),
        "max_rel_difference": float(np.abs(distances / reference - 1).max()),
        "dice": dice,
        "dice_difference": abs(dice - reference_dice),
    }


def layer_change_seen(case: LayersCase, rounds: int = 7, chosen: tuple[str, ...] = tuple(CHANNELS)) -> dict[str, Any]:
    """A layer set whose distances lie in the run, beside those of the 30 others; target 0.1 s.

    The reference stores nothing for a layer set: it is the naive way, the same single run as for `unseen`.
    """
    sets = every_layer_set(tuple(CHANNELS))
    distances = case.gaussian.mahalanobis_subsets(case.test, [chosen])[0]
    with tempfile.TemporaryDirectory() as directory:
        paths = [Path(directory) / f"{i}.npy" for i in range(len(case.test))]
        for path, of_subject in zip(paths, distances, strict=True):
            np.save(path, np.broadcast_to(of_subject, (len(sets), len(of_subject))))

        def ours() -> float:
            stored = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]
            return _pooled_best_dice(case, [np.array(of_subject[sets.index(chosen)]) for of_subject in stored])

        seconds, dice = median_seconds(ours, rounds)
    naive_seconds, (_, reference_dice) = _timed_naive(case, chosen)
    return {
        "ratio": naive_seconds / seconds,
        "seconds": seconds,
        "target_seconds": 0.1,
        "naive_seconds": naive_seconds,
        **_sizes(case, chosen),
        "dice": dice,
        "dice_difference": abs(dice - reference_dice),
    }


def _pooled_best_dice(case: LayersCase, distances: Sequence[np.ndarray]) -> float:
    inside = case.brain.brain_mask
    histograms = [
        ScoreHistogram.of(case.upsampler.score_map(values, case.brain, "σ").scores[inside], lesion)
        for values, lesion in zip(distances, case.lesions, strict=True)
    ]
    return pooled(histograms).best_dice()[0]


@functools.lru_cache(maxsize=1)
def _timed_naive(case: LayersCase, chosen: tuple[str, ...]) -> tuple[float, tuple[np.ndarray, float]]:
    return cpu_seconds(lambda: _naive(case, chosen))


def _naive(case: LayersCase, chosen: tuple[str, ...]) -> tuple[np.ndarray, float]:
    distances = np.empty((len(case.test), len(case.layout.positions)))
    for start in range(0, distances.shape[1], NAIVE_BLOCK):
        here = slice(start, start + NAIVE_BLOCK)
        mean, inverse = reference_fit(torch.stack([_joint(case, rows, chosen, here) for rows in case.train]))
        for i, rows in enumerate(case.test):
            distances[i, here] = reference_score(mean, inverse, _joint(case, rows, chosen, here))
    covered = _zoomed(case, np.ones(distances.shape[1]))
    inside = case.brain.brain_mask
    scores = [(_zoomed(case, d)[inside] / covered[inside]) for d in distances]
    precision, recall, _ = precision_recall_curve(np.concatenate(case.lesions), np.concatenate(scores))
    return distances, float((2 * precision * recall / np.maximum(precision + recall, 1e-12)).max())


def _zoomed(case: LayersCase, values: np.ndarray) -> np.ndarray:
    grid = np.zeros(case.layout.feature_grid.shape, dtype=np.float32)
    grid[tuple(case.layout.positions.T)] = values
    shape = case.brain.grid.shape
    with warnings.catch_warnings():  # that a diagonal matrix takes scipy's zoom, which is what is wanted
        warnings.simplefilter("ignore", UserWarning)
        zoomed: np.ndarray = affine_transform(
            grid, np.full(3, 0.5), output_shape=shape, order=1, mode="nearest", prefilter=False
        )
    return zoomed


def _joint(case: LayersCase, rows: Rows, chosen: tuple[str, ...], here: slice) -> torch.Tensor:
    return torch.cat([rows[x][torch.from_numpy(case.layout.lookup[x][here])] for x in chosen], 1)


def _features(layout: FeatureLayout, key: list[int]) -> Rows:
    random = _random(key)
    return {
        layer: torch.from_numpy(random.standard_normal((len(positions), CHANNELS[layer]), dtype=np.float32))
        for layer, positions in layout.layer_positions.items()
    }


def _sizes(case: LayersCase, chosen: tuple[str, ...]) -> dict[str, int]:
    return {
        "subjects": len(case.test),
        "training_subjects": len(case.train),
        "positions": len(case.layout.positions),
        "features": sum(CHANNELS[layer] for layer in chosen),
        "brain_voxels": int(case.brain.brain_mask.sum()),
    }


def _random(key: list[int]) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([*key, 12])))


def wall_seconds(case: LayersCase, rounds: int = 9) -> dict[str, float]:
    """Median wall time of an unseen change with every thread there is, for ever fewer layers: what a user waits."""
    found = {}
    for first in range(len(CHANNELS) - 1):
        chosen = tuple(CHANNELS)[first:]
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            _pooled_best_dice(case, list(case.gaussian.mahalanobis_subsets(case.test, [chosen])[0]))
            times.append(time.perf_counter() - began)
        found["+".join(chosen)] = statistics.median(times)
    return found


if __name__ == "__main__":
    for layers, seconds in wall_seconds(layers_case()).items():
        print(f"{seconds:.3f} s  {layers}  ({torch.get_num_threads()} threads)")
