"""Why Dice is low, in one result: ladder, error map, causes, decisions, lesions, and what would raise it most.

`diagnose` computes what needs voxels and keeps it with the run; what-ifs, post-processing and detection limits are
jobs of their own, and whatever of them is stored is put in when the diagnosis is read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from core.detectors import kinds_that_can
from core.detectors.capabilities import Covariance, OnlyRanks, can
from core.diagnosis.cause_evidence import Evidence
from core.diagnosis.causes import causes
from core.diagnosis.ceiling import layer_table
from core.diagnosis.errors.category_table import CATEGORIES
from core.diagnosis.errors.error_map import SPACE, error_map, error_records
from core.diagnosis.errors.reference import reference_of
from core.diagnosis.ladder import RUNGS, ladder
from core.diagnosis.layer_cells import layers_of_run
from core.diagnosis.likelihood import decisions
from core.diagnosis.limits.detection_limits import stored_detection_limits
from core.diagnosis.postprocessing import stored_post_processing
from core.diagnosis.strata import strata
from core.diagnosis.subject_facts import SubjectFacts, subject_facts
from core.diagnosis.verdict import verdict
from core.diagnosis.what_if.catalogue import stored_what_ifs
from core.metrics.protocols import judged
from core.progress import Progress
from core.runs.evaluated import read_metrics
from core.runs.run_record import Run, read_run
from core.runs.stages import kept_if_possible, stage_beside, stage_directory, stage_name, stored_json, undamaged
from core.study.evaluation import evaluate_layer_set
from core.study.run_summary import run_rows
from core.study.stored_scores import RunScores, open_scores, set_id
from core.types import LayerSet
from data.errors import BadInput
from data.files import manifest_sha256
from data.json_files import write_json

VERSION = 4
"""Counts up whenever the same run would give another result."""
DIRECTORY = "diagnosis"


def diagnose(
    run: Run, progress: Progress, *, layer_set: str | None = None, protocol: str = "healthy"
) -> dict[str, Any]:
    """The diagnosis of one layer set (the headline's when None) at one deployable threshold; commits what it computes.

    BadInput when the run is not evaluated, has no test subject with a lesion, or no threshold of that protocol.
    """
    scores, metrics = open_scores(run), read_metrics(run)
    layers = scores.layer_set(layer_set or metrics["headline"])
    name = set_id(layers)
    counted = undamaged(lambda: _stored(run, name, protocol), progress.say)
    if counted is None:
        counted = _count(scores, _with_native(scores, metrics, layers, progress), layers, protocol, progress)
        with kept_if_possible(run), stage_beside(run, stage_name(DIRECTORY, name, protocol)) as scratch:
            write_json(scratch / "diagnosis.json", counted)
    return _assembled(scores, metrics, counted)


def stored_diagnosis(run: Run, layer_set: str, protocol: str) -> dict[str, Any] | None:
    """The diagnosis of the present evaluation with the newest results of its jobs; None when it was not made yet."""
    scores = open_scores(run)
    counted = _stored(run, set_id(scores.layer_set(layer_set)), protocol)
    return None if counted is None else _assembled(scores, read_metrics(run), counted)


def _stored(run: Run, name: str, protocol: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = stored_json(run, stage_name(DIRECTORY, name, protocol), "diagnosis.json")
    return found if found is not None and found["key"] == _key(run) else None


def _key(run: Run) -> str:
    return f"{VERSION}-{manifest_sha256(stage_directory(run, 'evaluation'))}"


def _with_native(
    scores: RunScores, metrics: Mapping[str, Any], layers: LayerSet, progress: Progress
) -> Mapping[str, Any]:
    """The metrics with native figures of this layer set: only the quoted sets have them from the evaluation."""
    name = set_id(layers)
    if metrics["sets"][name].get("native"):
        return metrics
    progress.say(f"Evaluating {name} in native space.")
    native = evaluate_layer_set(
        scores,
        layers,
        "native",
        quantile=metrics["quantile"],
        fp_ml_per_scan=metrics["fp_ml_per_scan"],
        leave_one_out=bool(metrics.get("leave_one_out")),
    )
    return {**metrics, "sets": {**metrics["sets"], name: {**metrics["sets"][name], "native": native["figures"]}}}


def _count(
    scores: RunScores, metrics: Mapping[str, Any], layers: LayerSet, protocol: str, progress: Progress
) -> dict[str, Any]:
    """Everything that needs voxels."""
    name = set_id(layers)
    figures, native = metrics["sets"][name]["working"], metrics["sets"][name]["native"]
    _check(scores, figures, native, protocol)
    threshold = figures["protocols"][protocol]["threshold"]
    ids = [row["subject_id"] for row in figures["protocols"][protocol]["subjects"]]
    native_dice = {row["subject_id"]: row["dice"] for row in native["protocols"][protocol]["subjects"]}
    reference = reference_of(scores.run, progress)
    cells = layers_of_run(scores)
    facts = subject_facts(scores, ids, layers, protocol, threshold, cells, reference, progress)
    records = error_records(scores, ids, layers, threshold, reference, progress=progress)
    steps = ladder(
        metrics,
        name,
        protocol,
        {i: f.ceilings.of(layers) for i, f in zip(ids, facts, strict=True)},
        {i: f.ceilings.reachable for i, f in zip(ids, facts, strict=True)},
    )
    errors = error_map(records, native_dice)
    with progress.task("Two-distribution decisions", 1) as advance:
        decided = decisions(scores, layers)
        advance(1, "")
    return {
        "key": _key(scores.run),
        "layer_set": name,
        "protocol": protocol,
        "threshold": threshold,
        "native_threshold": native["protocols"][protocol]["threshold"],
        "space": "native",
        "n": steps["n"],
        "n_healthy": figures["n_healthy_subjects"],
        "prevalence": figures["pooled"]["prevalence"],
        "dice": errors["dice"],
        "rungs": steps["rungs"],
        "layers": layer_table([f.ceilings for f in facts], cells),
        "error_map": errors["error_map"],
        "decisions": decided,
        "lesions": [dict(row) for f in facts for row in f.lesions],
        "shuffled": _mean_pair(facts),
        "subjects": _subjects(scores, steps["subjects"], errors["subjects"], native),
        "notes": [*steps["notes"], *native["notes"]],
    }


def _check(scores: RunScores, figures: Mapping[str, Any], native: Mapping[str, Any], protocol: str) -> None:
    if not figures["n_lesion_subjects"]:
        raise BadInput(
            f"No test subject of run {scores.run.run_id} has a lesion, so there is no Dice to explain. "
            f"See what the detector can find: python cli.py detection-limits {scores.run.as_argument}"
        )
    if protocol not in native["protocols"] or protocol not in ("healthy", "validation"):
        raise BadInput(
            f"There is no deployable threshold {protocol!r} in run {scores.run.run_id}. "
            + (
                f"Allowed: {', '.join(there)}. Say --protocol {there[0]}."
                if (there := [name for name in ("healthy", "validation") if name in native["protocols"]])
                else "It needs calibration subjects (healthy), or labelled validation subjects (validation)."
            )
        )


def _mean_pair(facts: Sequence[SubjectFacts]) -> list[float]:
    return [sum(f.shuffled[i] for f in facts) / len(facts) for i in (0, 1)]


def _subjects(
    scores: RunScores,
    steps: Sequence[Mapping[str, Any]],
    errors: Sequence[Mapping[str, Any]],
    native: Mapping[str, Any],
) -> list[dict[str, Any]]:
    by_id = {s["subject_id"]: s for s in scores.run.record["cohort"]["subjects"]}
    ladders = {s["subject_id"]: s for s in steps}
    volumes = {row["subject_id"]: row["lesion_ml"] for row in judged(native)["subjects"]}
    return [
        {
            "subject_id": found["subject_id"],
            "dice": found["dice"],
            "ladder": ladders[found["subject_id"]]["ladder"],
            "measured": ladders[found["subject_id"]]["measured"],
            "error_map": found["error_map"],
            "lesion_ml": volumes.get(found["subject_id"]),
            **{key: by_id[found["subject_id"]].get(key) for key in ("site", "age", "sex")},
            "counts": found["counts"],
        }
        for found in errors
    ]


def _assembled(scores: RunScores, metrics: Mapping[str, Any], counted: Mapping[str, Any]) -> dict[str, Any]:
    """What was counted, with the newest results of the jobs and all that follows from them."""
    run, name, protocol = scores.run, counted["layer_set"], counted["protocol"]
    counted = {**counted, "subjects": [_in_order(subject) for subject in counted["subjects"]]}
    damaged: list[str] = []
    what_ifs = stored_what_ifs(run, name, damaged)
    post_processing = undamaged(lambda: stored_post_processing(run, name), damaged.append)
    limits = undamaged(lambda: stored_detection_limits(run, name), damaged.append)
    subjects = {s["subject_id"]: s for s in run.record["cohort"]["subjects"]}
    found = causes(
        Evidence(
            protocol=protocol,
            rungs=counted["rungs"],
            subjects=counted["subjects"],
            error_map=counted["error_map"],
            figures=metrics["sets"][name]["working"],
            sets={key: value["working"] for key, value in metrics["sets"].items()},
            layer_set=name,
            what_ifs=what_ifs,
            post_processing=post_processing,
            intensity=_intensity_figures(run),
            ages={i: float(s["age"]) for i, s in subjects.items() if s.get("age") is not None},
            n_train=len(run.record["split"]["train"]),
            n_features=_n_features(scores, name),
            shuffled_dice=(counted["shuffled"][0], counted["shuffled"][1]),
        ),
        run.run_id,
    )
    return {
        "run_id": run.run_id,
        "name": run.name,
        "unit": scores.unit,
        **{key: value for key, value in counted.items() if key not in ("key", "shuffled")},
        "causes": found,
        "what_ifs": what_ifs,
        "post_processing": post_processing,
        "detection_limits": limits,
        "damaged": damaged,
        "strata": strata(counted["lesions"], counted["subjects"]),
        "verdict": verdict(counted, found, what_ifs, post_processing, metrics),
    }


def _in_order(subject: Mapping[str, Any]) -> dict[str, Any]:
    """The subject with its rungs from top to bottom and its categories as in the table: stored JSON sorts its keys."""
    rungs = [rung.id for rung in RUNGS]
    categories = [category.id for category in (*CATEGORIES, SPACE)]
    order = {"ladder": rungs, "measured": rungs, "error_map": categories}
    return {**subject, **{key: {name: subject[key][name] for name in names} for key, names in order.items()}}


def _n_features(scores: RunScores, name: str) -> int | None:
    if scores.layout is None or not can(scores.detector, Covariance):
        return None  # no covariance of them is estimated
    return sum(scores.layout.channels[layer] for layer in name.split("+"))


def _intensity_figures(run: Run) -> dict[str, Mapping[str, Any]]:
    """Working figures of the intensity baselines on the same scans and splits, by the name of their run."""
    found: dict[str, Mapping[str, Any]] = {}
    runs = run.directory.parent
    for row in run_rows(runs)[0]:
        if row["detector"] not in kinds_that_can(OnlyRanks) or not row["evaluated"]:
            continue
        other = read_run(runs / row["run_id"])
        same = other.kind == "detector" and all(
            other.record[key] == run.record[key] for key in ("split", "preprocessing")
        )
        if not same or other.record["cohort"]["fingerprint"] != run.record["cohort"]["fingerprint"]:
            continue
        metrics = read_metrics(other)
        found[other.name] = metrics["sets"][metrics["headline"]]["working"]
    return found
