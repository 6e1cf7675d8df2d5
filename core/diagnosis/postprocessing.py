"""What smoothing, a median, an eroded brain mask and a smallest component do to Dice, for every combination.

Chosen on validation, quoted on test, in pairs against the run's own setting. Everything is counted on the working
grid, and lesion voxels that a setting puts out of reach are missed, so erosion cannot cheat.

Order: distances are interpolated, smoothed (Gaussian SD, mm), filtered by a cubic median, cut to the eroded brain,
thresholded, and components below the smallest volume are dropped (26-connected, as in core.lesions).

Erosion counts layers of 6-neighbours (taxicab); the what-if `erode-mask` counts Euclidean mm.
"""

import contextlib
import functools
import itertools
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from scipy.ndimage import distance_transform_cdt, distance_transform_edt

from core.bootstrap import mean_interval, paired_difference
from core.detectors import LAYERED, LayerSet
from core.diagnosis.cases import Case
from core.disk_plan import post_processing_bytes
from core.evaluation import read_metrics
from core.metrics import SubjectScores, best_common_threshold, healthy_rule
from core.progress import Progress
from core.run_scores import RunScores, open_scores, set_id
from core.scoring import masked_score_map, to_score_map
from core.store import (
    Run,
    lock,
    open_run,
    record_duration,
    stage,
    stage_directory,
    stage_name,
    stored_json,
    undamaged,
)
from data.errors import BadInput, EnvironmentProblem
from data.files import manifest_sha256, write_json
from data.preprocessing import Prepared
from data.ranges import check_range
from data.room import require_room
from data.volume import Volume
from data.workers import Died, shared_out

VERSION = 1
"""Counts up whenever the same scores would give other figures."""
SMOOTHING_MM = (0.0, 2.0, 4.0)
MEDIAN_VOXELS = (0, 3, 5)
EROSION_VOXELS = (0, 1, 2)
MIN_COMPONENT_MM3 = (0.0, 27.0, 100.0, 300.0, 1000.0)
PROTOCOLS = ("healthy", "validation")
N_CANDIDATES = 56
"""Thresholds tried per processed map with the component filter, beside the exact optimum without it."""
_LARGEST_SHARE, _SMALLEST_SHARE = 0.25, 1e-5
"""Candidates exceed between a quarter and a hundred-thousandth of the voxels, in equal steps of the logarithm."""
_MEDIAN_ROWS = 8192

Filters = tuple[float, int, int]
"""Smoothing in mm, edge of the median, erosion."""
Mapped = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
"""What `map` does, here or in other processes."""


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
    box = _Box.of(case.subject_id, case.healthy, case.volume, case.lesion)
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
    box, depth, maps = _maps_of(scores, layers, subject_id, {(s, m) for s, m, _ in thresholds})
    found = {}
    for (smoothing, median, erosion), cuts in thresholds.items():
        values = np.where(depth > erosion, maps[smoothing, median], -np.inf)
        found[smoothing, median, erosion] = {t: box.counts(values, t, min_volumes_mm3) for t in cuts}
    return found


