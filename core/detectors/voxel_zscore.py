"""How many healthy standard deviations a voxel's intensity is away: no features, no training, hard to beat on T1."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from jaxtyping import Float32
from scipy.ndimage import gaussian_filter

from core.features.score_maps import masked_score_map
from core.recipes import as_json, from_json
from core.types import Monitor, ScoreMap, silent
from data.errors import BadInput
from data.json_files import read_json, write_json
from data.volume import Volume

_LEAST_FLOOR = 1e-6
"""Even with a floor of 0 no deviation is 0: nothing is divided by nothing."""


@dataclass(eq=False)
class VoxelZScore:
    """|intensity − healthy mean| / healthy standard deviation at the same place, largest over contrasts."""

    score_unit: ClassVar[str] = "healthy standard deviations"
    plain_name: ClassVar[str] = "a voxel-wise |z|"

    prior_smoothing_mm: float = 2.0
    """Smoothing of the scans before mean and deviation are taken, mm; makes up for imperfect alignment."""
    floor: float = 0.05
    """Smallest standard deviation, as a fraction of its median over the brain; keeps flat places from exploding."""
    smoothing_mm: float = 0.0
    """Standard deviation of the Gaussian smoothing of the score map, mm."""
    median_voxels: int = 0
    """Edge of the median filter of the score map, working-grid voxels; 0: none."""

    mean_: Float32[np.ndarray, "contrasts x y z"] | None = field(default=None, init=False, repr=False)
    deviation_: Float32[np.ndarray, "contrasts x y z"] | None = field(default=None, init=False, repr=False)

    def fit(self, train: Sequence[Volume], monitor: Monitor = silent) -> Self:
        """Mean and standard deviation over the subjects whose brain covers the voxel (Welford, float64)."""
        if len(train) < 2:
            raise BadInput(f"{len(train)} training volume(s): a single volume has no variance. Give at least two.")
        mean = np.zeros(train[0].voxels.shape)
        square = np.zeros_like(mean)
        count = np.zeros(train[0].grid.shape)
        for number, volume in enumerate(train, start=1):
            count += volume.brain_mask
            values = self._smooth(volume)
            step = np.where(volume.brain_mask, values - mean, 0.0)
            mean += step / np.maximum(count, 1)
            square += step * np.where(volume.brain_mask, values - mean, 0.0)
            monitor(number, {"total": float(len(train))})
        deviation = np.sqrt(square / np.maximum(count - 1, 1))
        for contrast in deviation:
            reliable = contrast[count >= max(2, len(train) // 2)]
            usual = _usual(reliable) if reliable.size else 1.0
            contrast[count < 2] = usual
            np.maximum(contrast, max(self.floor, _LEAST_FLOOR) * usual, out=contrast)
        self.mean_, self.deviation_ = mean.astype(np.float32), deviation.astype(np.float32)
        return self

    def score(self, volume: Volume) -> ScoreMap:
        """Largest |z| over the contrasts."""
        if self.mean_ is None or self.deviation_ is None:
            raise RuntimeError("This VoxelZScore is not fitted. Call fit(train), or load one from a run.")
        if volume.voxels.shape != self.mean_.shape:
            raise BadInput(
                f"Volume {volume.subject_id!r} has shape {volume.voxels.shape}, the fit {self.mean_.shape}. "
                "Prepare it with the run's own preprocessing."
            )
        z = np.abs((self._smooth(volume) - self.mean_) / self.deviation_).max(axis=0)
        return masked_score_map(
            z, volume, self.score_unit, smoothing_mm=self.smoothing_mm, median_voxels=self.median_voxels
        )

    def fitted_bytes(self, volume: Volume) -> int:
        """Disk that mean and deviation take."""
        from core.disk_plan import grid_bytes

        return grid_bytes(volume.voxels.size, arrays=2)

    def save(self, directory: Path) -> None:
        """Write recipe, mean and deviation."""
        if self.mean_ is None or self.deviation_ is None:
            raise RuntimeError("This VoxelZScore is not fitted; there is nothing to save.")
        write_json(directory / "detector.json", {"recipe": as_json(self)})
        np.save(directory / "mean.npy", self.mean_)
        np.save(directory / "deviation.npy", self.deviation_)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote."""
        detector = from_json(cls, read_json(directory / "detector.json")["recipe"])
        detector.mean_ = np.load(directory / "mean.npy", allow_pickle=False)
        detector.deviation_ = np.load(directory / "deviation.npy", allow_pickle=False)
        return detector

    def _smooth(self, volume: Volume) -> np.ndarray:
        """Smoothed inside the brain: divided by the smoothed mask, so the edge is not dimmed."""
        if self.prior_smoothing_mm <= 0:
            return np.asarray(volume.voxels)
        sigma = [self.prior_smoothing_mm / s for s in volume.grid.spacing_mm]
        weight = np.maximum(gaussian_filter(volume.brain_mask.astype(np.float32), sigma), 1e-6)
        smoothed = [gaussian_filter(c * volume.brain_mask, sigma) / weight for c in volume.voxels]
        stacked: np.ndarray = np.stack(smoothed) * volume.brain_mask
        return stacked


def _usual(deviations: np.ndarray) -> float:
    """Median deviation; of those above 0 when most places have none. BadInput when none has any."""
    median = float(np.median(deviations))
    if median > 0:
        return median
    above = deviations[deviations > 0]
    if not above.size:
        raise BadInput(
            "The training scans do not differ anywhere in the brain, so there is no deviation to measure by. "
            "Check that they are different scans, each once."
        )
    return float(np.median(above))
