"""A gated run out of two evaluated ones: the second's stored maps inside the first's segmentation, then evaluated.

Nothing is fitted or scored again. The gate's threshold is the one that its evaluation chose on labelled validation
subjects, on the working grid where the gate is applied; without those, its label-free healthy one. Test labels choose
nothing. Whether a scan is ill is decided by the gate: subject-level figures of a gated run are those of its gate run.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from core.detectors import recipe_json
from core.detectors.capabilities import TwoParts, can
from core.detectors.gated import Gated
from core.disk_plan import grid_bytes
from core.metrics.healthy_threshold import QUANTILE
from core.progress import Progress
from core.runs.evaluated import read_metrics
from core.runs.listing import run_with_id
from core.runs.run_record import Run
from core.runs.stages import about_stage, stage, stage_directory, stage_done, stage_name, verify_stage
from core.runs.store import check_same, create_run, lock, update_run
from core.study.evaluation import BEHIND_LABELS, check_rule, evaluate_run
from core.study.opening import ordered_split
from core.study.run_scans import preprocessing_of, scored_subjects
from core.study.scoring import SUBJECT_FILE
from core.study.stored_scores import RunScores, open_scores, set_id
from core.types import LayerSet
from data.errors import BadInput, EnvironmentProblem, Interrupted
from data.files import MANIFEST, committed_directory
from data.json_files import write_json
from data.room import require_room
from data.template import working_grid

ROUNDING = 1e-5
"""A threshold chosen on validation is the score of one of its voxels; it is lowered by this fraction, so that the
same maps computed again, equal up to rounding, have the same gate."""


Cut = Literal["validation", "healthy"]


@dataclass(frozen=True, eq=False)
class Part:
    """One of the two evaluated runs, and which of its layer sets is used."""

    scores: RunScores
    layers: LayerSet
    metrics: Mapping[str, Any]

    @property
    def run(self) -> Run:
        """The run itself."""
        return self.scores.run

    @property
    def fitted_layers(self) -> LayerSet:
        """The layers, for a detector that has some."""
        return self.layers if self.scores.layout is not None else ()


def make_gated(
    runs: Path,
    gate: Run,
    second: Run,
    progress: Progress,
    *,
    layers: str = "",
    second_layers: str = "",
    name: str = "",
    run_id: str | None = None,
    cut: Cut = "validation",
    quantile: float = QUANTILE,
    fp_ml_per_scan: float | None = None,
    workers: int = 2,
) -> Run:
    """Make, score and evaluate the run; the same `run_id` and parts resume a stopped one.

    `layers` and `second_layers` name layer sets of the two runs; not given, each run's headline set, which validation
    chose. `cut`: the gate's threshold, from labelled validation subjects or from healthy scans alone, which makes the
    whole pipeline label-free. BadInput when the two do not share scans, split and preparation, or one is not evaluated.
    """
    check_rule(quantile, fp_ml_per_scan, workers)
    parts = (_part(gate, layers), _part(second, second_layers))
    _check_alike(gate, second)
    detector = gated_detector(*parts, cut)
    run = _open_or_create(runs, detector, parts, name or f"{second.name} gated by {gate.name}", run_id)
    with lock(run) as run, _outcome(run):
        left = [s for s in scored_subjects(run) if not stage_done(run, stage_name("scores", s["subject_id"]))]
        values = int(np.prod(working_grid(preprocessing_of(run).spacing_mm).shape))
        require_room(run.directory, len(left) * grid_bytes(values), f"Gating {len(left)} scans")
        if not stage_done(run, "detector"):
            update_run(run, status="running")
            with stage(run, "detector") as scratch:
                for folder, part in zip(("gate", "second"), parts, strict=True):
                    verify_stage(part.run, "detector")
                    _link_tree(stage_directory(part.run, "detector"), scratch / folder)
                detector.save_recipe(scratch)
        _combine_all(run, detector, parts, progress)
    if not stage_done(run, "evaluation") or not _same_rule(run, quantile, fp_ml_per_scan):
        evaluate_run(run, progress, quantile=quantile, fp_ml_per_scan=fp_ml_per_scan, workers=workers)
    return run


def gated_detector(gate: Part, second: Part, cut: Cut = "validation") -> Gated:
    """The recipe: both parts', the layer sets, and the threshold with where it is from."""
    value, source, rule = gate_threshold(gate, cut)
    return Gated(
        gate=gate.run.record["recipe"],
        second=second.run.record["recipe"],
        gate_threshold=value,
        gate_rule=f"{rule}, read from the evaluation of run {gate.run.run_id} on the working grid",
        threshold_from="validation" if source == "validation" else "healthy",
        gate_layers=gate.fitted_layers,
        second_layers=second.fitted_layers,
    )