def run_post_processing(
    run: Run, progress: Progress, *, layer_set: str | None = None, workers: int = 2
) -> dict[str, Any]:
    """Judge every combination for a layer set (the headline's by default), commit the result, and return it.

    The healthy threshold is the evaluation's own rule on the processed calibration maps, before the component filter.
    The validation threshold has the best mean Dice on the processed validation maps: exact without the filter; with it
    the best of 56 candidates, of the exact optimum without it, and of the healthy threshold. `candidate_loss` is what
    the candidates alone lose where the exact optimum is known. A result that fits the evaluation is not made again.
    Without a test lesion the test figures are None; without validation labels nothing is chosen.
    """
    check_range("workers", workers)
    scores, metrics = open_scores(run), read_metrics(run)
    layers = scores.layer_set(layer_set or metrics["headline"])
    name = set_id(layers)
    if (stored := undamaged(lambda: stored_post_processing(run, name), progress.say)) is not None:
        progress.say(f"Post-processing of {name} is there already.")
        return stored
    test, axes = scores.subjects("test"), _axes(scores)
    combinations = math.prod(map(len, axes.values()))
    require_room(run.directory, post_processing_bytes(combinations, len(test)), "Post-processing")
    began = time.perf_counter()
    with lock(run) as run, _workers(workers) as mapped:
        study = _Study(str(run.directory), layers, metrics["quantile"], metrics["fp_ml_per_scan"], axes)
        heavy_first = sorted(study.maps, key=lambda m: -m[1])
        chosen: dict[Filters, dict[str, Any]] = {}
        with progress.task("Post-processing, thresholds", len(heavy_first)) as advance:
            for found in mapped(_choose_job, [(study, m) for m in heavy_first]):
                chosen |= found
                advance(1)
        subjects = []
        thresholds = _thresholds(chosen)
        with progress.task("Post-processing, test subjects", len(test)) as advance:
            for judged in mapped(_judge_job, [(study, i, thresholds) for i in test]):
                subjects.append(judged)
                advance(1, judged["subject_id"])
        result = _result(scores, study, chosen, subjects)
        result |= {"key": _key(run)}
        with stage(run, stage_name("post-processing", name)) as scratch:
            write_json(scratch / "result.json", result)
        record_duration(run, stage_name("post-processing", name), began)
    return result


def stored_post_processing(run: Run, layer_set: str | None = None) -> dict[str, Any] | None:
    """The committed result of a layer set (the headline's by default).

    None when there is none, or it belongs to another evaluation. IntegrityError when its bytes are damaged.
    """
    layers = open_scores(run).layer_set(layer_set or read_metrics(run)["headline"])
    result: dict[str, Any] | None = stored_json(run, stage_name("post-processing", set_id(layers)))
    return result if result is not None and result.get("key") == _key(run) else None


def find_row(result: Mapping[str, Any], settings: PostProcessing) -> dict[str, Any]:
    """The row of one combination. BadInput lists what was tried when it was not."""
    wanted = asdict(settings)
    for row in result["rows"]:
        if all(row[key] == value for key, value in wanted.items()):
            return dict(row)
    tried = "; ".join(f"{key} {', '.join(f'{v:g}' for v in values)}" for key, values in result["axes"].items())
    raise BadInput(f"{wanted} was not tried. There is: {tried}.")


def recipe_changes(run: Run, settings: PostProcessing) -> dict[str, Any]:
    """How a combination is said in a recipe: `fields` with flags of `cli.py fit`, and `without_field` that have none.

    `argv` are the words to add to the run's own `fit` command. What a detector smooths by itself already is not part
    of `settings`, so then there is no field that would do the same, and `without_field` says so.
    """
    scores = open_scores(run)
    before = shipped_settings(scores)
    own = _own_filters(scores)
    names = ("smoothing_mm", "median_voxels")
    sayable = isinstance(scores.detector, LAYERED) or not any(own.values())
    fields = {n: getattr(settings, n) for n in names if sayable and getattr(settings, n) != own[n]}
    missing = {n: v for n, v in asdict(settings).items() if n not in (names if sayable else ()) and v}
    flags = [word for n, v in fields.items() for word in (f"--{n.replace('_', '-')}", f"{v:g}")]
    return {
        "shipped": asdict(before),
        "settings": asdict(settings),
        "fields": fields,
        "argv": flags,
        "without_field": missing,
        "text": _recipe_text(fields, missing),
    }


def shipped_settings(scores: RunScores) -> PostProcessing:
    """What the run itself does. Detectors that store finished maps are taken as they are: all zeros."""
    if not isinstance(scores.detector, LAYERED):
        return PostProcessing()
    own = _own_filters(scores)
    return PostProcessing(float(own["smoothing_mm"]), int(own["median_voxels"]))


