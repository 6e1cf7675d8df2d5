"""Post-processing of a score map: smoothing, median, erosion of the brain, smallest component; and what each leaves."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import cc3d
import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from scipy.ndimage import distance_transform_cdt, distance_transform_edt

from core.detectors.capabilities import LayerSets, can
from core.features.score_maps import masked_score_map, to_score_map
from core.metrics.subject_scores import SubjectScores
from core.study.cases import Case
from core.study.stored_scores import RunScores
from core.types import LayerSet
from data.prepared import Prepared
from data.volume import Volume

_MEDIAN_ROWS = 8192
Filters = tuple[float, int, int]
"""Smoothing in mm, edge of the median, erosion."""


@dataclass(frozen=True)
class PostProcessing:
    """One combination; all zeros leave the score map and the segmentation as they are."""

    smoothing_mm: float = 0.0
    """Standard deviation of the Gaussian, mm."""
    median_voxels: int = 0
    """Edge of the cubic median, working-grid voxels; 0: none."""
    erosion_voxels: int = 0
    """Layers of 6-neighbours (taxicab, not Euclidean mm) by which the brain is eroded; scores there are dropped."""
    min_component_mm3: float = 0.0
    """Smallest volume of a segmented component (26-connected), mm³."""


@dataclass(frozen=True)
class Counts:
    """What a setting and a threshold do to one subject."""

    hits: int
    alarms: int
    missed: int
    components: int
    """Segmented components that are left."""
    voxel_ml: float

    @property
    def dice(self) -> float | None:
        """None for a subject without lesion."""
        return 2.0 * self.hits / (2 * self.hits + self.alarms + self.missed) if self.hits + self.missed else None

    @property
    def false_ml(self) -> float:
        """Volume called lesion that is not, mL."""
        return self.alarms * self.voxel_ml


def apply(scores: RunScores, case: Case, layers: LayerSet, settings: PostProcessing) -> Float32[np.ndarray, "x y z"]:
    """The case's score map under other settings, NaN outside the eroded brain; starts from the unprocessed distances.

    The component filter needs a threshold: see `count`.
    """
    values = _smoothed(scores, case.subject_id, layers, case.volume, settings.smoothing_mm)
    brain = case.volume.brain_mask
    if settings.median_voxels > 1:
        values = np.array(values)
        values[brain] = _Median(brain).filter(values, settings.median_voxels)
    if settings.erosion_voxels:
        kept = np.zeros(brain.shape, dtype=bool)
        kept[brain] = _depth(brain) > settings.erosion_voxels
        values = np.where(kept, values, np.float32(np.nan))
    return values


def segmentation(
    processed: Float32[np.ndarray, "x y z"], threshold: float, min_component_mm3: float, voxel_mm3: float
) -> Bool[np.ndarray, "x y z"]:
    """Voxels whose score is at least the threshold, in components of at least `min_component_mm3`."""
    called: np.ndarray = np.nan_to_num(processed, nan=-np.inf) >= threshold
    if min_component_mm3 <= 0:
        return called
    labels = cc3d.connected_components(called, connectivity=26)
    keep = _large_enough(np.bincount(labels.reshape(-1)), voxel_mm3, min_component_mm3)
    kept: np.ndarray = keep[labels]
    return kept


def count(
    case: Case, processed: Float32[np.ndarray, "x y z"], threshold: float, min_component_mm3: float = 0.0
) -> Counts:
    """Hits, false alarms and misses of one case at a threshold, component filter included: what a slider shows."""
    box = Box.of(case.subject_id, case.healthy, case.volume, case.lesion)
    values = processed[case.volume.brain_mask]
    return box.counts(np.nan_to_num(values, nan=-np.inf), threshold, [min_component_mm3])[0]


def every_count(
    scores: RunScores,
    layers: LayerSet,
    subject_id: str,
    thresholds: Mapping[Filters, Sequence[float]],
    min_volumes_mm3: Sequence[float],
) -> dict[Filters, dict[float, list[Counts]]]:
    """Counts of one subject for many combinations: per (smoothing, median, erosion) and threshold, one for each size.

    Each filter runs once for all erosions and sizes, and one labelling serves all sizes.
    """
    box, depth, maps = maps_of(scores, layers, subject_id, {(s, m) for s, m, _ in thresholds})
    found = {}
    for (smoothing, median, erosion), cuts in thresholds.items():
        values = np.where(depth > erosion, maps[smoothing, median], -np.inf)
        found[smoothing, median, erosion] = {t: box.counts(values, t, min_volumes_mm3) for t in cuts}
    return found


@dataclass(frozen=True, eq=False)
class Box:
    """A subject's brain in its bounding box: where its voxels are, how deep, and which are lesion."""

    subject_id: str
    healthy: bool
    shape: tuple[int, ...]
    flat: Int64[np.ndarray, " brain"]
    """Place of each brain voxel in the box."""
    lesion: Bool[np.ndarray, " brain"]
    n_lesion: int
    """Lesion voxels, those outside the brain included."""
    voxel_mm3: float

    @classmethod
    def of(cls, subject_id: str, healthy: bool, volume: Volume, lesion: Bool[np.ndarray, "x y z"]) -> "Box":
        brain = volume.brain_mask
        places = np.argwhere(brain)
        corner = places.min(axis=0)
        shape = tuple(int(n) for n in places.max(axis=0) - corner + 1)
        flat = np.ravel_multi_index(tuple((places - corner).T), shape)
        marked = lesion[brain]
        return cls(subject_id, healthy, shape, flat, marked, int(lesion.sum()), volume.grid.voxel_volume_mm3)

    def voxels(self, values: Float32[np.ndarray, " brain"], kept: Bool[np.ndarray, " brain"]) -> SubjectScores:
        """For the metrics; lesion voxels that are not kept are unreachable."""
        anomalous = values[kept & self.lesion]
        return SubjectScores(
            self.subject_id,
            self.healthy,
            values[kept & ~self.lesion],
            anomalous,
            self.voxel_mm3 / 1000,
            self.n_lesion - len(anomalous),
        )

    def counts(
        self, values: Float32[np.ndarray, " brain"], threshold: float, min_volumes: Sequence[float]
    ) -> list[Counts]:
        """Counts of `value >= threshold` for every smallest component, from one labelling."""
        called = np.flatnonzero(values >= threshold)
        dense = np.zeros(self.shape, dtype=bool)
        dense.reshape(-1)[self.flat[called]] = True
        labels = np.ascontiguousarray(cc3d.connected_components(dense, connectivity=26)).reshape(-1)
        label = labels[self.flat[called]]
        sizes = np.bincount(label, minlength=1)
        lesion = np.bincount(label[self.lesion[called]], minlength=len(sizes))
        rows = []
        for smallest in min_volumes:
            keep = _large_enough(sizes, self.voxel_mm3, smallest)
            hits, total = int(lesion[keep].sum()), int(sizes[keep].sum())
            rows.append(Counts(hits, total - hits, self.n_lesion - hits, int(keep.sum()), self.voxel_mm3 / 1000))
        return rows


