"""Judging a run: every layer set under every threshold protocol, the headline in the scans' own space."""

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.disk_plan import evaluation_bytes
from core.metrics.dice import evaluate
from core.metrics.healthy_threshold import QUANTILE, segment
from core.metrics.lesions import healthy_false_positives, lesion_report, summarise
from core.metrics.protocols import ThresholdRule, best_common_threshold, healthy_rule, thresholds, validation_rule
from core.metrics.subject_scores import SubjectScores
from core.progress import Progress
from core.runs.listing import open_run
from core.runs.provenance import reset_peak_memory
from core.runs.run_record import Run
from core.runs.stages import record_duration, stage, stage_done, stage_name, verify_stage
from core.runs.store import lock
from core.study.looks_at_test import note_killed_look, note_look
from core.study.run_summary import HEADLINE, headline_of
from core.study.score_levels import save_levels, score_levels
from core.study.scoring import score_left_out
from core.study.stored_scores import RunScores, Space, open_scores, set_id
from core.study.subject_level import subject_level
from core.types import LayerSet, ScoreMap
from data.errors import BadInput, EnvironmentProblem
from data.hashed import hashed_files, tell_hashed
from data.json_files import write_json
from data.ranges import check_range
from data.room import require_room
from data.volume import Mask
from data.whole_files import clear_litter, faultpoint
from data.workers import Died, shared_out

N_BOOTSTRAP = 10_000
LEFT_OUT_RULE = "each scan scored by what was learnt from the others"
"""Stands in the rule of a healthy threshold that no scan was held out for."""
BEHIND_LABELS = "behind a gate cut on validation labels"
"""Stands in the rule of a healthy threshold that is not label-free."""
SMALLEST = 1e-30
"""No score of a gated map is smaller without being 0."""


def evaluate_run(
    run: Run,
    progress: Progress,
    *,
    quantile: float = QUANTILE,
    fp_ml_per_scan: float | None = None,
    workers: int = 2,
    leave_one_out: bool = False,
) -> dict[str, Any]:
    """Evaluate every layer set on the working grid, and the ones that are quoted in native space; commit the result.

    The headline layer set is the one with the best mean Dice on the labelled validation subjects, else all layers.
    Test labels choose nothing but what is called oracle. `leave_one_out`: where no scan calibrates, the label-free
    threshold comes from the training scans, each scored by the Gaussian of the others. Returns what metrics.json holds.
    """
    check_rule(quantile, fp_ml_per_scan, workers)
    scores = open_scores(run)
    _require_scores(scores, leave_one_out)
    require_room(run.directory, _bytes_to_write(scores), "The evaluation")
    began = time.perf_counter()
    reset_peak_memory()
    with lock(run) as run:
        note_killed_look(run)
        if leave_one_out:
            score_left_out(run, progress)
        rule = _Rule(quantile, fp_ml_per_scan, leave_one_out)
        working = _many(run, scores.layer_sets, "working", rule, workers, progress)
        headline, chosen_by = _headline(scores, working)
        quoted = _quoted(scores, headline)
        native = _many(run, quoted, "native", rule, workers, progress)
        metrics = {
            "space": "native",
            "headline": set_id(headline),
            "headline_rule": chosen_by,
            "quantile": quantile,
            "fp_ml_per_scan": fp_ml_per_scan,
            **({"leave_one_out": True} if leave_one_out else {}),
            "unit": scores.unit,
            "layers": list(scores.layers),
            "sets": {
                name: {"working": result["figures"], "native": native.get(name, {}).get("figures")}
                for name, result in working.items()
            },
            "subject_level": subject_level(scores, headline),
            "lesions": _lesion_figures(scores, headline, native[set_id(headline)]["figures"]),
        }
        with stage(run, "evaluation") as scratch:
            save_levels(scratch / "levels.json", {name: result["levels"] for name, result in working.items()})
            write_json(scratch / "metrics.json", metrics)
            write_json(scratch / HEADLINE, headline_of(metrics))
        _forget_browser_volumes(run.directory)
        record_duration(run, "evaluation", began)
        note_look(run)  # last: whoever is killed before this has shown nothing, and its repetition is the same look
    return metrics


@dataclass(frozen=True)
class _Rule:
    """How the label-free threshold is found."""

    quantile: float
    fp_ml_per_scan: float | None
    leave_one_out: bool


def check_rule(quantile: float, fp_ml_per_scan: float | None, workers: int) -> None:
    """BadInput when a number of an evaluation is out of its range."""
    check_range("quantile", quantile)
    check_range("fp_ml_per_scan", fp_ml_per_scan or 0.0)
    check_range("workers", workers)


def _bytes_to_write(scores: RunScores) -> int:
    test = scores.subjects("test")
    healthy = sum(map(scores.is_healthy, test))
    sets = len(scores.layer_sets)
    quoted = min(sets, len(scores.layers) + 2)
    return evaluation_bytes(sets, quoted, len(test) - healthy, healthy)