@dataclass(frozen=True)
class _Study:
    """What every job needs to know; crosses processes."""

    directory: str
    layers: LayerSet
    quantile: float
    fp_ml_per_scan: float | None
    axes: Mapping[str, tuple[float, ...]]

    @property
    def maps(self) -> list[tuple[float, int]]:
        """Every (smoothing, median): what has to be filtered anew."""
        return [(s, int(m)) for s, m in itertools.product(self.axes["smoothing_mm"], self.axes["median_voxels"])]

    def open(self) -> RunScores:
        path = Path(self.directory)
        return open_scores(open_run(path.parent, path.name))


@dataclass(frozen=True, eq=False)
class _Box:
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
    def of(cls, subject_id: str, healthy: bool, volume: Volume, lesion: Bool[np.ndarray, "x y z"]) -> "_Box":
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
    """Which labels are components of that volume; label 0 never is. The rule of core.lesions.components."""
    keep: np.ndarray = sizes * voxel_mm3 >= smallest_mm3 * (1 - 1e-9)
    keep &= sizes > 0
    keep[0] = False
    return keep


class _Median:
    """Cubic medians of one brain's voxels; bit for bit what core.scoring makes, at brain voxels only.

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
    if not isinstance(detector, LAYERED):
        stored = scores.score_map(subject_id, layers).scores
        return masked_score_map(stored, volume, scores.unit, smoothing_mm=smoothing_mm).scores
    assert scores.layout is not None
    row = np.array(scores.distances(subject_id)[scores.layer_sets.index(layers)])
    return to_score_map(row, scores.layout, volume, scores.unit, smoothing_mm=smoothing_mm).scores


def _own_filters(scores: RunScores) -> dict[str, float]:
    detector = scores.detector
    return {"smoothing_mm": float(detector.smoothing_mm), "median_voxels": int(detector.median_voxels)}


def _axes(scores: RunScores) -> dict[str, tuple[float, ...]]:
    """The grid, widened by what the run itself does."""
    own = shipped_settings(scores)
    return {
        "smoothing_mm": tuple(sorted({*SMOOTHING_MM, own.smoothing_mm})),
        "median_voxels": tuple(sorted({*MEDIAN_VOXELS, own.median_voxels})),
        "erosion_voxels": EROSION_VOXELS,
        "min_component_mm3": MIN_COMPONENT_MM3,
    }


def _marked(prepared: Prepared) -> np.ndarray:
    lesion = prepared.lesion
    return np.zeros(prepared.volume.grid.shape, dtype=bool) if lesion is None else lesion.voxels


def _maps_of(
    scores: RunScores, layers: LayerSet, subject_id: str, maps: Collection[tuple[float, int]]
) -> tuple[_Box, np.ndarray, dict[tuple[float, int], np.ndarray]]:
    """A subject's brain, the depth of its voxels, and its in-brain scores under several (smoothing, median)."""
    prepared = scores.prepared(subject_id)
    volume, brain = prepared.volume, prepared.volume.brain_mask
    box = _Box.of(subject_id, scores.is_healthy(subject_id), volume, _marked(prepared))
    median = _Median(brain) if any(size > 1 for _, size in maps) else None
    found = {}
    for smoothing, sizes in itertools.groupby(sorted(maps), key=lambda m: m[0]):
        values = _smoothed(scores, subject_id, layers, volume, smoothing)
        for _, size in sizes:
            wanted = values[brain] if size < 2 or median is None else median.filter(values, size)
            found[smoothing, size] = wanted
    return box, _depth(brain), found


def _choose_job(job: tuple[_Study, tuple[float, int]]) -> dict[Filters, dict[str, Any]]:
    """Thresholds of one (smoothing, median), for every erosion and component size, and their validation Dice.

    Holds the in-brain scores of calibration and labelled validation subjects: 4 bytes a voxel.
    """
    study, one = job
    scores = study.open()
    held = {
        role: [
            (box, depth, maps[one])
            for box, depth, maps in (_maps_of(scores, study.layers, i, [one]) for i in scores.subjects(role))
            if role == "calibration" or box.n_lesion
        ]
        for role in ("calibration", "validation")
    }
    found: dict[Filters, dict[str, Any]] = {}
    for erosion in EROSION_VOXELS:
        calibration = [box.voxels(values, depth > erosion) for box, depth, values in held["calibration"]]
        rule = healthy_rule(calibration, quantile=study.quantile, fp_ml_per_scan=study.fp_ml_per_scan)
        kept = [(box, np.where(depth > erosion, values, -np.inf)) for box, depth, values in held["validation"]]
        voxels = [box.voxels(values, depth > erosion) for box, depth, values in held["validation"]]
        choice = _choice(voxels, kept, rule.threshold, study.axes["min_component_mm3"])
        found[(*one, erosion)] = {"healthy": rule.threshold, **choice}
    return found


