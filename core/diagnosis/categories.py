"""Which kind of error every wrong voxel is: disjoint, ordered categories of false positives and missed voxels.

A voxel belongs to the first category that fits, in the order of the table, so the counts add up to those of Dice.
Everything is on the working grid. The order follows what can be repaired first: masks before tissue, tissue before
the model.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import cc3d
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from scipy.ndimage import maximum_filter1d

from core.diagnosis.cases import Case
from core.diagnosis.reference import HealthyReference
from data.errors import BadInput

VERSION = 1
"""Counts up whenever the same case would be counted otherwise."""
_MANY = 6
"""Running sums pay off once the boxes hold this many times the voxels of the field."""
_BLOCK = 256
"""Boxes summed at a time, so that they stay in the processor's cache."""


@dataclass(frozen=True)
class Category:
    """One kind of error, in words for a page."""

    id: str
    kind: Literal["fp", "fn", "space"]
    title: str
    definition: str
    advice: str
    """What would lower it."""


CATEGORIES: tuple[Category, ...] = (
    Category(
        "outside_consensus_brain",
        "fp",
        "Outside the consensus brain",
        "False positive outside the brain that the training scans agree on, less one voxel: skull, eyes, dura.",
        "Improve the brain extraction, or score only inside the eroded consensus brain.",
    ),
    Category(
        "brain_edge",
        "fp",
        "Brain edge",
        "False positive at most 3 mm from the edge of the subject's scored brain.",
        "Erode the scored brain by a voxel or two, or divide scores by what is usual at that distance from the edge.",
    ),
    Category(
        "tissue_border",
        "fp",
        "Tissue border",
        "False positive where the scan's own gradient is in its top 5 %: borders of ventricles, sulci and vessels.",
        "Align better (non-linearly), or smooth more; atrophied brains need training scans of their age.",
    ),
    Category(
        "lesion_halo",
        "fp",
        "Lesion halo",
        "False positive within one feature cell of the lesion, along every axis.",
        "Use a finer layer, smooth less, or raise the threshold: the lesion is found and drawn too large.",
    ),
    Category(
        "unusual_intensity",
        "fp",
        "Unusual but healthy intensity",
        "False positive where the intensity is below the 5th or above the 95th percentile of the training scans there.",
        "Add training scans like these (age, scanner), or use another intensity normalisation.",
    ),
    Category(
        "registration_suspect",
        "fp",
        "Registration suspect",
        "False positive where scan and healthy mean hardly correlate (below 0.3), though anatomy is distinct there.",
        "Look at the alignment of these scans; register with more freedom, or set them aside.",
    ),
    Category(
        "small_component",
        "fp",
        "Small component",
        "False positive in a segmented component of fewer than 8 voxels.",
        "Drop small components, or smooth the score map.",
    ),
    Category(
        "other_false_positive",
        "fp",
        "Other false positive",
        "False positive that fits none of the above.",
        "Look at these voxels: the model finds them unusual though their intensity is not.",
    ),
    Category(
        "unreachable",
        "fn",
        "Unreachable",
        "Lesion voxel outside the scored brain.",
        "Check the brain mask, the field of view and the grids: no threshold finds these.",
    ),
    Category(
        "sub_cell_lesion",
        "fn",
        "Lesion below one feature cell",
        "Missed voxel of a lesion that is smaller than one feature cell.",
        "Use a finer layer or a finer feature grid.",
    ),
    Category(
        "low_contrast",
        "fn",
        "Low contrast",
        "Missed voxel whose intensity is less than 2 healthy standard deviations from the healthy mean there.",
        "Intensity alone cannot show it: use another contrast, or features of texture and shape.",
    ),
    Category(
        "hypo_intense",
        "fn",
        "Dark lesion",
        "Missed voxel that is at least 2 healthy standard deviations darker than the healthy mean there.",
        "Use a detector that sees dark as well as bright, or a contrast in which the lesion is bright.",
    ),
    Category(
        "boundary_shell",
        "fn",
        "Lesion boundary",
        "Missed voxel on the surface of the lesion, one voxel thick.",
        "Lower the threshold or use a finer layer; also compare two raters, who differ most here.",
    ),
    Category(
        "other_missed",
        "fn",
        "Other missed",
        "Missed voxel that fits none of the above: inside a distinctly bright lesion of sufficient size.",
        "Look at its scores by layer: the model calls something usual that its intensity shows.",
    ),
)
FALSE_POSITIVES = tuple(c.id for c in CATEGORIES if c.kind == "fp")
MISSED = tuple(c.id for c in CATEGORIES if c.kind == "fn")
CODES: Mapping[str, int] = {category.id: code for code, category in enumerate(CATEGORIES, start=1)}
"""Value of each category on the label map; 0 is no error."""
HIT = len(CATEGORIES) + 1
"""Value of a lesion voxel that was found."""


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
    box = _bounding_box(brain | case.lesion)
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
    return _any_at(~scene.brain, points, _offsets_within(scene.settings.edge_mm, scene.spacing_mm))


def _tissue_border(scene: _Scene, points: np.ndarray) -> np.ndarray:
    steepness = _squared_gradient(scene.image, scene.brain & ~scene.lesion, scene.spacing_mm)
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
    return _component_voxels(scene.segmentation, points) < scene.settings.small_voxels


def _unreachable(scene: _Scene, points: np.ndarray) -> np.ndarray:
    outside: np.ndarray = ~scene.brain.reshape(-1)[points]
    return outside


def _sub_cell_lesion(scene: _Scene, points: np.ndarray) -> np.ndarray:
    mm3 = float(np.prod(scene.spacing_mm))
    return _component_voxels(scene.lesion, points) * mm3 < scene.cell_mm**3 * (1 - 1e-6)


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
    return _any_at(~scene.lesion, points, faces)


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