def evaluate_layer_set(
    scores: RunScores,
    layers: LayerSet,
    space: Space,
    *,
    quantile: float = QUANTILE,
    fp_ml_per_scan: float | None = None,
    leave_one_out: bool = False,
    n_bootstrap: int = N_BOOTSTRAP,
) -> dict[str, Any]:
    """Figures of one layer set in one space, and the byte levels of its maps."""
    calibration = scores.voxels_of(scores.subjects("calibration"), layers, space)
    if leave_one_out:
        calibration = scores.left_out().voxels_of(scores.subjects("train"), layers, space)
    validation = scores.voxels_of(scores.subjects("validation"), layers, space)
    test = scores.voxels_of(scores.subjects("test"), layers, space)
    if any(s.n_lesion for s in test):
        protocols = thresholds(validation, calibration, test, quantile=quantile, fp_ml_per_scan=fp_ml_per_scan)
        figures = evaluate(test, protocols, n_bootstrap=n_bootstrap)
        figures["validation_mean_dice"] = _validation_dice(validation)
        cuts = [protocols.healthy, protocols.validation, protocols.oracle_set, protocols.oracle_pooled]
        values = [c.threshold for c in cuts if c is not None]
    else:
        free = healthy_rule(calibration, quantile=quantile, fp_ml_per_scan=fp_ml_per_scan) if calibration else None
        rules = [rule for rule in (free, validation_rule(validation)) if rule is not None]
        figures = _without_lesions(test, rules)
        figures["validation_mean_dice"] = _validation_dice(validation)
        values = [rule.threshold for rule in rules]
    if leave_one_out:
        row = figures["protocols"]["healthy"]
        row |= {"rule": row["rule"].replace("calibration", "training") + f", {LEFT_OUT_RULE}"}
    if scores.cut_on_labels and "healthy" in figures["protocols"]:
        row = figures["protocols"]["healthy"]
        row |= {"needs_labels": True, "rule": f"{row['rule']}, {BEHIND_LABELS}"}
        if row["threshold"] < SMALLEST:  # the quantile falls among the zeros outside the gate
            row["rule"] += "; that falls outside the gate, so the gate alone decides"
    told = [s.normal[::7] for s in calibration] + [s.anomalous for s in test] + [s.normal[::7] for s in test]
    told = told or [s.normal[::7] for s in validation] + [s.anomalous for s in validation]
    sample = np.concatenate(told)
    return {"figures": figures, "levels": score_levels(sample, values).tolist()}


def _without_lesions(test: Sequence[SubjectScores], rules: Sequence[ThresholdRule]) -> dict[str, Any]:
    """Only healthy test scans, or none: their false positives, and no Dice."""
    return {
        "n_lesion_subjects": 0,
        "n_healthy_subjects": sum(s.healthy for s in test),
        "protocols": {rule.name: _alarms(test, rule) for rule in rules},
        "ceil_dice": None,
        "pooled": None,
        "per_subject_auprc": None,
    }


def _alarms(test: Sequence[SubjectScores], rule: ThresholdRule) -> dict[str, Any]:
    marked = {s.subject_id: s.counts(rule.threshold)[1] * s.voxel_ml for s in test}
    ml = {s.subject_id: marked[s.subject_id] for s in test if s.healthy}
    unclear = {s.subject_id: marked[s.subject_id] for s in test if not s.healthy}
    return {
        **asdict(rule),
        "mean_dice": None,
        "ci_low": None,
        "ci_high": None,
        "n": 0,
        "pooled_dice": None,
        "false_positive_ml_per_healthy_scan": float(np.mean(list(ml.values()))) if ml else None,
        "false_positive_ml_by_healthy_scan": ml,
        **({"marked_ml_by_unclear_scan": unclear} if unclear else {}),
        "subjects": [],
    }


def _validation_dice(validation: Sequence[SubjectScores]) -> float | None:
    return best_common_threshold(validation)[1] if any(len(s.anomalous) for s in validation) else None


def _headline(scores: RunScores, working: Mapping[str, Any]) -> tuple[LayerSet, str]:
    rated = {name: r["figures"].get("validation_mean_dice") for name, r in working.items()}
    if len(working) == 1 or any(v is None for v in rated.values()):
        return scores.layer_sets[-1], "all fitted layers"
    best = max(rated, key=lambda name: (rated[name], -name.count("+")))
    return scores.layer_set(best), "layer set with the best mean Dice on the labelled validation subjects"


def _quoted(scores: RunScores, headline: LayerSet) -> tuple[LayerSet, ...]:
    singles = [(layer,) for layer in scores.layers]
    return tuple(dict.fromkeys([*singles, scores.layer_sets[-1], headline]))


