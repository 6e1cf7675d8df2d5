"""A threshold and a display scale from healthy subjects alone: what a user would deploy never sees a label."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Float32
from scipy.special import expit

from core.types import ScoreMap
from data.errors import BadInput
from data.volume import Mask

QUANTILE = 0.99


@dataclass(frozen=True)
class Calibration:
    """What healthy calibration voxels say: where to cut, and how to map a score to a 0..1 colour scale."""

    threshold: float
    """A voxel is anomalous when its score is at least this."""
    rule: str
    """How the threshold was chosen, in words."""
    median: float
    q05: float
    q95: float
    """Quantiles of log1p(score) in healthy voxels, for `display`."""
    n_subjects: int
    n_voxels: int
    unit: str

    @classmethod
    def fit(
        cls, healthy_maps: Sequence[ScoreMap], *, quantile: float = QUANTILE, fp_ml_per_scan: float | None = None
    ) -> Self:
        """Threshold at a quantile of the pooled healthy voxels, or at `fp_ml_per_scan` when it is given.

        Give maps of subjects that the detector was not fitted on: training scores are too low.
        """
        scores = [brain_scores(m) for m in healthy_maps]
        if fp_ml_per_scan is None:
            threshold = threshold_at_quantile(scores, quantile)
            rule = f"quantile {quantile:g} of healthy calibration voxels"
        else:
            threshold = threshold_at_fp_volume(healthy_maps, fp_ml_per_scan)
            rule = f"at most {fp_ml_per_scan:g} mL above it per healthy calibration scan"
        pooled = np.log1p(np.maximum(np.concatenate(scores), 0))
        q05, median, q95 = (float(q) for q in np.quantile(pooled, [0.05, 0.5, 0.95]))
        return cls(threshold, rule, median, q05, q95, len(scores), len(pooled), healthy_maps[0].unit)

    def segment(self, score_map: ScoreMap) -> Mask:
        """Voxels whose score is at least the threshold; NaN is never anomalous."""
        return segment(score_map, self.threshold)

    def display(self, scores: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
        """Scores on 0..1 for colour: sigmoid((log1p(score) − median) / (q95 − q05)). Order is kept, NaN stays."""
        spread = max(self.q95 - self.q05, 1e-6)
        return np.asarray(expit((np.log1p(np.maximum(scores, 0)) - self.median) / spread), dtype=np.float32)

    def to_json(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """What `to_json` gave."""
        return cls(**fields)


def segment(score_map: ScoreMap, threshold: float) -> Mask:
    """Voxels whose score is at least `threshold`; NaN is never anomalous."""
    return Mask(np.nan_to_num(score_map.scores, nan=-np.inf) >= threshold, score_map.grid)


def threshold_at_quantile(healthy: Sequence[Float[np.ndarray, " voxels"]], quantile: float) -> float:
    """Smallest float32 threshold t such that at most a fraction 1 − quantile of pooled healthy voxels has score ≥ t."""
    if not 0 < quantile < 1:
        raise BadInput(f"Quantile is {quantile}. Allowed: between 0 and 1, for example 0.99.")
    pooled = _pooled(healthy)
    return _above(pooled, int(np.floor((1 - quantile) * len(pooled) + 1e-9)))


def threshold_at_fp_volume(healthy_maps: Sequence[ScoreMap], ml_per_scan: float) -> float:
    """Smallest float32 threshold at which healthy scans have at most `ml_per_scan` above it, on average."""
    return threshold_at_fp_ml(
        [brain_scores(m) for m in healthy_maps], [m.grid.voxel_volume_mm3 / 1000 for m in healthy_maps], ml_per_scan
    )


def threshold_at_fp_ml(
    healthy: Sequence[Float[np.ndarray, " voxels"]], voxel_ml: Sequence[float], ml_per_scan: float
) -> float:
    """The same from scores per scan and the volume of a voxel of each scan, in mL."""
    if ml_per_scan < 0:
        raise BadInput(f"False-positive volume is {ml_per_scan} mL. Allowed: 0 or more.")
    pooled = _pooled(healthy)
    budget = ml_per_scan * len(healthy)
    if np.ptp(np.asarray(voxel_ml)) <= 1e-9 * max(voxel_ml):
        return _above(pooled, int(np.floor(budget / voxel_ml[0] + 1e-9)))
    volumes = np.repeat(np.asarray(voxel_ml, dtype=np.float64), [len(s) for s in healthy])
    order = np.argsort(pooled)[::-1]
    return _above(pooled, int(np.count_nonzero(np.cumsum(volumes[order]) <= budget * (1 + 1e-9))))


def brain_scores(score_map: ScoreMap) -> Float32[np.ndarray, " voxels"]:
    """Scores of the scored voxels, as one list."""
    scores: np.ndarray = score_map.scores[np.isfinite(score_map.scores)]
    return scores


def _above(pooled: np.ndarray, allowed: int) -> float:
    """Smallest float32 that at most `allowed` of the values reach."""
    if allowed >= len(pooled):
        return float(pooled.min())
    place = len(pooled) - 1 - allowed
    return float(np.nextafter(np.float32(np.partition(pooled, place)[place]), np.float32(np.inf)))


def _pooled(healthy: Sequence[np.ndarray]) -> np.ndarray:
    if not healthy or not any(len(s) for s in healthy):
        raise BadInput("No healthy calibration scores. Put at least one healthy subject into the calibration split.")
    pooled = np.concatenate([np.asarray(s, dtype=np.float32) for s in healthy])
    if not np.isfinite(pooled).all():
        raise BadInput("Healthy calibration scores contain NaN or infinity. Give scores inside the brain only.")
    return pooled
