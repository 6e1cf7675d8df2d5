"""What smoothing, a median, an eroded brain mask and a smallest component do to Dice, for every combination.

Chosen on validation, quoted on test, in pairs against the run's own setting. Everything is counted on the working
grid, and lesion voxels that a setting puts out of reach are missed, so erosion cannot cheat.

Order: distances are interpolated, smoothed (Gaussian SD, mm), filtered by a cubic median, cut to the eroded brain,
thresholded, and components below the smallest volume are dropped (26-connected, as in core.metrics.lesions).

Erosion counts layers of 6-neighbours (taxicab); the what-if `erode-mask` counts Euclidean mm.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float32

from core.detectors.capabilities import LayerSets, can
from core.diagnosis.postprocessing_table import (
    N_CANDIDATES,
    VERSION,
    SearchStudy,
    filters_of,
    recipe_text,
    result_table,
    shipped_settings,
)
from core.disk_plan import post_processing_bytes
from core.metrics.protocols import best_common_threshold, healthy_rule
from core.metrics.subject_scores import SubjectScores
from core.progress import Progress
from core.recipes import has_setting
from core.runs.evaluated import read_metrics
from core.runs.run_record import Run
from core.runs.stages import record_duration, stage, stage_directory, stage_name, stored_json, undamaged
from core.runs.store import lock
from core.study.map_filters import Box, Filters, PostProcessing, every_count, maps_of
from core.study.stored_scores import RunScores, open_scores, set_id
from data.errors import BadInput, EnvironmentProblem
from data.files import manifest_sha256
from data.json_files import write_json
from data.ranges import check_range
from data.room import require_room
from data.workers import Died, shared_out

SMOOTHING_MM = (0.0, 2.0, 4.0)
MEDIAN_VOXELS = (0, 3, 5)
EROSION_VOXELS = (0, 1, 2)
MIN_COMPONENT_MM3 = (0.0, 27.0, 100.0, 300.0, 1000.0)
_LARGEST_SHARE, _SMALLEST_SHARE = 0.25, 1e-5
"""Candidates exceed between a quarter and a hundred-thousandth of the voxels, in equal steps of the logarithm."""

Mapped = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
"""What `map` does, here or in other processes."""


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
        study = SearchStudy(str(run.directory), layers, metrics["quantile"], metrics["fp_ml_per_scan"], axes)
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
        result = result_table(scores, study, chosen, subjects)
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
    own = filters_of(scores)
    names = ("smoothing_mm", "median_voxels")
    has = has_setting(scores.detector, names[0])
    sayable = has and (can(scores.detector, LayerSets) or not any(own.values()))
    fields = {n: getattr(settings, n) for n in names if sayable and getattr(settings, n) != own[n]}
    missing = {n: v for n, v in asdict(settings).items() if n not in (names if sayable else ()) and v}
    flags = [word for n, v in fields.items() for word in (f"--{n.replace('_', '-')}", f"{v:g}")]
    return {
        "shipped": asdict(before),
        "settings": asdict(settings),
        "fields": fields,
        "argv": flags,
        "without_field": missing,
        "text": recipe_text(fields, missing),
    }


def _axes(scores: RunScores) -> dict[str, tuple[float, ...]]:
    """The grid, widened by what the run itself does."""
    own = shipped_settings(scores)
    return {
        "smoothing_mm": tuple(sorted({*SMOOTHING_MM, own.smoothing_mm})),
        "median_voxels": tuple(sorted({*MEDIAN_VOXELS, own.median_voxels})),
        "erosion_voxels": EROSION_VOXELS,
        "min_component_mm3": MIN_COMPONENT_MM3,
    }


def _choose_job(job: tuple[SearchStudy, tuple[float, int]]) -> dict[Filters, dict[str, Any]]:
    """Thresholds of one (smoothing, median), for every erosion and component size, and their validation Dice.

    Holds the in-brain scores of calibration and labelled validation subjects: 4 bytes a voxel.
    """
    study, one = job
    scores = study.open()
    held = {
        role: [
            (box, depth, maps[one])
            for box, depth, maps in (maps_of(scores, study.layers, i, [one]) for i in scores.subjects(role))
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
    kept: Sequence[tuple[Box, np.ndarray]],
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


def _mean_dice(kept: Sequence[tuple[Box, np.ndarray]], threshold: float, min_volumes: Sequence[float]) -> list[float]:
    counts = [box.counts(values, threshold, min_volumes) for box, values in kept]
    return [float(np.mean([row[m].dice for row in counts])) for m in range(len(min_volumes))]


def _thresholds(chosen: Mapping[Filters, Any]) -> dict[Filters, list[list[float]]]:
    """Per processed map and component size: the threshold of each protocol."""
    return {
        one: [[c["healthy"], *([] if c["validation"] is None else [c["validation"][m]["threshold"]])] for m in range(n)]
        for one, c in chosen.items()
        for n in [len(c["healthy_dice"])]
    }


def _judge_job(job: tuple[SearchStudy, str, Mapping[Filters, list[list[float]]]]) -> dict[str, Any]:
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