def _many(
    run: Run,
    layer_sets: Sequence[LayerSet],
    space: Space,
    rule: _Rule,
    workers: int,
    progress: Progress,
) -> dict[str, Any]:
    """Figures of several layer sets, in processes of their own; the order is that of `layer_sets`."""
    jobs = [(str(run.directory), layers, space, rule) for layers in layer_sets]
    found: dict[int, Any] = {}
    dead: dict[int, Died] = {}
    with progress.task(f"Evaluating, {space} space", len(jobs)) as advance:
        for number, outcome in _mapped(jobs, workers):
            if isinstance(outcome, Died):
                dead[number] = outcome
            else:
                found[number] = outcome
            advance(1, set_id(layer_sets[number]))
    if dead:
        names = ", ".join(set_id(layer_sets[number]) for number in sorted(dead))
        raise EnvironmentProblem(
            f"Layer set {names} could not be evaluated, {len(found)} of {len(jobs)} could: {dead[min(dead)].cause}, "
            "then run again. Nothing is committed without it; the scores are intact."
        )
    return {set_id(layers): found[number] for number, layers in enumerate(layer_sets)}


def _mapped(
    jobs: Sequence[tuple[str, LayerSet, Space, _Rule]], workers: int
) -> Iterator[tuple[int, dict[str, Any] | Died]]:
    """Results by the number of the job, as they are done; one worker, or few jobs: here."""
    if workers < 2 or len(jobs) < 4:
        yield from enumerate(map(_evaluate_job, jobs))
        return
    told = functools.partial(tell_hashed, hashed_files())
    yield from shared_out(_evaluate_job, [(job,) for job in jobs], workers, threads=1, first=told)


def _evaluate_job(job: tuple[str, LayerSet, Space, _Rule]) -> dict[str, Any]:
    directory, layers, space, rule = job
    faultpoint(f"evaluate.{set_id(layers)}")
    path = Path(directory)
    scores = open_scores(open_run(path.parent, path.name))
    return evaluate_layer_set(scores, layers, space, **asdict(rule))


def _lesion_figures(scores: RunScores, layers: LayerSet, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Lesion-wise recall and precision, and components on healthy scans, at the deployable thresholds."""
    result = {}
    for name in ("healthy", "validation"):
        if name not in figures["protocols"]:
            continue
        threshold = figures["protocols"][name]["threshold"]
        reports, alarms = [], {}
        for subject_id in scores.subjects("test"):
            prepared = scores.prepared(subject_id)
            native = scores.native_scores(subject_id, layers)
            score_map = ScoreMap(native, prepared.native_grid, subject_id, scores.unit)
            segmentation: Mask = segment(score_map, threshold)
            if scores.is_healthy(subject_id):
                alarms[subject_id] = segmentation
            elif prepared.native_lesion is not None:
                reports.append(lesion_report(score_map, segmentation, prepared.native_lesion))
        result[name] = {"lesions": summarise(reports), "healthy_scans": healthy_false_positives(alarms)}
    return result


def _require_scores(scores: RunScores, leave_one_out: bool = False) -> None:
    missing = [
        i
        for role in ("calibration", "validation", "test")
        for i in scores.subjects(role)
        if not stage_done(scores.run, stage_name("scores", i))
    ]
    if missing:
        raise BadInput(
            f"{len(missing)} subject(s) of run {scores.run.run_id} are not scored yet ({', '.join(missing[:3])}). "
            f"Score them: python cli.py score {scores.run.as_argument}"
        )
    for role in ("calibration", "validation", "test"):
        for subject_id in scores.subjects(role):
            verify_stage(scores.run, stage_name("scores", subject_id))
    if leave_one_out and scores.subjects("calibration"):
        raise BadInput(
            f"Run {scores.run.run_id} has {len(scores.subjects('calibration'))} calibration subjects, which were held "
            "out: they say more than training scans. Leave --leave-one-out away."
        )
    if leave_one_out:
        return
    if not scores.subjects("calibration") and not any(_has_lesion(scores, role) for role in ("validation", "test")):
        raise BadInput(
            f"Run {scores.run.run_id} has no calibration subjects and no lesion in validation or test: there is no "
            "threshold to judge it at. Give healthy subjects the role calibration and fit again, or, for a Gaussian, "
            "say --leave-one-out."
        )


def _has_lesion(scores: RunScores, role: str) -> bool:
    """Whether a lesion of a subject of one split has a voxel on the working grid."""
    found = (scores.prepared(subject_id).lesion for subject_id in scores.subjects(role))
    return any(lesion is not None and lesion.voxels.any() for lesion in found)


def _forget_browser_volumes(directory: Path) -> None:
    """Byte levels may have moved: packed maps of an older evaluation are made anew when asked for."""
    clear_litter(directory / ".browser")
    for path in (directory / ".browser").glob("*.gz"):
        path.unlink(missing_ok=True)
