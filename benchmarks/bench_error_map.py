"""The error map, categories and Shapley costs, against the same definitions written out plainly with scipy.

The brain is that of MNI152; scans, lesions and scores are random, so the figures speak of speed and agreement only.
One thread, process CPU time, both sides in turn. Run: python -m benchmarks --only error_map_vs_plain
"""

import itertools
import math
from typing import Any

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter, label, uniform_filter

from benchmarks.clock import side_by_side
from core.diagnosis.errors.categories import DEFAULTS, CategorySettings, ErrorLabels, label_errors
from core.diagnosis.errors.category_table import CODES, FALSE_POSITIVES, HIT, MISSED
from core.diagnosis.errors.reference import HealthyReference, healthy_reference
from core.diagnosis.errors.shapley import ShapleyCosts, shapley_costs
from core.study.cases import Case
from data.template import working_template
from data.volume import Grid, Volume

CELL_MM = 4.0


def error_map_vs_plain(
    subjects: int = 100, plain_subjects: int = 2, spacing_mm: float = 2.0, distinct: int = 10
) -> dict[str, Any]:
    """Label map, counts and costs of `subjects` cases in the MNI152 brain, 2 % of it alarms. Target 8 s for 100.

    `distinct` cases are made and taken in turn. The plain side does `plain_subjects` of them; `ratio` is per subject.
    """
    template = working_template(spacing_mm)
    reference, healthy_scans = _healthy(template)
    made = [_case(template, healthy_scans, seed) for seed in range(min(distinct, subjects))]
    cases = [made[n % len(made)] for n in range(subjects)]
    threshold = float(np.quantile(np.concatenate([c.voxels.normal for c in made]), 0.98))

    def ours() -> tuple[list[np.ndarray], ShapleyCosts]:
        found = [label_errors(case, threshold, reference, CELL_MM) for case in cases]
        return [f.labels for f in found[:plain_subjects]], shapley_costs(*_table(found))

    def plain() -> tuple[list[np.ndarray], list[list[float]]]:
        found = [plain_labels(case, threshold, reference, CELL_MM) for case in cases[:plain_subjects]]
        return found, [plain_costs(labels) for labels in found]

    timing = side_by_side(ours, plain, 3, 1)
    (labels, costs), (reference_labels, reference_costs) = timing.value, timing.reference
    each, plain_each = timing.seconds / subjects, timing.reference_seconds / plain_subjects
    return {
        "ratio": plain_each / each,
        "seconds": timing.seconds,
        "target_seconds": 8.0,
        "subjects": subjects,
        "brain_voxels": int(np.count_nonzero(template.brain_mask)),
        "ms_per_subject": each * 1e3,
        "plain_ms_per_subject": plain_each * 1e3,
        "voxels_labelled_otherwise": sum(
            int(np.count_nonzero(a != b)) for a, b in zip(labels, reference_labels, strict=True)
        ),
        "largest_cost_difference": float(np.abs(costs.cost[:plain_subjects] - np.array(reference_costs)).max()),
        "additivity_error": float(np.abs(costs.dice + costs.cost.sum(axis=1) - 1).max()),
    }


def plain_labels(
    case: Case,
    threshold: float,
    reference: HealthyReference,
    cell_mm: float,
    settings: CategorySettings = DEFAULTS,
) -> np.ndarray:
    """The label map of `label_errors`: a mask of the full grid for every category, painted last to first."""
    image, lesion, spacing = case.volume.voxels[0].astype(np.float64), case.lesion, case.volume.grid.spacing_mm
    brain = np.isfinite(case.scores)
    called = brain & (np.nan_to_num(case.scores, nan=-np.inf) >= threshold)
    steep = np.where(brain, _slope(image, brain & ~lesion, spacing), -1.0)
    cut = np.sort(steep[brain])[min(int((1 - settings.border_share) * brain.sum()), brain.sum() - 1)]
    contrast, least = image - reference.mean, settings.contrast_sd * reference.deviation.astype(np.float64)
    halo = np.ones([2 * max(1, int(cell_mm / s + 1e-6)) + 1 for s in spacing])
    lesion_mm3 = _component_sizes(lesion) * math.prod(spacing)
    masks = {
        "outside_consensus_brain": ~reference.core,
        "brain_edge": binary_dilation(~brain, _within(settings.edge_mm, spacing), border_value=1),
        "tissue_border": steep > cut,
        "lesion_halo": binary_dilation(lesion, halo),
        "unusual_intensity": (image < reference.low) | (image > reference.high),
        "registration_suspect": _unlike(image, brain & ~lesion, reference, spacing, settings),
        "small_component": _component_sizes(called) < settings.small_voxels,
        "unreachable": ~brain,
        "sub_cell_lesion": lesion_mm3 < cell_mm**3 * (1 - 1e-6),
        "low_contrast": np.abs(contrast) < least,
        "hypo_intense": reference.brain & (contrast < 0) & (contrast <= -least),
        "boundary_shell": ~binary_erosion(lesion, border_value=0),
    }
    labels = np.where(called & lesion, HIT, 0).astype(np.uint8)
    for ids, wrong in ((FALSE_POSITIVES, called & ~lesion), (MISSED, lesion & ~called)):
        for name in reversed(ids):
            labels[wrong & masks.get(name, np.ones_like(wrong))] = CODES[name]
    return labels


