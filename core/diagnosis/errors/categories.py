"""Which kind of error every wrong voxel is: disjoint, ordered categories of false positives and missed voxels.

A voxel belongs to the first category that fits, in the order of the table, so the counts add up to those of Dice.
Everything is on the working grid. The order follows what can be repaired first: masks before tissue, tissue before
the model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from scipy.ndimage import maximum_filter1d

from core.diagnosis.errors.category_table import CODES, FALSE_POSITIVES, HIT, MISSED
from core.diagnosis.errors.neighbourhoods import (
    any_at,
    bounding_box,
    component_voxels,
    offsets_within,
    squared_gradient,
    window_sums,
)
from core.diagnosis.errors.reference import HealthyReference
from core.study.cases import Case
from data.errors import BadInput

VERSION = 1
"""Counts up whenever the same case would be counted otherwise."""


@dataclass(frozen=True)
class CategorySettings:
    """Where one category ends and the next begins. The definitions in the table quote these defaults."""

    edge_mm: float = 3.0
    """Thickness of the brain's edge, mm."""
    border_share: float = 0.05
    """Share of the brain's voxels, those of steepest gradient, that counts as tissue border."""
    window_mm: float = 6.0
    """Half the edge of the cube in which scan and healthy mean are correlated, mm."""
    least_correlation: float = 0.3
    """Below it the registration is suspect."""
    small_voxels: int = 8
    """A component of fewer voxels is small; 8 is two voxels along each axis."""
    contrast_sd: float = 2.0
    """Least contrast, healthy standard deviations."""


DEFAULTS = CategorySettings()


@dataclass(frozen=True, eq=False)
class ErrorLabels:
    """Every wrong voxel of a case by category. The counts are those of `SubjectScores.counts`, split up."""

    labels: UInt8[np.ndarray, "x y z"]
    """`CODES` of the category, `HIT` for found lesion voxels, else 0."""
    hits: int
    fp: Mapping[str, int]
    """False positives by category, all categories in order."""
    fn: Mapping[str, int]
    """Missed lesion voxels by category, all categories in order."""


def label_errors(
    case: Case,
    threshold: float,
    reference: HealthyReference,
    cell_mm: float,
    settings: CategorySettings = DEFAULTS,
) -> ErrorLabels:
    """The category of every error of `score >= threshold`; `cell_mm` is the edge of a feature cell, mm.

    Brain edge: distance from the voxel's centre to the nearest cube of a voxel outside the scored brain.
    Tissue border: gradient by central differences among brain voxels, lesion voxels left out, so that neither the
    mask's rim nor the lesion itself counts as anatomy. Unusual intensity is two-sided, below q5 or above q95: most
    scores here are distances, |z| or Mahalanobis, which punish dark and bright alike, so a bright-only rule would
    leave half of the same cause under "other"; for one-sided scores the other side simply stays empty.
    Registration: correlation within a window among consensus-brain voxels without lesion, and only where the healthy
    mean varies at least as much as healthy subjects differ: a well-aligned scan is expected to reach 1/√2 there,
    whereas in flat tissue noise alone keeps the correlation near 0. Components are 26-connected.
    Low contrast and dark lesions are not told outside the consensus brain, where nothing is known to be usual.
    BadInput when case and reference are on different grids.
    """
    if not case.volume.grid.matches(reference.grid):
        raise BadInput(
            f"{case.subject_id!r} is on grid {case.volume.grid.shape}, the healthy reference on "
            f"{reference.grid.shape}. Use the reference of the same run."
        )
    if not np.isfinite(threshold) or not cell_mm > 0:
        raise BadInput(
            f"Threshold {threshold}, feature cell {cell_mm} mm. Allowed: a finite score, and more than 0 mm."
        )
    brain = np.isfinite(case.scores)
    box = bounding_box(brain | case.lesion)
    scene = _Scene.of(case, threshold, reference, cell_mm, settings, brain, box)
    cropped = np.zeros(scene.brain.shape, dtype=np.uint8)
    found = cropped.reshape(-1)
    found[np.flatnonzero(scene.segmentation & scene.lesion)] = HIT
    for ids, wrong in (
        (FALSE_POSITIVES, scene.segmentation & ~scene.lesion),
        (MISSED, scene.lesion & ~scene.segmentation),
    ):
        points = np.flatnonzero(wrong)
        found[points] = _first_match(scene, points, ids)
    labels = np.zeros(brain.shape, dtype=np.uint8)
    labels[box] = cropped
    counts = np.bincount(found[found > 0], minlength=HIT + 1).tolist()
    return ErrorLabels(
        labels,
        counts[HIT],
        {name: counts[CODES[name]] for name in FALSE_POSITIVES},
        {name: counts[CODES[name]] for name in MISSED},
    )