def _choice(
    voxels: Sequence[SubjectScores],
    kept: Sequence[tuple[_Box, np.ndarray]],
    healthy: float,
    min_volumes: Sequence[float],
) -> dict[str, Any]:
    """Per component size: validation Dice at the healthy threshold, and the best threshold with its Dice."""
    if not any(len(v.anomalous) for v in voxels):
        return {"healthy_dice": [None] * len(min_volumes), "validation": None, "candidate_loss": None}
    exact, exact_dice = best_common_threshold(voxels)
    tried = sorted({*_candidates(voxels).tolist(), exact, healthy})
    dice = np.array([_mean_dice(kept, t, min_volumes) for t in tried])
    rows = [(tried[b], float(dice[b, m])) for m, b in enumerate(dice.argmax(axis=0))]
    rows = [(exact, exact_dice) if smallest <= 0 else row for smallest, row in zip(min_volumes, rows, strict=True)]
    blind = [t != exact for t in tried]
    return {
        "healthy_dice": dice[tried.index(healthy)].tolist(),
        "validation": [{"threshold": t, "dice": d} for t, d in rows],
        "candidate_loss": exact_dice - float(dice[blind, 0].max(initial=0.0)),
    }


def _candidates(voxels: Sequence[SubjectScores]) -> Float32[np.ndarray, " candidates"]:
    """Thresholds that a falling share of the validation voxels reaches, in equal steps of its logarithm."""
    pooled = np.concatenate([np.concatenate([v.normal, v.anomalous]) for v in voxels])
    shares = np.geomspace(_LARGEST_SHARE, _SMALLEST_SHARE, N_CANDIDATES)
    places = np.clip((shares * len(pooled)).astype(int), 0, len(pooled) - 1)
    falling = -np.partition(-pooled, places)
    cuts: np.ndarray = falling[places]
    return cuts


def _mean_dice(kept: Sequence[tuple[_Box, np.ndarray]], threshold: float, min_volumes: Sequence[float]) -> list[float]:
    counts = [box.counts(values, threshold, min_volumes) for box, values in kept]
    return [float(np.mean([row[m].dice for row in counts])) for m in range(len(min_volumes))]


def _thresholds(chosen: Mapping[Filters, Any]) -> dict[Filters, list[list[float]]]:
    """Per processed map and component size: the threshold of each protocol."""
    return {
        one: [[c["healthy"], *([] if c["validation"] is None else [c["validation"][m]["threshold"]])] for m in range(n)]
        for one, c in chosen.items()
        for n in [len(c["healthy_dice"])]
    }


def _judge_job(job: tuple[_Study, str, Mapping[Filters, list[list[float]]]]) -> dict[str, Any]:
    """One test subject: per filters and component size, the counts under each protocol."""
    study, subject_id, thresholds = job
    scores = study.open()
    every = {one: sorted({t for row in wanted for t in row}) for one, wanted in thresholds.items()}
    counted = every_count(scores, study.layers, subject_id, every, study.axes["min_component_mm3"])
    rows = {
        one: [[counted[one][t][m] for t in row] for m, row in enumerate(wanted)] for one, wanted in thresholds.items()
    }
    anyone = next(iter(rows.values()))[0][0]
    return {
        "subject_id": subject_id,
        "healthy": scores.is_healthy(subject_id),
        "lesion": anyone.hits + anyone.missed > 0,
        "rows": rows,
    }


