"""One row per lesion of the reference: how large, how bright, where, what the grid allows, found or missed and why.

Lesions are those of core.metrics.lesions on the working grid: 26-connected, at least 27 mm³, numbered as in
lesion_report.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64
from scipy.ndimage import binary_fill_holes, distance_transform_edt

from core.diagnosis.ceiling import LesionCeiling, SubjectCeilings
from core.diagnosis.layer_cells import LayerCells
from core.metrics.healthy_threshold import segment
from core.metrics.lesions import MIN_OVERLAP, LesionRow, components, lesion_report
from core.study.cases import Case
from core.study.stored_scores import RunScores
from core.types import ScoreMap
from data.errors import BadInput
from data.template import tissue_probability, working_grid, working_template
from data.volume import Mask

LOW_CONTRAST_SD = 2.0
"""Mean contrast below this many healthy standard deviations is low (design, 5.4)."""
MIDLINE_MM = 4.0
CORTEX_MM = 15.0
"""Where the template shows neither tissue: cortex within this depth below the brain's outer surface, else deep."""
_DEEP_MM = ((0.0, 34.0), (-36.0, 24.0), (-12.0, 20.0))
"""|x|, y and z of a box around thalamus, basal ganglia and insula, MNI mm."""
_NO_TISSUE = 0.1


def lesion_table(
    case: Case,
    ceilings: SubjectCeilings,
    layers: Sequence[LayerCells],
    threshold: float,
    mean: Float32[np.ndarray, "x y z"],
    deviation: Float32[np.ndarray, "x y z"],
    layer_scores: Mapping[str, Float32[np.ndarray, "x y z"]],
    *,
    in_mni: bool = True,
) -> list[dict[str, Any]]:
    """The lesions of one subject, ready for JSON.

    `layers` are those of the run's layer set, whose `ceilings` are looked up. `threshold` is the deployed one on the
    working grid. `mean` and `deviation` are the healthy reference of the first contrast, 0 where there is none.
    `layer_scores` holds one score map per single layer: the best layer is the one with the highest AUROC of this
    lesion's voxels against the subject's voxels without lesion. `in_mni` says whether the scan lies in MNI152 space
    (core.diagnosis.placement); elsewhere no region is named. Figures that do not exist are None.
    """
    shapes = {"mean": mean.shape, "deviation": deviation.shape, **{k: v.shape for k, v in layer_scores.items()}}
    wrong = [f"{name} {shape}" for name, shape in shapes.items() if shape != case.lesion.shape]
    if wrong:
        raise BadInput(f"On another grid than {case.subject_id!r} ({case.lesion.shape}): {', '.join(wrong)}.")
    lesion = Mask(case.lesion, case.volume.grid)
    labels = components(lesion)
    n = int(labels.max(initial=0))
    score_map = ScoreMap(case.scores, case.volume.grid, case.subject_id, "")
    report = lesion_report(score_map, _touching(segment(score_map, threshold), case.lesion), lesion)
    contrast = _contrast(case, labels, n, mean, deviation)
    separation = _aurocs(layer_scores, case, labels, n)
    scored = np.bincount(labels[np.isfinite(case.scores)], minlength=n + 1)
    total = np.bincount(labels.reshape(-1), minlength=n + 1)
    allowed = {one.label: one for one in ceilings.lesions}
    return [
        {
            "subject_id": case.subject_id,
            "lesion": row.label,
            "voxel": list(row.centre_voxel),
            "mm": [round(mm, 3) for mm in row.centre_mm],
            "volume_ml": row.volume_ml,
            "contrast_sd": _number(contrast[row.label]),
            "region": region(row.centre_mm) if in_mni else None,
            **_ceiling(allowed[row.label], layers),
            **_best_layer({layer: aurocs[row.label] for layer, aurocs in separation.items()}),
            "found": row.found,
            "overlap": row.overlap,
            "max_score": row.max_score,
            "why": why(
                row, threshold, float(scored[row.label] / total[row.label]), contrast[row.label], _cell_ml(layers)
            ),
        }
        for row in report.lesions
    ]