@dataclass(frozen=True, eq=False)
class _Scene:
    """A case and its reference, cropped to the brain and the lesion; what the rules look at."""

    image: Float32[np.ndarray, "x y z"]
    brain: Bool[np.ndarray, "x y z"]
    """The subject's scored brain."""
    lesion: Bool[np.ndarray, "x y z"]
    segmentation: Bool[np.ndarray, "x y z"]
    mean: Float32[np.ndarray, "x y z"]
    deviation: Float32[np.ndarray, "x y z"]
    low: Float32[np.ndarray, "x y z"]
    high: Float32[np.ndarray, "x y z"]
    consensus: Bool[np.ndarray, "x y z"]
    core: Bool[np.ndarray, "x y z"]
    spacing_mm: tuple[float, float, float]
    cell_mm: float
    settings: CategorySettings

    @classmethod
    def of(
        cls,
        case: Case,
        threshold: float,
        reference: HealthyReference,
        cell_mm: float,
        settings: CategorySettings,
        brain: np.ndarray,
        box: tuple[slice, slice, slice],
    ) -> "_Scene":
        inside = np.ascontiguousarray(brain[box])
        return cls(
            image=np.ascontiguousarray(case.volume.voxels[0][box]),
            brain=inside,
            lesion=np.ascontiguousarray(case.lesion[box]),
            segmentation=inside & (case.scores[box] >= threshold),
            mean=np.ascontiguousarray(reference.mean[box]),
            deviation=np.ascontiguousarray(reference.deviation[box]),
            low=np.ascontiguousarray(reference.low[box]),
            high=np.ascontiguousarray(reference.high[box]),
            consensus=np.ascontiguousarray(reference.brain[box]),
            core=np.ascontiguousarray(reference.core[box]),
            spacing_mm=case.volume.grid.spacing_mm,
            cell_mm=cell_mm,
            settings=settings,
        )


Rule = Callable[[_Scene, Int64[np.ndarray, " points"]], Bool[np.ndarray, " points"]]
"""Whether each of some voxels, given by flat index into the scene, fits the category."""


def _first_match(scene: _Scene, points: np.ndarray, ids: tuple[str, ...]) -> np.ndarray:
    codes = np.zeros(len(points), dtype=np.uint8)
    left = np.arange(len(points))
    for name in ids:
        if not len(left):
            break
        fits = _RULES[name](scene, points[left])
        codes[left[fits]] = CODES[name]
        left = left[~fits]
    return codes


def _outside_consensus_brain(scene: _Scene, points: np.ndarray) -> np.ndarray:
    outside: np.ndarray = ~scene.core.reshape(-1)[points]
    return outside


def _brain_edge(scene: _Scene, points: np.ndarray) -> np.ndarray:
    return any_at(~scene.brain, points, offsets_within(scene.settings.edge_mm, scene.spacing_mm))


def _tissue_border(scene: _Scene, points: np.ndarray) -> np.ndarray:
    steepness = squared_gradient(scene.image, scene.brain & ~scene.lesion, scene.spacing_mm)
    inside = steepness[scene.brain]
    place = min(int((1 - scene.settings.border_share) * len(inside)), len(inside) - 1)
    steep: np.ndarray = steepness.reshape(-1)[points] > np.partition(inside, place)[place]
    return steep