def _squared_gradient(image: np.ndarray, valid: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Squared gradient, per mm², by differences to valid neighbours only: central, one-sided, or 0 without any."""
    total = np.zeros(image.shape, dtype=np.float32)
    for axis, spacing in enumerate(spacing_mm):
        before, after = _ends(axis)
        both = valid[before] & valid[after]
        step = np.where(both, image[after] - image[before], np.float32(0)) / np.float32(spacing)
        slope, pairs = np.zeros(image.shape, dtype=np.float32), np.zeros(image.shape, dtype=np.uint8)
        slope[before] += step
        slope[after] += step
        pairs[before] += both
        pairs[after] += both
        slope /= np.maximum(pairs, 1)
        total += slope * slope
    return total


def _ends(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    whole = [slice(None)] * 3
    before, after = list(whole), list(whole)
    before[axis], after[axis] = slice(None, -1), slice(1, None)
    return tuple(before), tuple(after)


def window_sums(
    fields: Sequence[Float32[np.ndarray, "x y z"]],
    pairs: Sequence[tuple[int, int]],
    points: Int64[np.ndarray, " points"],
    half: Sequence[int],
) -> Float64[np.ndarray, "pairs points"]:
    """Sum of the product of two fields over the box of `half` voxels to either side of each point, for each pair.

    Beyond the ends there is nothing. Few points are summed one by one; for many, running sums along each axis give any
    box from its eight corners (Crow 1984, summed-area tables).
    """
    at = np.unravel_index(points, fields[0].shape)
    if len(points) * math.prod(2 * h + 1 for h in half) < _MANY * fields[0].size:
        return _sums_one_by_one(fields, pairs, at, half)
    corners = _corners(at, half, fields[0].shape)
    return np.stack([_sums_from_table(fields[a] * fields[b].astype(np.float64), corners) for a, b in pairs])


def _sums_one_by_one(
    fields: Sequence[np.ndarray], pairs: Sequence[tuple[int, int]], at: tuple[np.ndarray, ...], half: Sequence[int]
) -> np.ndarray:
    windows = [
        np.lib.stride_tricks.sliding_window_view(np.pad(field, [(h, h) for h in half]), [2 * h + 1 for h in half])
        for field in fields
    ]
    sums = np.zeros((len(pairs), len(at[0])))
    for start in range(0, len(at[0]), _BLOCK):
        block = tuple(a[start : start + _BLOCK] for a in at)
        found = [w[block].reshape(len(block[0]), -1).astype(np.float64) for w in windows]
        sums[:, start : start + _BLOCK] = [np.einsum("ij,ij->i", found[a], found[b]) for a, b in pairs]
    return sums


def _sums_from_table(field: np.ndarray, corners: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
    table = np.zeros([n + 1 for n in field.shape])
    table[1:, 1:, 1:] = field
    for axis in range(3):
        np.cumsum(table, axis=axis, out=table)
    sums = np.zeros(len(corners[0][1]))
    for sign, places in corners:
        sums += sign * table.reshape(-1)[places]
    return sums


def _corners(
    at: tuple[np.ndarray, ...], half: Sequence[int], shape: tuple[int, ...]
) -> list[tuple[int, Int64[np.ndarray, " points"]]]:
    """Sign and flat place, in a table one larger along every axis, of the eight corners of each box."""
    ends = [(np.maximum(a - h, 0), np.minimum(a + h + 1, n)) for a, h, n in zip(at, half, shape, strict=True)]
    larger = [n + 1 for n in shape]
    return [
        ((-1) ** (3 - x - y - z), np.ravel_multi_index((ends[0][x], ends[1][y], ends[2][z]), larger))
        for x, y, z in itertools.product((0, 1), repeat=3)
    ]


def _component_voxels(mask: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Size of the 26-connected component of the mask in which each point lies, voxels."""
    labels = np.asarray(cc3d.connected_components(mask.view(np.uint8), connectivity=26)).reshape(-1)
    sizes: np.ndarray = np.bincount(labels[np.flatnonzero(mask)])[labels[points]]
    return sizes


def _offsets_within(reach_mm: float, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Steps to every voxel whose cube comes within `reach_mm` of the centre of voxel (0, 0, 0)."""
    spacing = np.array(spacing_mm)
    most = np.ceil(reach_mm / spacing + 0.5).astype(int)
    steps = np.stack(np.meshgrid(*(np.arange(-m, m + 1) for m in most), indexing="ij"), axis=-1).reshape(-1, 3)
    gaps = np.maximum(np.abs(steps) - 0.5, 0) * spacing
    offsets: np.ndarray = steps[np.sqrt((gaps**2).sum(axis=1)) <= reach_mm + 1e-6]
    return offsets


def _any_at(mask: np.ndarray, points: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Whether the mask holds at any of the offsets from each point; beyond the ends it does."""
    reach = np.abs(offsets).max(axis=0)
    padded = np.pad(mask, [(r, r) for r in reach], constant_values=True)
    indices = np.stack(np.unravel_index(points, mask.shape))
    start = np.ravel_multi_index(tuple(indices + reach[:, None]), padded.shape)
    strides = np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
    found = np.zeros(len(points), dtype=bool)
    for step in offsets @ strides:
        found |= padded.reshape(-1)[start + step]
    return found


def _bounding_box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    if not mask.any():
        return slice(0, 1), slice(0, 1), slice(0, 1)
    spans = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    x, y, z = (slice(int(span[0]), int(span[-1]) + 1) for span in spans)
    return x, y, z
