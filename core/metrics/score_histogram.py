"""Histograms of scores on fixed bins, so that curves of different subjects add and re-render without rescoring.

A bin is a run of float32 bit patterns: 2048 bins per octave from 2⁻¹² to 2²⁰, relative width 4.9e-4. There is no
minimum-maximum pass, so two histograms always share their bins. Every figure *at a bin edge* is exact: `score >= edge`
is a statement about whole bins. Scores are distances, so they must not be negative.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64

from data.errors import BadInput, IntegrityError

N_BINS = 65_536
SHIFT = 12
"""Mantissa bits that a bin does not see: 2^(23 − 12) bins per octave."""
LOWEST = float(2.0**-12)
_BASE = int(np.array(LOWEST, dtype=np.float32).view(np.int32))
_TOP = _BASE + (N_BINS << SHIFT)
_INFINITY = int(np.array(np.inf, dtype=np.float32).view(np.int32))
_CHUNK = 1 << 19


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """How many normal and anomalous voxels fall into each bin. Additive over subjects; 1 MB."""

    normal: Int64[np.ndarray, " bins"]
    anomalous: Int64[np.ndarray, " bins"]
    unreachable: int = 0
    """Lesion voxels that were never scored; they count as missed in every Dice."""

    @classmethod
    def of(
        cls, scores: Float32[np.ndarray, " voxels"], lesion: Bool[np.ndarray, " voxels"], unreachable: int = 0
    ) -> Self:
        """Histogram of in-brain scores; `lesion` says which voxels are anomalous."""
        if scores.shape != lesion.shape:
            raise BadInput(f"Scores {scores.shape} and lesion mask {lesion.shape} differ in shape. Give one per voxel.")
        everything = bin_counts(scores)
        anomalous = bin_counts(scores.reshape(-1)[np.flatnonzero(lesion)])
        return cls(everything - anomalous, anomalous, unreachable)

    @classmethod
    def of_classes(
        cls, normal: Float32[np.ndarray, " n"], anomalous: Float32[np.ndarray, " a"], unreachable: int = 0
    ) -> Self:
        """Histogram of scores that are already apart."""
        return cls(bin_counts(normal), bin_counts(anomalous), unreachable)

    def __add__(self, other: "ScoreHistogram") -> "ScoreHistogram":
        return ScoreHistogram(
            self.normal + other.normal, self.anomalous + other.anomalous, self.unreachable + other.unreachable
        )

    def __sub__(self, other: "ScoreHistogram") -> "ScoreHistogram":
        return ScoreHistogram(
            self.normal - other.normal, self.anomalous - other.anomalous, self.unreachable - other.unreachable
        )

    @property
    def n_lesion(self) -> int:
        """Lesion voxels, unreachable ones included."""
        return int(self.anomalous.sum()) + self.unreachable

    @property
    def clamped_fraction(self) -> float:
        """Share of voxels in the first or last bin, where the curve has no resolution."""
        total = int(self.normal.sum() + self.anomalous.sum())
        ends = int(self.normal[[0, -1]].sum() + self.anomalous[[0, -1]].sum())
        return ends / total if total else 0.0

    def true_positives(self) -> Int64[np.ndarray, " bins"]:
        """Lesion voxels with score ≥ edge, for every edge."""
        return _at_least(self.anomalous)

    def false_positives(self) -> Int64[np.ndarray, " bins"]:
        """Normal voxels with score ≥ edge, for every edge."""
        return _at_least(self.normal)

    def dice_curve(self) -> Float64[np.ndarray, " bins"]:
        """Dice of `score >= edge` for every edge, exact. BadInput without lesion voxels: Dice is undefined."""
        hits = self.true_positives()
        lesion = int(hits[0]) + self.unreachable
        if lesion == 0:
            raise BadInput("No lesion voxel: Dice is undefined. Leave healthy scans out, report their false positives.")
        alarms = _at_least(self.normal)
        alarms += hits
        alarms += lesion
        curve: np.ndarray = hits * 2.0 / alarms
        return curve

    def best_dice(self) -> tuple[float, float]:
        """Highest Dice over bin edges, and the edge. Within about 1e-4 of the best over all cut points."""
        curve = self.dice_curve()
        best = int(curve.argmax())
        return float(curve[best]), float(edges()[best])

    def average_precision(self) -> "Bracket":
        """Average precision over scored voxels, and bounds that hold whatever the order inside the bins.

        The value expects both classes evenly mixed inside a bin: Σⱼ (T+j) / (T+j+F+jn/(p+1)), as a midpoint integral.
        """
        p, n, before, wrong = self._descending()
        total = p.sum()
        if total == 0:
            return Bracket(None, None, None)
        high = (p * (before + p) / (before + p + wrong)).sum() / total
        low = (p - (wrong + n) * np.log1p(p / (before + wrong + n))).sum() / total
        slope, start = 1 + n / (p + 1), before + wrong
        curved = np.log1p(slope * p / (start + 0.5 * slope)) * (before - start / slope) / slope
        value = (p / slope + curved).sum() / total
        return Bracket(float(np.clip(value, low, high)), float(low), float(high))

    def auroc(self) -> "Bracket":
        """Area under the ROC over scored voxels, and bounds that hold whatever the order inside the bins."""
        positives, negatives = float(self.anomalous.sum()), float(self.normal.sum())
        if positives == 0 or negatives == 0:
            return Bracket(None, None, None)
        below = np.cumsum(self.normal) - self.normal
        pairs = positives * negatives
        value = float((self.anomalous * (below + self.normal / 2)).sum() / pairs)
        slack = float((self.anomalous.astype(np.float64) * self.normal).sum() / (2 * pairs))
        return Bracket(value, value - slack, value + slack)

    def save(self, path: Path) -> None:
        """Write the non-empty bins as npz (a few kB to a few hundred kB)."""
        bins = np.flatnonzero(self.normal + self.anomalous)
        np.savez(
            path,
            layout=np.array([N_BINS, SHIFT, _BASE], dtype=np.int64),
            bins=bins.astype(np.uint16),
            normal=self.normal[bins],
            anomalous=self.anomalous[bins],
            unreachable=np.array(self.unreachable, dtype=np.int64),
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. IntegrityError when it is something else."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                layout, bins = stored["layout"].tolist(), stored["bins"]
                normal, anomalous = np.zeros(N_BINS, np.int64), np.zeros(N_BINS, np.int64)
                normal[bins], anomalous[bins] = stored["normal"], stored["anomalous"]
                unreachable = int(stored["unreachable"])
        except (ValueError, KeyError, OSError, BadZipFile) as error:
            raise IntegrityError(f"{path} is not a score histogram: {error}. Score the run again.") from error
        if layout != [N_BINS, SHIFT, _BASE]:
            raise IntegrityError(f"{path} has other bins ({layout}). Score the run again.")
        return cls(normal, anomalous, unreachable)

    def _descending(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Bins with lesion voxels, best score first: positives, negatives, and both counts above the bin."""
        p, n = self.anomalous[::-1].astype(np.float64), self.normal[::-1].astype(np.float64)
        before, wrong = np.cumsum(p) - p, np.cumsum(n) - n
        keep = p > 0
        return p[keep], n[keep], before[keep], wrong[keep]


