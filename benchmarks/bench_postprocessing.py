"""The post-processing explorer against the loop that makes every combination anew. Both give the same counts.

One made-up subject, 135 combinations, one threshold each; one thread, CPU time. A job does this for every test subject,
and for the validation subjects at 58 thresholds, where the distance to the loop grows.
Run: python -m benchmarks.bench_postprocessing
"""

import itertools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import binary_erosion

from benchmarks.clock import one_thread, side_by_side
from core.detectors.intensity import Intensity
from core.diagnosis.postprocessing import EROSION_VOXELS, MEDIAN_VOXELS, MIN_COMPONENT_MM3, SMOOTHING_MM
from core.features.score_maps import masked_score_map
from core.metrics.lesions import components
from core.study.map_filters import every_count
from core.study.stored_scores import RunScores
from core.types import ScoreMap
from data.volume import Grid, Mask, Volume


@dataclass(frozen=True)
class _Prepared:
    volume: Volume
    lesion: Mask


@dataclass(frozen=True)
class _MadeScores:
    """One subject with the face of RunScores."""

    prepared_: _Prepared
    map_: ScoreMap
    detector: Intensity
    unit: str = "score"

    def prepared(self, subject_id: str) -> _Prepared:
        return self.prepared_

    def is_healthy(self, subject_id: str) -> bool:
        return False

    def score_map(self, subject_id: str, layers: tuple[str, ...]) -> ScoreMap:
        return self.map_


def post_processing_vs_naive(spacing_mm: float = 2.0, rounds: int = 3) -> dict[str, Any]:
    """Counts of 135 combinations for one subject: each filter once and one labelling for all sizes, against a loop."""
    scores: Any = _made(spacing_mm)
    thresholds = dict.fromkeys(itertools.product(SMOOTHING_MM, MEDIAN_VOXELS, EROSION_VOXELS), 1.2)
    timing = side_by_side(lambda: _ours(scores, thresholds), lambda: _naive(scores, thresholds), rounds, 1)
    return {
        "ratio": timing.ratio,
        "seconds": timing.seconds,
        "naive_seconds": timing.reference_seconds,
        "brain_voxels": int(scores.prepared_.volume.brain_mask.sum()),
        "combinations": len(timing.value),
        "disagreements": sum(timing.value[key] != timing.reference[key] for key in timing.reference),
    }


def _ours(scores: RunScores, thresholds: dict[tuple[float, int, int], float]) -> dict[tuple[float, ...], Any]:
    cuts = {one: [threshold] for one, threshold in thresholds.items()}
    found = every_count(scores, ("score",), "made", cuts, MIN_COMPONENT_MM3)
    return {
        (*one, smallest): (row.hits, row.alarms, row.components)
        for one, by_cut in found.items()
        for smallest, row in zip(MIN_COMPONENT_MM3, by_cut[thresholds[one]], strict=True)
    }


def _naive(scores: _MadeScores, thresholds: dict[tuple[float, int, int], float]) -> dict[tuple[float, ...], Any]:
    found = {}
    volume, lesion = scores.prepared_.volume, scores.prepared_.lesion.voxels
    for (smoothing, median, erosion), threshold in thresholds.items():
        for smallest in MIN_COMPONENT_MM3:
            processed = masked_score_map(
                scores.map_.scores, volume, "score", smoothing_mm=smoothing, median_voxels=median
            ).scores
            inside = binary_erosion(volume.brain_mask, iterations=erosion) if erosion else volume.brain_mask
            called = inside & (np.nan_to_num(processed, nan=-np.inf) >= threshold)
            labels = components(Mask(called, volume.grid), min_volume_mm3=smallest)
            kept = labels > 0
            counts = int((kept & lesion).sum()), int((kept & ~lesion).sum()), int(labels.max(initial=0))
            found[smoothing, median, erosion, smallest] = counts
    return found


def _made(spacing_mm: float) -> _MadeScores:
    shape = tuple(round(mm / spacing_mm) for mm in (160, 192, 160))
    grid = Grid((shape[0], shape[1], shape[2]), np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0]))
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    brain = sum(axis**2 for axis in axes) < 0.75
    lesion = sum((axis - 0.2) ** 2 for axis in axes) < 0.01
    values = np.random.Generator(np.random.Philox(4)).gamma(4, 0.25, shape).astype(np.float32) + lesion
    volume = Volume(brain[None].astype(np.float32), grid, brain, "made", ("T1",))
    scores = np.where(brain, values, np.nan).astype(np.float32)
    return _MadeScores(_Prepared(volume, Mask(lesion, grid)), ScoreMap(scores, grid, "made", "score"), Intensity())


if __name__ == "__main__":
    with one_thread():
        print(json.dumps(post_processing_vs_naive(), indent=1))
