"""What if one thing had been done otherwise: paired re-evaluation of a run, subject by subject, stored with the run.

Both sides of a pair are working-grid Dice of the same subjects, each at its own threshold, found by the same
protocol on its own calibration or validation maps. Which variant is best is decided on validation subjects only.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.detectors.capabilities import Covariance, KeepsPatches, OnlyRanks, can
from core.diagnosis.what_if.bench import Bench, Outcome
from core.diagnosis.what_if.of_fits import ages_of, covariance, fewer_scans, nearest_age
from core.diagnosis.what_if.of_maps import calibrate_subject, dont_care, erode_mask, label_boundary, threshold_grid
from core.diagnosis.what_if.of_scans import register, renormalise, shift
from core.diagnosis.what_if.paired import PROTOCOLS
from core.disk_plan import what_if_bytes
from core.progress import Progress
from core.runs.evaluated import read_metrics
from core.runs.run_record import Run
from core.runs.stages import stage_beside, stage_directory, stage_done, stage_name, stored_json, undamaged
from core.runs.store import append_event
from core.study.again import what_if_argv
from core.study.run_scans import scored_subjects
from core.study.stored_scores import RunScores, open_scores, set_id
from core.types import LayerSet
from data.errors import BadInput, IntegrityError
from data.files import manifest_sha256
from data.json_files import write_json
from data.room import require_room

_MAP_SECONDS = 0.15
"""Reading one stored score map and its scan at 2 mm: for estimates in words only."""


def run_what_if(
    run: Run,
    name: str,
    progress: Progress,
    *,
    layer_set: str | None = None,
    protocol: str = "healthy",
) -> dict[str, Any]:
    """Carry out one what-if of the catalogue on a run and commit `whatifs/<layer set>/<name>/result.json`.

    `layer_set` is the headline's when not given. Gains under both threshold protocols are always computed and
    stored; `protocol` is recorded. A stored result of the same evaluation is given back.
    BadInput when the what-if does not apply to this run, naming those that do.
    """
    scores, layers = _asked(run, name, layer_set, protocol)
    directory = stage_directory(run, _stage(layers, name))
    key = _key(run, name)
    stored = undamaged(lambda: _read(run, layers, name), progress.say)
    if stored is not None and stored["key"] == key:
        progress.say(f"{stored['title']}: stored already in {directory}.")
        return stored
    require_room(run.directory, what_if_bytes(len(scores.subjects("test"))), f"What-if {name}", at_most=True)
    began = time.perf_counter()
    what_if = CATALOGUE[name]
    outcome = what_if.compute(_bench(run, scores, layers, progress))
    result = {
        "name": name,
        "title": what_if.title,
        "layer_set": set_id(layers),
        "formula": what_if.formula,
        "causes": list(what_if.causes),
        "needs_labels": all(variant["needs_labels"] for variant in outcome.variants),
        "deployable": any(variant["deployable"] for variant in outcome.variants),
        "argv": what_if_argv(run.run_id, name, set_id(layers), protocol),
        "protocol": protocol,
        "key": key,
        "variants": outcome.variants,
        "notes": outcome.notes,
        **outcome.extra,
    }
    with stage_beside(run, _stage(layers, name)) as scratch:
        write_json(scratch / "result.json", result)
    seconds = round(time.perf_counter() - began, 3)
    append_event(run, "what-if", {"name": name, "layer_set": set_id(layers), "seconds": seconds})
    return result


def stored_what_ifs(run: Run, layer_set: str, damaged: list[str] | None = None) -> list[dict[str, Any]]:
    """Stored results of one layer set that belong to the run's present evaluation, in the catalogue's order.

    What is damaged is said in `damaged` and left out; without that list the first one raises IntegrityError.
    """
    if not stage_done(run, "evaluation"):
        return []
    layers = open_scores(run).layer_set(layer_set)
    found = []
    for name in CATALOGUE:
        try:
            result = _read(run, layers, name)
        except IntegrityError as error:
            if damaged is None:
                raise
            damaged.append(str(error))
            continue
        if result is not None and result["key"] == _key(run, name):
            found.append(result)
    return found


def applicable(run: Run) -> list[dict[str, Any]]:
    """Every what-if of the catalogue with title, formula, whether it applies to this run, what is missing, its cost."""
    scores = open_scores(run)
    common = _missing_in(run, scores)
    rows = []
    for name, what_if in CATALOGUE.items():
        missing = common or what_if.missing(scores)
        rows.append(
            {
                "name": name,
                "title": what_if.title,
                "formula": what_if.formula,
                "causes": list(what_if.causes),
                "applies": missing is None,
                "missing": missing,
                "cost_text": _cost_text(run, what_if.cost),
            }
        )
    return rows


def best_deployable(results: Sequence[Mapping[str, Any]], protocol: str = "healthy") -> dict[str, Any] | None:
    """The deployable variant with the highest gain on VALIDATION subjects under a protocol, and what it gives on test.

    The test gain plays no part in the choice. None when no deployable variant gains on validation, or when there
    are no labelled validation subjects to choose on.
    """
    best: dict[str, Any] | None = None
    for result in results:
        for variant in result["variants"]:
            chosen_on, judged = variant["validation_by_protocol"][protocol], variant["test"][protocol]
            if not variant["deployable"] or chosen_on is None or judged is None:
                continue
            if chosen_on["gain"] is None or judged["gain"] is None:
                continue
            if chosen_on["gain"] > (best["validation"]["gain"] if best else 0.0):
                best = {
                    "what_if": result["name"],
                    "variant": variant["id"],
                    "title": f"{result['title']}: {variant['title']}",
                    "protocol": protocol,
                    "chosen_on": "validation",
                    "validation": chosen_on,
                    **{key: judged[key] for key in ("baseline", "gain", "low", "high", "n")},
                    "with_variant": judged["variant"],
                }
    return best


@dataclass(frozen=True)
class Cost:
    """How much is computed: maps read per subject, scans scored again per subject, training scans fitted again."""

    maps: float = 0
    scorings: float = 0
    fits: float = 0


@dataclass(frozen=True, eq=False)
class WhatIf:
    """One entry of the catalogue."""

    title: str
    formula: str
    causes: tuple[str, ...]
    """Which of R0..R17 it measures."""
    compute: "Callable[[Bench], Outcome]"
    missing: Callable[[RunScores], str | None]
    """What a run lacks for it, in words; None when it applies."""
    cost: Cost
    version: int = 1
    """Counts up whenever the same run would give other numbers."""


def _any_detector(scores: RunScores) -> str | None:
    return None


def _missing_for_renormalise(scores: RunScores) -> str | None:
    if can(scores.detector, OnlyRanks):
        return "another detector: the score is a rank inside the brain, which no increasing map of intensity changes"
    return None


def _missing_for_covariance(scores: RunScores) -> str | None:
    if can(scores.detector, KeepsPatches):
        return "a Gaussian over features: a memory bank keeps the healthy patches themselves and has no covariance"
    if not can(scores.detector, Covariance):
        return f"a Gaussian over features: this detector is {scores.detector.plain_name} and has no covariance"
    return None


def _missing_for_fewer(scores: RunScores) -> str | None:
    if can(scores.detector, OnlyRanks):
        return f"a detector that learns: {scores.detector.plain_name} takes nothing from its training scans"
    count = len(scores.subjects("train"))
    return None if count >= 4 else f"training scans: there are {count}, halving needs at least 4"


def _missing_for_age(scores: RunScores) -> str | None:
    missing = _missing_for_fewer(scores)
    ages = ages_of(scores)
    ids = [i for role in ("train", "calibration", "validation", "test") for i in scores.subjects(role)]
    unknown = [i for i in ids if i not in ages]
    if missing is None and unknown:
        return f"ages: the cohort's table gives none for {len(unknown)} of {len(ids)} subjects"
    if missing is None and len({ages[i] for i in scores.subjects("train")}) < 3:
        return "training scans of different ages"
    return missing


CATALOGUE: Mapping[str, WhatIf] = {
    "erode-mask": WhatIf(
        "Score less of the brain's rim",
        "D(scores within the eroded brain) − D; lesion voxels outside it count as missed",
        ("R9", "R4"),
        erode_mask,
        _any_detector,
        Cost(maps=8),
    ),
    "calibrate-subject": WhatIf(
        "Calibrate each subject's scores",
        "D(scores mapped through the subject's own quantiles onto those of calibration) − D",
        ("R5",),
        calibrate_subject,
        _any_detector,
        Cost(maps=4),
    ),
    "renormalise": WhatIf(
        "Bring intensities to the training scans'",
        "D(scans renormalised to the mean training quartiles, scored again) − D",
        ("R5",),
        renormalise,
        _missing_for_renormalise,
        Cost(maps=1, scorings=3),
    ),
    "covariance": WhatIf(
        "Estimate the covariance otherwise",
        "D(diagonal, Ledoit-Wolf, OAS or ten times the ridge, same features) − D",
        ("R8",),
        covariance,
        _missing_for_covariance,
        Cost(maps=1, scorings=2),
    ),
    "fewer-scans": WhatIf(
        "Train on half and on a quarter",
        "D(N/2), D(N/4) − D(N), nested seeded subsets, same features",
        ("R8",),
        fewer_scans,
        _missing_for_fewer,
        Cost(maps=1, scorings=3, fits=0.75),
    ),
    "nearest-age": WhatIf(
        "Train on scans of the nearest age",
        "D(half of the training scans, nearest in age) − D; beside it the same number of any age",
        ("R12",),
        nearest_age,
        _missing_for_age,
        Cost(maps=1, scorings=5, fits=2),
    ),
    "shift": WhatIf(
        "Move the scans a little",
        "D(scan moved by δ before scoring, lesion and mask left) − D for δ = 0.5, 1, 2 mm; slope per mm; best offset",
        ("R6",),
        shift,
        _any_detector,
        Cost(maps=1, scorings=16),
    ),
    "register": WhatIf(
        "Move scan and lesion together",
        "D(scan, mask and lesion moved by δ against the healthy reference) − D, as registration errors do; best offset",
        ("R6",),
        register,
        _any_detector,
        Cost(maps=1, scorings=17),
    ),
    "label-boundary": WhatIf(
        "Move the reference's boundary",
        "D(against the reference eroded or dilated by one voxel) − D",
        ("R13",),
        label_boundary,
        _any_detector,
        Cost(maps=3),
    ),
    "dont-care": WhatIf(
        "Leave the lesion's border out",
        "D(without a band of ±1 voxel around the border) − D",
        ("R4",),
        dont_care,
        _any_detector,
        Cost(maps=2),
    ),
    "threshold-grid": WhatIf(
        "Choose the threshold on a coarse grid",
        "D(best of 100 equal steps from lowest to highest score) − D(exact)",
        ("R7",),
        threshold_grid,
        _any_detector,
        Cost(maps=1),
    ),
}


def _asked(run: Run, name: str, layer_set: str | None, protocol: str) -> tuple[RunScores, LayerSet]:
    if protocol not in PROTOCOLS:
        raise BadInput(f"Protocol {protocol!r} is unknown. Allowed: {', '.join(PROTOCOLS)}.")
    metrics = read_metrics(run)
    rows = applicable(run)
    fitting = ", ".join(row["name"] for row in rows if row["applies"]) or "none"
    if name not in CATALOGUE:
        raise BadInput(f"No what-if {name!r}. To run {run.run_id} these apply: {fitting}.")
    missing = next(row["missing"] for row in rows if row["name"] == name)
    if missing:
        raise BadInput(f"What-if {name!r} does not apply to run {run.run_id}. It needs {missing}. Apply: {fitting}.")
    scores = open_scores(run)
    return scores, scores.layer_set(layer_set or metrics["headline"])


def _missing_in(run: Run, scores: RunScores) -> str | None:
    if not stage_done(run, "evaluation"):
        return f"an evaluation: python cli.py evaluate {run.as_argument}"
    metrics = read_metrics(run)
    figures = metrics["sets"][metrics["headline"]]["working"]
    if not figures["n_lesion_subjects"]:
        return "test subjects with lesions: without them there is no Dice"
    if figures["unreachable_lesion_voxels"] == figures["pooled"]["n_lesion_voxels"]:
        return "test lesions inside the scored brain: all lie outside of it, so Dice is 0 whatever is changed"
    return None


def _bench(run: Run, scores: RunScores, layers: LayerSet, progress: Progress) -> Bench:
    metrics = read_metrics(run)
    return Bench(run, scores, layers, metrics["quantile"], metrics["fp_ml_per_scan"], progress)


def _stage(layers: LayerSet, name: str) -> str:
    return stage_name("whatifs", set_id(layers), name)


def _key(run: Run, name: str) -> dict[str, Any]:
    manifest = manifest_sha256(stage_directory(run, "evaluation"))
    return {"evaluation": manifest, "name": name, "version": CATALOGUE[name].version}


def _read(run: Run, layers: LayerSet, name: str) -> dict[str, Any] | None:
    """A stored result, or None when there is none. IntegrityError when its bytes are damaged."""
    result: dict[str, Any] | None = stored_json(run, _stage(layers, name))
    return result


def _cost_text(run: Run, cost: Cost) -> str:
    """How long it will take, from how long this run took to score and to fit."""
    scored, trained = len(scored_subjects(run)), len(run.record["split"].get("train", []))
    stages = run.record.get("stages", {})
    seconds = cost.maps * scored * _MAP_SECONDS
    seconds += cost.scorings * float(stages.get("scores", {}).get("seconds", scored))
    seconds += cost.fits * float(stages.get("detector", {}).get("seconds", trained))
    work = [f"{cost.maps:g} x {scored} maps read"]
    work += [f"{cost.scorings:g} x {scored} scans scored"] if cost.scorings else []
    work += [f"{cost.fits:g} x {trained} scans fitted"] if cost.fits else []
    long = f"{max(seconds, 1):.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
    return f"about {long} on a quiet machine: {', '.join(work)}"