def single_layer_scores(scores: RunScores, subject_id: str) -> dict[str, Float32[np.ndarray, "x y z"]]:
    """The subject's score map under each single layer that the run scored."""
    sets = [layers for layers in scores.layer_sets if len(layers) == 1]
    return {layers[0]: scores.score_map(subject_id, layers).scores for layers in sets}


def why(
    row: LesionRow,
    threshold: float,
    scored_share: float,
    contrast_sd: float,
    cell_ml: float,
) -> str:
    """Found, or the first reason that applies, in plain words.

    Reasons in order: it is segmented, but by a component that matches another lesion; less than half of it was scored;
    it is smaller than the finest cell of the layer set; its mean contrast is below 2 SD; no voxel reaches the
    threshold; too little of it does.
    """
    if row.found:
        return "found"
    if row.overlap >= MIN_OVERLAP:
        return f"{row.overlap:.0%} of it is segmented, by a component that counts for another lesion"
    if scored_share < 0.5:
        return f"outside the brain mask: {scored_share:.0%} of it was scored"
    if row.volume_ml < cell_ml:
        return f"smaller than a feature cell: {row.volume_ml:.2g} mL, a cell holds {cell_ml:.2g} mL"
    if np.isfinite(contrast_sd) and abs(contrast_sd) < LOW_CONTRAST_SD:
        return f"contrast below {LOW_CONTRAST_SD:g} SD: {contrast_sd:+.1f} SD against healthy scans"
    if row.max_score is not None and row.max_score < threshold:
        return f"threshold too high: its best voxel reaches {row.max_score / threshold:.0%} of the threshold"
    return f"threshold too high for most of it: {row.overlap:.0%} of it is segmented"


def region(mm: tuple[float, float, float]) -> str:
    """Side and tissue at a place of MNI152 space, in plain words; a rough guide, never a segmentation.

    Side: right for x > 4 mm, left for x < −4 mm, else midline. Tissue, the first that holds: `infratentorial` behind
    y = −36 and below a tentorium that falls to the sides, z < −12 − |x|/4, or in the brainstem's column (|x| ≤ 16,
    −44 ≤ y ≤ −12, z < −10); `deep` in a box around thalamus, basal ganglia and insula; `white matter` or `cortex edge`
    after the larger of nilearn's white and grey templates; without either, by the depth below the surface.
    """
    x, y, z = mm
    side = "midline" if abs(x) <= MIDLINE_MM else "right" if x > 0 else "left"
    return f"{side} {_tissue(x, y, z)}"


def _tissue(x: float, y: float, z: float) -> str:
    behind = y < -36 and z < -12 - abs(x) / 4
    if behind or (abs(x) <= 16 and -44 <= y <= -12 and z < -10):
        return "infratentorial"
    if all(low <= v <= high for v, (low, high) in zip((abs(x), y, z), _DEEP_MM, strict=True)):
        return "deep"
    voxel = _template_voxel(x, y, z)
    if voxel is None:
        return "cortex edge"
    grey, white = float(tissue_probability("grey")[voxel]), float(tissue_probability("white")[voxel])
    if max(grey, white) < _NO_TISSUE:
        return "cortex edge" if _depth_mm()[voxel] <= CORTEX_MM else "deep"
    return "white matter" if white > grey else "cortex edge"


def _template_voxel(x: float, y: float, z: float) -> tuple[int, int, int] | None:
    """The nearest voxel of the working grid at 2 mm, None beyond it."""
    grid = working_grid(2.0)
    inverse = np.linalg.inv(grid.affine)
    i, j, k = np.rint(inverse[:3, :3] @ np.array([x, y, z]) + inverse[:3, 3]).astype(int).tolist()
    inside = all(0 <= place < n for place, n in zip((i, j, k), grid.shape, strict=True))
    return (i, j, k) if inside else None