@dataclass(frozen=True)
class Bracket:
    """A figure from a histogram and the bounds of the exact one; None when undefined."""

    value: float | None
    low: float | None
    high: float | None


def edges() -> Float32[np.ndarray, " bins"]:
    """Lower edge of every bin: the thresholds at which curves are exact. The first is 0."""
    bits = _BASE + (np.arange(N_BINS, dtype=np.int32) << SHIFT)
    values: np.ndarray = bits.view(np.float32).copy()
    values[0] = 0.0
    return values


def snap(threshold: float) -> float:
    """The bin edge at or below a threshold."""
    bits = int(np.array(max(threshold, 0.0), dtype=np.float32).view(np.int32))
    return float(edges()[min(max((bits - _BASE) >> SHIFT, 0), N_BINS - 1)])


def bin_counts(scores: Float32[np.ndarray, " voxels"]) -> Int64[np.ndarray, " bins"]:
    """Voxels per bin. BadInput on NaN, infinity or a negative score."""
    flat = np.ascontiguousarray(scores, dtype=np.float32).reshape(-1)
    bits = flat.view(np.int32)
    counts = torch.zeros(N_BINS, dtype=torch.int64)
    keys = np.empty(min(_CHUNK, len(bits)), dtype=np.int32)
    for start in range(0, len(bits), _CHUNK):
        chunk = bits[start : start + _CHUNK]
        low, high = int(chunk.min()), int(chunk.max())
        if low < 0 or high >= _INFINITY:
            chunk = _checked(flat[start : start + _CHUNK])
        key = keys[: len(chunk)]
        np.right_shift(chunk, SHIFT, out=key)
        np.subtract(key, _BASE >> SHIFT, out=key)
        if low < _BASE or high >= _TOP:
            np.clip(key, 0, N_BINS - 1, out=key)
        counts += torch.bincount(torch.from_numpy(key), minlength=N_BINS)
    result: np.ndarray = counts.numpy()
    return result


def pooled(histograms: Sequence[ScoreHistogram]) -> ScoreHistogram:
    """All subjects as one: every voxel weighs the same, so large lesions lead."""
    total = empty()
    for histogram in histograms:
        total = total + histogram
    return total


def mean_dice_curve(histograms: Sequence[ScoreHistogram]) -> Float64[np.ndarray, " bins"]:
    """Mean over lesion-bearing subjects of Dice at every edge; subjects without lesion are left out."""
    bearing = [h for h in histograms if h.n_lesion > 0]
    if not bearing:
        raise BadInput("No subject with a lesion: mean Dice is undefined. Add labelled subjects.")
    total = np.zeros(N_BINS)
    for histogram in bearing:
        total += histogram.dice_curve()
    return total / len(bearing)


def empty() -> ScoreHistogram:
    """The histogram of nobody."""
    return ScoreHistogram(np.zeros(N_BINS, np.int64), np.zeros(N_BINS, np.int64))


def _at_least(counts: np.ndarray) -> np.ndarray:
    return np.cumsum(counts[::-1])[::-1]


def _checked(chunk: np.ndarray) -> np.ndarray:
    """Bit patterns of the chunk with −0 as 0; BadInput when a score is negative or not finite."""
    if not np.isfinite(chunk).all() or (chunk < 0).any():
        raise BadInput(
            "Scores contain NaN, infinity or negative values. Allowed: finite distances of 0 or more, "
            "inside the brain. Shift a baseline that can be negative."
        )
    bits: np.ndarray = np.abs(chunk).view(np.int32)
    return bits