def gate_threshold(gate: Part, cut: Cut = "validation") -> tuple[float, str, str]:
    """Where to cut the gate's working-grid map: the value, "validation" or "healthy", and the rule in words.

    "validation" falls back on "healthy" where the gate's run has no labelled validation subjects.
    """
    protocols = gate.metrics["sets"][set_id(gate.layers)]["working"]["protocols"]
    source = cut if cut in protocols else "healthy"
    if source not in protocols:
        raise BadInput(
            f"The gate has no threshold {cut!r}: its run has no calibration subjects"
            + (". Say --cut validation." if "validation" in protocols else " and no labelled validation subjects.")
        )
    chosen = protocols[source]
    value = float(chosen["threshold"])
    if source == "validation":
        value -= ROUNDING * abs(value)
    return value, source, str(chosen["rule"])


def _same_rule(run: Run, quantile: float, fp_ml: float | None) -> bool:
    metrics = read_metrics(run)
    protocols = metrics["sets"][metrics["headline"]]["working"]["protocols"]
    if "healthy" not in protocols:
        return True
    stored = str(protocols["healthy"]["rule"])
    told = f"quantile {quantile:g} of" if fp_ml is None else f"at most {fp_ml:g} mL above"
    return stored.startswith(told) and (BEHIND_LABELS in stored) == open_scores(run).cut_on_labels


def _part(run: Run, layers: str) -> Part:
    scores = open_scores(run)
    if can(scores.detector, TwoParts):
        raise BadInput(f"Run {run.run_id} is gated itself. Give the runs that it was made from, or others.")
    metrics = read_metrics(run)
    return Part(scores, scores.layer_set(layers or metrics["headline"]), metrics)


def _check_alike(gate: Run, second: Run) -> None:
    different = [] if gate.record["preprocessing"] == second.record["preprocessing"] else ["preprocessing"]
    if ordered_split(gate.record["split"]) != ordered_split(second.record["split"]):
        different = ["split", *different]
    if gate.record["cohort"]["fingerprint"] != second.record["cohort"]["fingerprint"]:
        different = ["cohort", *different]
    if different:
        raise BadInput(
            f"Runs {gate.run_id} and {second.run_id} differ in {', '.join(different)}: their maps are not of the same "
            "scans, or not from the same healthy subjects. Fit and evaluate both with the same table, split and "
            "preprocessing."
        )


def _open_or_create(runs: Path, detector: Gated, parts: tuple[Part, Part], name: str, run_id: str | None) -> Run:
    recipe = recipe_json(detector)
    gate, second = (part.run for part in parts)
    parents = {"gate": gate.run_id, "second": second.run_id}
    if run_id is not None and (run := run_with_id(runs, run_id)) is not None:
        check_same(run, {"recipe": recipe, "parents": parents, "split": gate.record["split"]})
        return run
    return create_run(
        runs,
        kind="detector",
        name=name,
        recipe=recipe,
        cohort=gate.record["cohort"],
        split=gate.record["split"],
        preprocessing=gate.record["preprocessing"],
        seed=int(gate.record["seed"]),
        parents=parents,
        run_id=run_id,
    )


def _combine_all(run: Run, detector: Gated, parts: tuple[Part, Part], progress: Progress) -> None:
    gate, second = parts
    subjects = [s["subject_id"] for s in scored_subjects(run)]
    with progress.task("Gating", len(subjects)) as advance:
        for subject_id in subjects:
            name = stage_name("scores", subject_id)
            if stage_done(run, name):
                verify_stage(run, name)
            else:
                for part in parts:
                    verify_stage(part.run, name)
                opening = gate.scores.score_map(subject_id, gate.layers)
                combined = detector.combine(opening, second.scores.score_map(subject_id, second.layers))
                whole = {"maximum": float(np.nanmax(opening.scores))}
                own = gate.scores.subject_scores(subject_id).get(set_id(gate.layers))
                if own is not None:
                    whole["reweighted"] = own
                target = stage_directory(run, name)
                with committed_directory(target, within=run.directory, about=about_stage(run, name)) as scratch:
                    np.save(scratch / "scores.npy", combined.scores)
                    write_json(scratch / SUBJECT_FILE, {"scores": whole})
            advance(1, subject_id)


@contextlib.contextmanager
def _outcome(run: Run) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        with contextlib.suppress(EnvironmentProblem):  # a full disk takes no word about itself; the error is told
            update_run(run, status="interrupted" if stopped else "failed", error=None if stopped else str(error))
        raise
    update_run(run, status="finished")


def _link_tree(source: Path, target: Path) -> None:
    """The files of a committed directory once more, without a second copy where the disk allows; not its manifest."""
    for path in sorted(p for p in source.rglob("*") if p.is_file() and p != source / MANIFEST):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, place)
        except OSError:
            shutil.copy2(path, place)