def _result(
    scores: RunScores, study: _Study, chosen: Mapping[Filters, Any], subjects: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    rows = _rows(study, chosen, subjects)
    shipped = asdict(shipped_settings(scores))
    base = next(row for row in rows if _settings(row) == shipped)
    losses = [c["candidate_loss"] for c in chosen.values() if c["candidate_loss"] is not None]
    protocols = PROTOCOLS if losses else PROTOCOLS[:1]
    for row in rows:
        for protocol in (p for p in protocols if row[p] is not None and base[p] is not None):
            _pair(row[protocol], base[protocol])
    result = {
        "version": VERSION,
        "run_id": scores.run.run_id,
        "layer_set": set_id(study.layers),
        "unit": scores.unit,
        "space": "working",
        "quantile": study.quantile,
        "fp_ml_per_scan": study.fp_ml_per_scan,
        "axes": {name: list(values) for name, values in study.axes.items()},
        "test_subjects": [s["subject_id"] for s in subjects if s["lesion"]],
        "healthy_subjects": [s["subject_id"] for s in subjects if s["healthy"]],
        "n_validation": len(scores.subjects("validation")) if losses else 0,
        "rows": rows,
        "candidates": N_CANDIDATES,
        "candidate_loss": max(losses) if losses else None,
        "shipped": {protocol: _quoted(base, protocol) for protocol in protocols},
        "best_on_validation": {p: _best(rows, p, "validation_dice", shipped) for p in protocols} if losses else None,
        "best_on_test": {p: {**best, "oracle": True} for p in protocols if (best := _best(rows, p, "dice", shipped))},
    }
    return result | {"optimism": _optimism(result), "notes": _notes(scores, result, losses)}


def _rows(study: _Study, chosen: Mapping[Filters, Any], subjects: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    axes = study.axes
    rows = []
    for smoothing, median, erosion, (m, smallest) in itertools.product(
        axes["smoothing_mm"], axes["median_voxels"], axes["erosion_voxels"], enumerate(axes["min_component_mm3"])
    ):
        one = (smoothing, int(median), int(erosion))
        choice = chosen[one]
        row: dict[str, Any] = {
            "smoothing_mm": smoothing,
            "median_voxels": int(median),
            "erosion_voxels": int(erosion),
            "min_component_mm3": smallest,
            "healthy": {"threshold": choice["healthy"], "validation_dice": choice["healthy_dice"][m]},
            "validation": None,
        }
        if choice["validation"] is not None:
            best = choice["validation"][m]
            row["validation"] = {"threshold": best["threshold"], "validation_dice": best["dice"]}
        for p, protocol in enumerate(PROTOCOLS):
            if row[protocol] is not None:
                row[protocol] |= _figures([(s, s["rows"][one][m][p]) for s in subjects])
        rows.append(row)
    return rows


def _figures(judged: Sequence[tuple[Mapping[str, Any], Counts]]) -> dict[str, Any]:
    dice = [d for _, counts in judged if (d := counts.dice) is not None]
    healthy = [counts for subject, counts in judged if subject["healthy"]]
    mean = mean_interval(dice, seed=0, purpose="dice")
    return {
        "dice": mean.mean,
        "low": mean.low,
        "high": mean.high,
        "n": mean.n,
        "false_ml": float(np.mean([c.false_ml for c in healthy])) if healthy else None,
        "false_components": float(np.mean([c.components for c in healthy])) if healthy else None,
        "subjects": dice,
    }


def _pair(figures: dict[str, Any], base: Mapping[str, Any]) -> None:
    """Adds the paired gain over the run's own setting, with its interval."""
    gain = paired_difference(figures["subjects"], base["subjects"], seed=0)
    figures |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}


def _settings(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in asdict(PostProcessing())}


def _quoted(row: Mapping[str, Any], protocol: str) -> dict[str, Any]:
    figures = {key: value for key, value in row[protocol].items() if key != "subjects"}
    return {"settings": _settings(row), "protocol": protocol, **figures}


def _best(
    rows: Sequence[Mapping[str, Any]], protocol: str, figure: str, shipped: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The row with the highest figure; among equals the one that changes least, then the first."""
    rated = [row for row in rows if row[protocol] is not None and row[protocol][figure] is not None]
    if not rated:
        return None

    def rank(row: Mapping[str, Any]) -> tuple[float, int]:
        return float(row[protocol][figure]), -sum(row[name] != value for name, value in shipped.items())

    return _quoted(max(rated, key=rank), protocol)


def _optimism(result: Mapping[str, Any]) -> dict[str, float | None]:
    """What choosing the combination on the test labels would add over choosing it on validation."""
    chosen, oracle = result["best_on_validation"] or {}, result["best_on_test"]
    return {p: oracle[p]["dice"] - chosen[p]["dice"] for p in oracle if chosen.get(p)}


def _notes(scores: RunScores, result: Mapping[str, Any], losses: Sequence[float]) -> list[str]:
    notes = []
    if not losses:
        notes.append(
            "Missing: lesion masks of validation subjects. Nothing can be chosen honestly; the figures at the healthy "
            "threshold stand, and the best on test is an oracle."
        )
    else:
        notes.append(
            f"With the component filter {N_CANDIDATES} thresholds are tried; without it, where the exact optimum is "
            f"known, these alone lose at most {max(losses):.4f} mean validation Dice."
        )
        notes.append(
            f"The best of {len(result['rows'])} combinations on validation is optimistic there; only its test figures "
            "are quoted as a gain."
        )
    if not result["test_subjects"]:
        notes.append("There is no test subject with a lesion: no Dice and no gain, only false positives.")
    if edges := _at_the_edge(result):
        notes.append(f"The best on validation is the largest value tried of {', '.join(edges)}: more may be better.")
    notes.append(
        "Erosion is counted in layers of 6-neighbours (taxicab); the what-if erode-mask counts Euclidean mm, so "
        "the two do not leave out the same voxels."
    )
    notes.append("Healthy thresholds are taken before the component filter, so filtered maps lie below their target.")
    if not isinstance(scores.detector, LAYERED) and any(_own_filters(scores).values()):
        notes.append("This detector stores maps that it has filtered itself; the settings come on top of that.")
    return notes


def _at_the_edge(result: Mapping[str, Any]) -> list[str]:
    """Settings of which the best on validation, under any protocol, is the largest that was tried."""
    best = [b["settings"] for b in (result["best_on_validation"] or {}).values()]
    return [name for name, values in result["axes"].items() if any(s[name] == values[-1] for s in best)]


def _recipe_text(fields: Mapping[str, float], missing: Mapping[str, float]) -> str:
    said = ", ".join(f"{name} = {value:g}" for name, value in fields.items())
    unsaid = ", ".join(f"{name} = {value:g}" for name, value in missing.items())
    parts = [f"In the recipe: {said}." if said else "Nothing to change in the recipe."]
    if unsaid:
        parts.append(f"No recipe field yet for {unsaid}: only this exploration applies it.")
    return " ".join(parts)


def _key(run: Run) -> str:
    """Changes with the evaluation that the figures belong to, and with this module's own version."""
    return f"{VERSION} {manifest_sha256(stage_directory(run, 'evaluation'))}"


@contextlib.contextmanager
def _workers(n: int) -> Iterator[Mapped]:
    """`mapped(work, jobs)`: results in the order of the jobs, from processes of one thread each; one worker: here."""
    yield map if n < 2 else functools.partial(_in_processes, n)


def _in_processes(n: int, work: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
    waiting: dict[int, Any] = {}
    following = 0
    dead: Died | None = None
    for number, outcome in shared_out(work, [(job,) for job in jobs], n, threads=1):
        if isinstance(outcome, Died):
            dead = outcome
            continue
        waiting[number] = outcome
        while following in waiting:
            yield waiting.pop(following)
            following += 1
    if dead is not None:
        raise EnvironmentProblem(f"Post-processing is not complete: {dead.cause}, then run again.")
