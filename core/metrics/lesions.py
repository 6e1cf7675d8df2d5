"""Lesions as objects: which were found, which alarms are false, and where to look for both.

Components are 26-connected; those below `min_volume_mm3` are dropped from the segmentation and ignored in the
reference. A segmented component may match a lesion when it covers at least 10 % of it or their IoU is at least 0.25.
Matching is one-to-one with the largest total IoU (Hungarian algorithm); what stays unmatched is a missed lesion or a
false positive, except segmented components that lie on an ignored reference component, which are ignored too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
from jaxtyping import Int32
from scipy.optimize import linear_sum_assignment

from core.types import ScoreMap
from data.errors import BadInput
from data.volume import Grid, Mask

MIN_VOLUME_MM3 = 27.0
MIN_OVERLAP = 0.10
MIN_IOU = 0.25
SIZE_BINS_ML: tuple[tuple[str, float, float], ...] = (
    ("< 0.1 mL", 0.0, 0.1),
    ("0.1 to 1 mL", 0.1, 1.0),
    ("1 to 10 mL", 1.0, 10.0),
    ("≥ 10 mL", 10.0, float("inf")),
)


@dataclass(frozen=True)
class LesionRow:
    """One lesion of the reference."""

    label: int
    volume_ml: float
    centre_voxel: tuple[int, int, int]
    """The voxel of the lesion that is nearest to its centroid."""
    centre_mm: tuple[float, float, float]
    max_score: float | None
    """None when no voxel of the lesion was scored."""
    mean_score: float | None
    found: bool
    overlap: float
    """Share of the lesion that is segmented, whatever the component."""
    iou: float
    """IoU with the matched component, 0 when missed."""


@dataclass(frozen=True)
class FalsePositiveRow:
    """One segmented component that matches no lesion."""

    label: int
    volume_ml: float
    max_score: float | None
    peak_voxel: tuple[int, int, int]
    peak_mm: tuple[float, float, float]
    touches_lesion: bool
    """A fragment of an imperfect detection rather than an alarm in healthy tissue."""


@dataclass(frozen=True)
class LesionReport:
    """Lesion-wise result of one subject; lesions in reference order, false positives by falling score."""

    subject_id: str
    lesions: tuple[LesionRow, ...]
    false_positives: tuple[FalsePositiveRow, ...]
    recall: float | None
    precision: float | None
    f1: float | None
    ignored_lesions: int
    min_volume_mm3: float

    @property
    def missed(self) -> tuple[LesionRow, ...]:
        """Lesions that no component matched, largest first."""
        return tuple(sorted((r for r in self.lesions if not r.found), key=lambda r: -r.volume_ml))


def lesion_report(
    score_map: ScoreMap, segmentation: Mask, lesion: Mask, *, min_volume_mm3: float = MIN_VOLUME_MM3
) -> LesionReport:
    """Match the components of a segmentation to those of the reference."""
    for name, mask in (("Segmentation", segmentation), ("Lesion mask", lesion)):
        if not mask.grid.matches(score_map.grid):
            raise BadInput(
                f"{name} and score map of {score_map.subject_id!r} are on different grids. Resample onto one of them."
            )
    found = components(segmentation, min_volume_mm3=min_volume_mm3)
    reference = components(lesion, min_volume_mm3=min_volume_mm3)
    ignored = lesion.voxels & (reference == 0)
    pairs = _match(found, reference)
    lesions = tuple(_lesion_row(score_map, reference, found, label, pairs) for label in _labels(reference))
    matched = set(pairs.values())
    alarms = [
        _false_positive(score_map, found, label, lesion)
        for label in _labels(found)
        if label not in matched and not ignored[found == label].any()
    ]
    alarms.sort(key=lambda r: -np.inf if r.max_score is None else r.max_score, reverse=True)
    hits = len(pairs)
    return LesionReport(
        score_map.subject_id,
        lesions,
        tuple(alarms),
        *rates(hits, len(lesions) - hits, len(alarms)),
        ignored_lesions=int(cc3d.connected_components(ignored, connectivity=26).max(initial=0)),
        min_volume_mm3=min_volume_mm3,
    )


def components(mask: Mask, *, min_volume_mm3: float = MIN_VOLUME_MM3) -> Int32[np.ndarray, "x y z"]:
    """26-connected components of at least `min_volume_mm3`, numbered from 1 without gaps."""
    labels = np.asarray(cc3d.connected_components(mask.voxels.astype(np.uint8), connectivity=26), dtype=np.int32)
    volumes = np.bincount(labels.reshape(-1)) * mask.grid.voxel_volume_mm3
    keep = volumes >= min_volume_mm3 * (1 - 1e-9)
    keep[0] = False
    renumbered = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    kept: np.ndarray = renumbered[labels]
    return kept


def recall_by_size(reports: Sequence[LesionReport]) -> dict[str, dict[str, Any]]:
    """Lesions, found lesions and recall in each size bin, over all subjects."""
    rows = [row for report in reports for row in report.lesions]
    table: dict[str, dict[str, Any]] = {}
    for name, low, high in SIZE_BINS_ML:
        found = [row.found for row in rows if low <= row.volume_ml < high]
        table[name] = {"n": len(found), "found": sum(found), "recall": sum(found) / len(found) if found else None}
    return table


def summarise(reports: Sequence[LesionReport]) -> dict[str, Any]:
    """Lesion-wise figures over all lesions of all subjects, ready for JSON."""
    hits = sum(row.found for report in reports for row in report.lesions)
    missed = sum(len(report.lesions) for report in reports) - hits
    alarms = sum(len(report.false_positives) for report in reports)
    recall, precision, f1 = rates(hits, missed, alarms)
    return {
        "n_lesions": hits + missed,
        "found": hits,
        "recall": recall,
        "precision": precision,
        "f1": f1,
        "false_positives_per_scan": alarms / len(reports) if reports else None,
        "recall_by_size": recall_by_size(reports),
        "rule": f"26-connected, at least {MIN_VOLUME_MM3:g} mm³; overlap ≥ {MIN_OVERLAP:.0%} or IoU ≥ {MIN_IOU:g}; "
        "one-to-one by largest total IoU",
    }


def healthy_false_positives(segmentations: Mapping[str, Mask]) -> dict[str, Any]:
    """False positives of healthy scans: mL and components per scan, and how many scans have none. Never a Dice."""
    ml = {i: mask.volume_ml for i, mask in segmentations.items()}
    counts = {i: int(components(mask).max(initial=0)) for i, mask in segmentations.items()}
    n = len(segmentations)
    return {
        "n": n,
        "ml_per_scan": sum(ml.values()) / n if n else None,
        "components_per_scan": sum(counts.values()) / n if n else None,
        "fraction_without_voxel": sum(v == 0 for v in ml.values()) / n if n else None,
        "scans": {i: {"ml": ml[i], "components": counts[i]} for i in segmentations},
    }


def rates(hits: int, missed: int, alarms: int) -> tuple[float | None, float | None, float | None]:
    """Recall, precision and F1 from counts; None where the denominator is 0."""
    return (
        hits / (hits + missed) if hits + missed else None,
        hits / (hits + alarms) if hits + alarms else None,
        2 * hits / (2 * hits + missed + alarms) if hits + missed + alarms else None,
    )


def _match(found: np.ndarray, reference: np.ndarray) -> dict[int, int]:
    """Lesion label -> component label, one-to-one, of largest total IoU among allowed pairs."""
    n_found, n_reference = int(found.max(initial=0)), int(reference.max(initial=0))
    if n_found == 0 or n_reference == 0:
        return {}
    joint = np.bincount(
        reference.reshape(-1).astype(np.int64) * (n_found + 1) + found.reshape(-1),
        minlength=(n_reference + 1) * (n_found + 1),
    ).reshape(n_reference + 1, n_found + 1)
    common = joint[1:, 1:]
    lesion, component = joint[1:].sum(axis=1, keepdims=True), joint[:, 1:].sum(axis=0, keepdims=True)
    iou = common / (lesion + component - common)
    allowed = (common / lesion >= MIN_OVERLAP) | (iou >= MIN_IOU)
    rows, columns = linear_sum_assignment(np.where(allowed, iou, 0.0), maximize=True)
    return {int(r) + 1: int(c) + 1 for r, c in zip(rows, columns, strict=True) if allowed[r, c]}


def _lesion_row(
    score_map: ScoreMap, reference: np.ndarray, found: np.ndarray, label: int, pairs: dict[int, int]
) -> LesionRow:
    inside = reference == label
    voxels = np.argwhere(inside)
    centre = _voxel(voxels[np.linalg.norm(voxels - voxels.mean(axis=0), axis=1).argmin()])
    scores = score_map.scores[inside]
    scores = scores[np.isfinite(scores)]
    component = found == pairs[label] if label in pairs else np.zeros_like(inside)
    return LesionRow(
        label=label,
        volume_ml=len(voxels) * score_map.grid.voxel_volume_mm3 / 1000,
        centre_voxel=centre,
        centre_mm=_mm(score_map.grid, centre),
        max_score=float(scores.max()) if len(scores) else None,
        mean_score=float(scores.mean(dtype=np.float64)) if len(scores) else None,
        found=label in pairs,
        overlap=float((found[inside] > 0).mean()),
        iou=float((inside & component).sum() / (inside | component).sum()),
    )


def _false_positive(score_map: ScoreMap, found: np.ndarray, label: int, lesion: Mask) -> FalsePositiveRow:
    voxels = np.argwhere(found == label)
    scores = np.nan_to_num(score_map.scores[tuple(voxels.T)], nan=-np.inf)
    peak = _voxel(voxels[scores.argmax()])
    return FalsePositiveRow(
        label=label,
        volume_ml=len(voxels) * score_map.grid.voxel_volume_mm3 / 1000,
        max_score=float(scores.max()) if np.isfinite(scores.max()) else None,
        peak_voxel=peak,
        peak_mm=_mm(score_map.grid, peak),
        touches_lesion=bool(lesion.voxels[tuple(voxels.T)].any()),
    )


def _labels(labels: np.ndarray) -> range:
    return range(1, int(labels.max(initial=0)) + 1)


def _voxel(index: np.ndarray) -> tuple[int, int, int]:
    return int(index[0]), int(index[1]), int(index[2])


def _mm(grid: Grid, voxel: tuple[int, int, int]) -> tuple[float, float, float]:
    x, y, z = grid.affine[:3, :3] @ np.array(voxel) + grid.affine[:3, 3]
    return float(x), float(y), float(z)