def plain_costs(labels: np.ndarray) -> list[float]:
    """Shapley costs of a label map by the sum over all subsets, one at a time."""
    fp = [int(np.count_nonzero(labels == CODES[name])) for name in FALSE_POSITIVES]
    fn = [int(np.count_nonzero(labels == CODES[name])) for name in MISSED]
    hits, n = int(np.count_nonzero(labels == HIT)), len(fp) + len(fn)

    def value(fixed: tuple[int, ...]) -> float:
        found = hits + sum(fn[k - len(fp)] for k in fixed if k >= len(fp))
        return 2 * found / (found + sum(fp) - sum(fp[k] for k in fixed if k < len(fp)) + hits + sum(fn))

    values = {s: value(s) for size in range(n + 1) for s in itertools.combinations(range(n), size)}
    costs = [0.0] * n
    for fixed, before in values.items():
        share = 1 / (n * math.comb(n - 1, len(fixed))) if len(fixed) < n else 0.0
        for k in set(range(n)) - set(fixed):
            costs[k] += share * (values[tuple(sorted((*fixed, k)))] - before)
    return costs


def random_case(grid: Grid, brain: np.ndarray, anatomy: np.ndarray, seed: int, n_lesions: int = 6) -> Case:
    """Anatomy shifted by a voxel with noise, a few bright, dark or faint balls as lesions, and smooth random scores."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 21])))
    image = np.roll(anatomy, 1, axis=int(rng.integers(3))) + 0.04 * rng.standard_normal(grid.shape)
    inside = np.argwhere(brain)
    lesion = np.zeros(grid.shape, dtype=bool)
    for centre in inside[rng.integers(len(inside), size=n_lesions)]:
        box = tuple(slice(max(0, c - 5), c + 6) for c in centre)
        near = np.stack(np.meshgrid(*(np.arange(n)[b] for n, b in zip(grid.shape, box, strict=True)), indexing="ij"))
        ball = ((near - centre[:, None, None, None]) ** 2).sum(axis=0) <= rng.integers(1, 25)
        lesion[box] |= ball
        image[box] += np.where(ball, rng.choice([-0.3, 0.02, 0.3]), 0.0)
    scores = gaussian_filter(rng.standard_normal(grid.shape), 0.7)
    scores = scores / scores.std() + 1.2 * gaussian_filter(lesion.astype(np.float64), 1.0)
    volume = Volume(np.where(brain, image, 0)[None].astype(np.float32), grid, brain, f"random-{seed}", ("T1",))
    return Case(volume.subject_id, False, volume, lesion, np.where(brain, scores, np.nan).astype(np.float32))


def _healthy(template: Volume) -> tuple[HealthyReference, np.ndarray]:
    anatomy = np.asarray(template.voxels[0], dtype=np.float64)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([22])))
    brain = template.brain_mask
    scans = [
        Volume(
            np.where(brain, anatomy + 0.06 * rng.standard_normal(brain.shape), 0)[None].astype(np.float32),
            template.grid,
            brain,
            f"healthy-{n}",
            ("T1",),
        )
        for n in range(12)
    ]
    return healthy_reference(scans), anatomy


def _case(template: Volume, anatomy: np.ndarray, seed: int) -> Case:
    brain = binary_dilation(template.brain_mask) if seed % 2 else template.brain_mask
    return random_case(template.grid, brain, anatomy, seed)


def _table(found: list[ErrorLabels]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.array([f.hits for f in found]),
        np.array([list(f.fp.values()) for f in found]),
        np.array([list(f.fn.values()) for f in found]),
    )


def _slope(image: np.ndarray, valid: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    total = np.zeros(image.shape)
    for axis, spacing in enumerate(spacing_mm):
        masked = np.pad(np.where(valid, image, np.nan), [(1, 1) if a == axis else (0, 0) for a in range(3)])
        masked[tuple(slice(None) if a != axis else [0, -1] for a in range(3))] = np.nan
        steps = np.diff(masked, axis=axis) / spacing
        both = np.stack([np.delete(steps, -1, axis=axis), np.delete(steps, 0, axis=axis)])
        known = np.isfinite(both)
        total += (np.where(known, both, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)) ** 2
    return total


def _within(reach_mm: float, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    half = [int(reach_mm / s + 1) for s in spacing_mm]
    structure = np.zeros([2 * h + 1 for h in half], dtype=bool)
    for place in np.ndindex(structure.shape):
        gaps = [max(abs(p - h) - 0.5, 0) * s for p, h, s in zip(place, half, spacing_mm, strict=True)]
        structure[place] = math.hypot(*gaps) <= reach_mm + 1e-6
    return structure


def _component_sizes(mask: np.ndarray) -> np.ndarray:
    components, _ = label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(components.reshape(-1))
    sizes[0] = 0
    return sizes[components]


def _unlike(
    image: np.ndarray,
    usable: np.ndarray,
    reference: HealthyReference,
    spacing_mm: tuple[float, float, float],
    settings: CategorySettings,
) -> np.ndarray:
    size = [2 * max(1, round(settings.window_mm / s)) + 1 for s in spacing_mm]
    weight = (usable & reference.brain).astype(np.float64)

    def mean_of(values: np.ndarray) -> np.ndarray:
        return uniform_filter(values * weight, size, mode="constant") / np.maximum(share, 1e-12)

    share = uniform_filter(weight, size, mode="constant")
    healthy = reference.mean.astype(np.float64)
    together = mean_of(image * healthy) - mean_of(image) * mean_of(healthy)
    own, anatomy = mean_of(image**2) - mean_of(image) ** 2, mean_of(healthy**2) - mean_of(healthy) ** 2
    distinct = anatomy >= mean_of(reference.deviation.astype(np.float64) ** 2)
    return distinct & (together < settings.least_correlation * np.sqrt(np.maximum(own * anatomy, 0)))