def _lesion_halo(scene: _Scene, points: np.ndarray) -> np.ndarray:
    near = scene.lesion.view(np.uint8)
    if not near.any():
        return np.zeros(len(points), dtype=bool)
    for axis, spacing in enumerate(scene.spacing_mm):
        steps = max(1, int(scene.cell_mm / spacing + 1e-6))
        near = maximum_filter1d(near, 2 * steps + 1, axis=axis, mode="constant")
    close: np.ndarray = near.reshape(-1)[points] > 0
    return close


def _unusual_intensity(scene: _Scene, points: np.ndarray) -> np.ndarray:
    image = scene.image.reshape(-1)[points]
    unusual: np.ndarray = (image < scene.low.reshape(-1)[points]) | (image > scene.high.reshape(-1)[points])
    return unusual


def _registration_suspect(scene: _Scene, points: np.ndarray) -> np.ndarray:
    half = [max(1, round(scene.settings.window_mm / spacing)) for spacing in scene.spacing_mm]
    usable = (scene.consensus & scene.brain & ~scene.lesion).astype(np.float32)
    fields = [usable, scene.image * usable, scene.mean * usable, scene.deviation * usable]
    pairs = ((0, 0), (1, 0), (2, 0), (1, 2), (1, 1), (2, 2), (3, 3))
    number, i, m, im, ii, mm, ss = window_sums(fields, pairs, points, half)
    number = np.maximum(number, 1)
    together, own, anatomy = im - i * m / number, ii - i * i / number, mm - m * m / number
    alike = together >= scene.settings.least_correlation * np.sqrt(np.maximum(own * anatomy, 0))
    suspect: np.ndarray = ~alike & (anatomy >= ss)
    return suspect


def _small_component(scene: _Scene, points: np.ndarray) -> np.ndarray:
    return component_voxels(scene.segmentation, points) < scene.settings.small_voxels


def _unreachable(scene: _Scene, points: np.ndarray) -> np.ndarray:
    outside: np.ndarray = ~scene.brain.reshape(-1)[points]
    return outside


def _sub_cell_lesion(scene: _Scene, points: np.ndarray) -> np.ndarray:
    mm3 = float(np.prod(scene.spacing_mm))
    return component_voxels(scene.lesion, points) * mm3 < scene.cell_mm**3 * (1 - 1e-6)


def _low_contrast(scene: _Scene, points: np.ndarray) -> np.ndarray:
    contrast, least = _contrast(scene, points)
    low: np.ndarray = np.abs(contrast) < least
    return low


def _hypo_intense(scene: _Scene, points: np.ndarray) -> np.ndarray:
    contrast, least = _contrast(scene, points)
    dark: np.ndarray = scene.consensus.reshape(-1)[points] & (contrast < 0) & (contrast <= -least)
    return dark


def _boundary_shell(scene: _Scene, points: np.ndarray) -> np.ndarray:
    faces = np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)])
    return any_at(~scene.lesion, points, faces)


def _other(scene: _Scene, points: np.ndarray) -> np.ndarray:
    return np.ones(len(points), dtype=bool)


_RULES: Mapping[str, Rule] = {
    "outside_consensus_brain": _outside_consensus_brain,
    "brain_edge": _brain_edge,
    "tissue_border": _tissue_border,
    "lesion_halo": _lesion_halo,
    "unusual_intensity": _unusual_intensity,
    "registration_suspect": _registration_suspect,
    "small_component": _small_component,
    "other_false_positive": _other,
    "unreachable": _unreachable,
    "sub_cell_lesion": _sub_cell_lesion,
    "low_contrast": _low_contrast,
    "hypo_intense": _hypo_intense,
    "boundary_shell": _boundary_shell,
    "other_missed": _other,
}


def _contrast(scene: _Scene, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intensity less healthy mean, and the least that counts; outside the consensus brain the latter is 0."""
    contrast = scene.image.reshape(-1)[points] - scene.mean.reshape(-1)[points]
    return contrast, scene.settings.contrast_sd * scene.deviation.reshape(-1)[points]