@functools.cache
def _depth_mm() -> Float32[np.ndarray, "x y z"]:
    """Depth below the outer surface of the template's brain, its ventricles filled."""
    template = working_template(2.0)
    solid = np.pad(binary_fill_holes(template.brain_mask), 1)
    return np.asarray(distance_transform_edt(solid, sampling=template.grid.spacing_mm)[1:-1, 1:-1, 1:-1], np.float32)


def _touching(segmentation: Mask, lesion: np.ndarray) -> Mask:
    """Components that overlap a lesion: no other can match one."""
    labels = components(segmentation)
    keep = np.zeros(int(labels.max(initial=0)) + 1, dtype=bool)
    keep[np.unique(labels[lesion])] = True
    keep[0] = False
    return Mask(keep[labels], segmentation.grid)


def _contrast(
    case: Case, labels: np.ndarray, n: int, mean: np.ndarray, deviation: np.ndarray
) -> Float64[np.ndarray, " lesions"]:
    """Mean (I − μ)/σ over each lesion's voxels that have a healthy reference; NaN where none has."""
    known = np.flatnonzero((labels > 0) & case.volume.brain_mask & (deviation > 0))
    image, usual, spread = (a.reshape(-1)[known].astype(np.float64) for a in (case.volume.voxels[0], mean, deviation))
    return _means((image - usual) / spread, labels.reshape(-1)[known], n)


def _aurocs(
    layer_scores: Mapping[str, Float32[np.ndarray, "x y z"]], case: Case, labels: np.ndarray, n: int
) -> dict[str, Float64[np.ndarray, " lesions"]]:
    """AUROC of each lesion's scored voxels against all scored voxels without lesion, per layer; ties count half."""
    inside = np.isfinite(case.scores)
    tissue, marked = np.flatnonzero(inside & ~case.lesion), np.flatnonzero(inside & (labels > 0))
    numbers = labels.reshape(-1)[marked]
    found = {layer: np.full(n + 1, np.nan) for layer in layer_scores}
    for layer, scores in layer_scores.items() if len(tissue) else ():
        normal, mine = np.sort(scores.reshape(-1)[tissue]), scores.reshape(-1)[marked]
        below = np.searchsorted(normal, mine, side="left") + np.searchsorted(normal, mine, side="right")
        found[layer] = _means(below / (2.0 * len(normal)), numbers, n)
    return found


def _means(values: np.ndarray, labels: np.ndarray, n: int) -> Float64[np.ndarray, " lesions"]:
    """Mean per label, 0 to n; NaN where there is no value."""
    count = np.bincount(labels, minlength=n + 1)
    total = np.bincount(labels, weights=values, minlength=n + 1)
    means: np.ndarray = np.divide(total, count, out=np.full(n + 1, np.nan), where=count > 0)
    return means


def _ceiling(allowed: LesionCeiling, layers: Sequence[LayerCells]) -> dict[str, Any]:
    """The highest ceiling of the layer set and the first layer that has it."""
    best = max((layer.layer for layer in layers), key=lambda name: allowed.layers[name].best)
    return {"ceiling": allowed.layers[best].best, "ceiling_layer": best}


def _best_layer(aurocs: Mapping[str, float]) -> dict[str, Any]:
    known = {layer: float(value) for layer, value in aurocs.items() if np.isfinite(value)}
    best = max(known, key=lambda name: known[name], default=None)
    return {"best_layer": best, "best_layer_auroc": None if best is None else known[best]}


def _cell_ml(layers: Sequence[LayerCells]) -> float:
    """Volume of the finest cell; 0 for scores on the voxels themselves, which nothing is smaller than."""
    finest = min(layers, key=lambda layer: float(np.prod(layer.cell_mm)))
    return 0.0 if finest.upsampler is None else float(np.prod(finest.cell_mm)) / 1000.0


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