def _large_enough(sizes: np.ndarray, voxel_mm3: float, smallest_mm3: float) -> np.ndarray:
    """Which labels are components of that volume; label 0 never is. The rule of core.metrics.lesions.components."""
    keep: np.ndarray = sizes * voxel_mm3 >= smallest_mm3 * (1 - 1e-9)
    keep &= sizes > 0
    keep[0] = False
    return keep


class _Median:
    """Cubic medians of one brain's voxels; bit for bit what core.features.score_maps makes, at brain voxels only.

    A neighbour outside the brain stands in with the value of its nearest brain voxel. The middle of each
    neighbourhood is found by partition, which is several times faster than the rank filter of scipy.
    """

    def __init__(self, brain: Bool[np.ndarray, "x y z"]) -> None:
        self._nearest = tuple(distance_transform_edt(~brain, return_distances=False, return_indices=True))
        self._places = np.argwhere(brain)

    def filter(self, values: Float32[np.ndarray, "x y z"], size: int) -> Float32[np.ndarray, " brain"]:
        padded = np.pad(values[self._nearest], ((size // 2, size - 1 - size // 2),) * 3, mode="edge")
        strides = np.array(padded.strides) // padded.itemsize
        offsets = np.indices((size,) * 3).reshape(3, -1).T @ strides
        corners, flat, middle = self._places @ strides, padded.reshape(-1), size**3 // 2
        out = np.empty(len(corners), dtype=np.float32)
        for start in range(0, len(corners), _MEDIAN_ROWS):
            block = flat[corners[start : start + _MEDIAN_ROWS, None] + offsets]
            block.partition(middle, axis=1)
            out[start : start + _MEDIAN_ROWS] = block[:, middle]
        return out


def _depth(brain: Bool[np.ndarray, "x y z"]) -> UInt8[np.ndarray, " brain"]:
    """Steps to the nearest voxel outside (beyond the grid counts as outside): erosion k keeps depths above k."""
    steps = distance_transform_cdt(np.pad(brain, 1), metric="taxicab")[1:-1, 1:-1, 1:-1]
    depth: np.ndarray = np.minimum(steps[brain], 255).astype(np.uint8)
    return depth


def _smoothed(
    scores: RunScores, subject_id: str, layers: LayerSet, volume: Volume, smoothing_mm: float
) -> Float32[np.ndarray, "x y z"]:
    """The score map with this smoothing and no median, exactly as the recipe's own field would make it."""
    detector = scores.detector
    if not can(detector, LayerSets):
        stored = scores.score_map(subject_id, layers).scores
        return masked_score_map(stored, volume, scores.unit, smoothing_mm=smoothing_mm).scores
    assert scores.layout is not None
    row = np.array(scores.distances(subject_id)[scores.layer_sets.index(layers)])
    return to_score_map(row, scores.layout, volume, scores.unit, smoothing_mm=smoothing_mm).scores


def _marked(prepared: Prepared) -> np.ndarray:
    lesion = prepared.lesion
    return np.zeros(prepared.volume.grid.shape, dtype=bool) if lesion is None else lesion.voxels


def maps_of(
    scores: RunScores, layers: LayerSet, subject_id: str, maps: Collection[tuple[float, int]]
) -> tuple[Box, np.ndarray, dict[tuple[float, int], np.ndarray]]:
    """A subject's brain, the depth of its voxels, and its in-brain scores under several (smoothing, median)."""
    prepared = scores.prepared(subject_id)
    volume, brain = prepared.volume, prepared.volume.brain_mask
    box = Box.of(subject_id, scores.is_healthy(subject_id), volume, _marked(prepared))
    median = _Median(brain) if any(size > 1 for _, size in maps) else None
    found = {}
    for smoothing, sizes in itertools.groupby(sorted(maps), key=lambda m: m[0]):
        values = _smoothed(scores, subject_id, layers, volume, smoothing)
        for _, size in sizes:
            wanted = values[brain] if size < 2 or median is None else median.filter(values, size)
            found[smoothing, size] = wanted
    return box, _depth(brain), found
