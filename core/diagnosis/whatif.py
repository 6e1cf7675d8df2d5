"""What if one thing had been done otherwise: paired re-evaluation of a run, subject by subject, stored with the run.

Both sides of a pair are working-grid Dice of the same subjects, each at its own threshold, found by the same
protocol on its own calibration or validation maps. Which variant is best is decided on validation subjects only.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from core.bootstrap import mean_interval, paired_difference
from core.calibration import QUANTILE
from core.detectors import AnyDetector, FeatureGaussian, LayerSet, kind_of
from core.diagnosis.cases import Case, cases
from core.diagnosis.variants import (
    QUARTILES,
    ROBUST,
    TAILED,
    boundary_distance_mm,
    brought_back,
    depth_mm,
    eroded,
    intensity_quantiles,
    moved,
    narrowed,
    nested_subset,
    reestimated,
    refitted,
    renormalised,
    rescored,
    score_quantiles,
    shifted,
    with_moved_boundary,
    with_scores_mapped,
    without_border,
)
from core.evaluation import read_metrics
from core.experiment import CHUNK, PreparedVolumes, cache_directory, load_detector, prepared_of, scored_subjects
from core.lock import hold_lock
from core.memory_plan import GaussianSettings
from core.metrics import SubjectScores, best_common_threshold, dice_at, healthy_rule
from core.progress import Progress
from core.run_scores import RunScores, open_scores, set_id
from core.store import Run
from data.errors import BadInput, EnvironmentProblem, IntegrityError
from data.files import (
    committed_directory,
    is_committed,
    read_json,
    remove_unfinished,
    sha256_file,
    verify_directory,
    write_json,
)
from data.preprocessing import Prepared
from data.template import working_template
from data.volume import Volume

Thresholds = Mapping[str, float | None]
"""Per protocol; None where it cannot be had."""
Scored = Mapping[str, Sequence[SubjectScores]]
"""Voxels of the subjects of "calibration", "validation" and "test", in one order."""

PROTOCOLS = ("healthy", "validation")
Scores = Float32[np.ndarray, "x y z"]

N_BOOTSTRAP = 10_000
LINEAR_STEPS = 100
SHIFTS_MM = (0.5, 1.0, 2.0)
_ROLES = ("calibration", "validation", "test")
_AXES = ("right", "front", "top")
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
    stored; `protocol` says which one is told while it runs. A stored result of the same evaluation is given back.
    BadInput when the what-if does not apply to this run, naming those that do.
    """
    scores, layers = _asked(run, name, layer_set, protocol)
    directory = _directory(run, layers) / name
    key = _key(run, name)
    stored = _read(directory)
    if stored is not None and stored["key"] == key:
        progress.say(f"{stored['title']}: stored already in {directory}.")
        _tell(stored, protocol, progress)
        return stored
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
        "seconds": round(time.perf_counter() - began, 3),
        "argv": ["what-if", run.run_id, name, "--layers", set_id(layers), "--protocol", protocol],
        "protocol": protocol,
        "key": key,
        "variants": outcome.variants,
        "notes": outcome.notes,
        **outcome.extra,
    }
    _commit(directory, result)
    _tell(result, protocol, progress)
    return result


def stored_what_ifs(run: Run, layer_set: str) -> list[dict[str, Any]]:
    """Stored results of one layer set that belong to the run's present evaluation, in the catalogue's order."""
    if not is_committed(run.directory / "evaluation"):
        return []
    layers = open_scores(run).layer_set(layer_set)
    found = [(name, _read(_directory(run, layers) / name)) for name in CATALOGUE]
    return [result for name, result in found if result is not None and result["key"] == _key(run, name)]


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
            if not variant["deployable"] or chosen_on is None or judged is None or chosen_on["gain"] is None:
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


def paired_evaluation(
    before: Mapping[str, Sequence[Case | SubjectScores]],
    after: Mapping[str, Sequence[Case | SubjectScores]],
    *,
    quantile: float = QUANTILE,
    fp_ml_per_scan: float | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> dict[str, Any]:
    """Dice before and after a change, in pairs, each side at thresholds from its own maps. Needs no run.

    Both mappings hold "calibration", "validation" and "test", the same subjects in the same order. Returns
    `thresholds`, `validation` (threshold re-chosen on validation), `validation_by_protocol` and `test`. Subjects
    that have no lesion voxel on one side are left out of both.
    """
    first, second = _scored(before), _scored(after)
    cuts = [thresholds_of(side, quantile=quantile, fp_ml_per_scan=fp_ml_per_scan) for side in (first, second)]
    return paired_at(first, second, cuts[0], cuts[1], n_bootstrap=n_bootstrap, seed=seed)


def thresholds_of(
    scored: Scored, *, quantile: float = QUANTILE, fp_ml_per_scan: float | None = None
) -> dict[str, float | None]:
    """The threshold of each protocol; test subjects are not looked at. None for validation without lesion voxels."""
    labelled = any(len(s.anomalous) for s in scored["validation"])
    return {
        "healthy": healthy_rule(scored["calibration"], quantile=quantile, fp_ml_per_scan=fp_ml_per_scan).threshold,
        "validation": best_common_threshold(scored["validation"])[0] if labelled else None,
    }


def paired_at(
    before: Scored,
    after: Scored,
    cuts_before: Thresholds,
    cuts_after: Thresholds,
    *,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> dict[str, Any]:
    """`paired_evaluation` at given thresholds."""
    for role in _ROLES:
        if [s.subject_id for s in before[role]] != [s.subject_id for s in after[role]]:
            raise BadInput(f"The {role} subjects before and after differ. Give the same ones in the same order.")
    validation: dict[str, Any] = {}
    test: dict[str, Any] = {}
    for protocol in PROTOCOLS:
        first, second = cuts_before[protocol], cuts_after[protocol]
        if first is None or second is None:
            validation[protocol] = test[protocol] = None
            continue
        pairs = _dice_pairs(before["validation"], after["validation"], first, second)
        validation[protocol] = _difference(pairs, n_bootstrap, seed) if pairs else None
        pairs = _dice_pairs(before["test"], after["test"], first, second)
        test[protocol] = {
            **_difference(pairs, n_bootstrap, seed),
            "false_ml_before": _false_ml(before["test"], first),
            "false_ml_after": _false_ml(after["test"], second),
            "subjects": [{"subject_id": i, "before": a, "after": b} for i, (a, b) in pairs.items()],
        }
    return {
        "thresholds": {p: {"before": cuts_before[p], "after": cuts_after[p]} for p in PROTOCOLS},
        "validation": validation["validation"],
        "validation_by_protocol": validation,
        "test": test,
    }


@dataclass(frozen=True)
class Outcome:
    """What a what-if found: its variants, and anything else that its result carries."""

    variants: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


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


@dataclass(frozen=True, eq=False)
class Bench:
    """What a what-if works with: one run under one layer set. Holds 4 bytes per brain voxel of a subject and side."""

    run: Run
    scores: RunScores
    layers: LayerSet
    quantile: float
    fp_ml_per_scan: float | None
    progress: Progress
    n_bootstrap: int = N_BOOTSTRAP

    @functools.cached_property
    def stored(self) -> dict[str, list[SubjectScores]]:
        """The run's own maps."""
        return self.from_maps("Reading score maps", lambda case: case)

    @functools.cached_property
    def detector(self) -> AnyDetector:
        """The run's fitted detector, reduced to the layer set."""
        detector = load_detector(self.run)
        return narrowed(detector, self.layers) if isinstance(detector, FeatureGaussian) else detector

    @functools.cached_property
    def again(self) -> dict[str, list[SubjectScores]]:
        """The run's own scans scored again by its own detector: the other side of every pair that scores again."""
        again = self.from_volumes("Scoring as it was", [self.detector])[0]
        _check_reproduced(self.run, self.stored, again)
        return again

    def maps(self, role: str) -> Iterator[Case]:
        """Subjects of a role with their stored maps, one at a time."""
        return cases(self.scores, role, self.layers)

    def from_maps(self, what: str, change: Callable[[Case], Case]) -> dict[str, list[SubjectScores]]:
        """Voxels of every subject after a change of its score map."""
        changed: dict[str, list[SubjectScores]] = {role: [] for role in _ROLES}
        with self.progress.task(what, len(scored_subjects(self.run))) as advance:
            for role in _ROLES:
                for case in self.maps(role):
                    changed[role].append(change(case).voxels)
                    advance(1, case.subject_id)
        return changed

    def from_volumes(
        self,
        what: str,
        detectors: Sequence[AnyDetector],
        change: Callable[[Volume], Volume] = lambda volume: volume,
        back: Callable[[Scores, Volume], Scores] = lambda scores, volume: scores,
    ) -> list[dict[str, list[SubjectScores]]]:
        """Voxels of every subject after its changed scan was scored by each of the detectors.

        `back` brings the scores of the changed scan onto the unchanged one.
        """
        changed: list[dict[str, list[SubjectScores]]] = [{role: [] for role in _ROLES} for _ in detectors]
        subjects = scored_subjects(self.run)
        role_of = {i: role for role in _ROLES for i in self.scores.subjects(role)}
        with self.progress.task(what, len(subjects)) as advance:
            for start in range(0, len(subjects), CHUNK):
                chunk = [prepared_of(self.run, s["subject_id"]) for s in subjects[start : start + CHUNK]]
                scored = rescored(detectors, [change(one.volume) for one in chunk], self.layers)
                for side, maps in zip(changed, scored, strict=True):
                    for prepared, scores in zip(chunk, maps, strict=True):
                        case = self._case(prepared, back(scores, prepared.volume))
                        side[role_of[case.subject_id]].append(case.voxels)
                advance(len(chunk), chunk[-1].volume.subject_id)
        return changed

    def _case(self, prepared: Prepared, scores: Scores) -> Case:
        lesion, subject_id = prepared.lesion, prepared.volume.subject_id
        marked = np.zeros(scores.shape, dtype=bool) if lesion is None else lesion.voxels
        return Case(subject_id, self.scores.is_healthy(subject_id), prepared.volume, marked, scores)

    def training(self, indices: Sequence[int] | None = None) -> PreparedVolumes:
        """Training scans (some of them), read one at a time."""
        ids = self.scores.subjects("train")
        chosen = ids if indices is None else [ids[i] for i in indices]
        keys = {s["subject_id"]: s["key"] for s in self.run.record["cohort"]["subjects"]}
        return PreparedVolumes(cache_directory(self.run.directory.parent), tuple(keys[i] for i in chosen))

    def pair(self, before: Scored, after: Scored) -> dict[str, Any]:
        """`paired_evaluation` by the rule of the run's own evaluation."""
        return paired_evaluation(
            before,
            after,
            quantile=self.quantile,
            fp_ml_per_scan=self.fp_ml_per_scan,
            n_bootstrap=self.n_bootstrap,
        )

    def cuts(self, scored: Scored) -> dict[str, float | None]:
        """`thresholds_of` by the rule of the run's own evaluation."""
        return thresholds_of(scored, quantile=self.quantile, fp_ml_per_scan=self.fp_ml_per_scan)


def _variant(
    name: str,
    title: str,
    settings: Mapping[str, Any],
    paired: Mapping[str, Any],
    *,
    deployable: bool = False,
    needs_labels: bool = False,
) -> dict[str, Any]:
    return {
        "id": name,
        "title": title,
        "deployable": deployable,
        "needs_labels": needs_labels,
        "settings": dict(settings),
        **paired,
    }


def _erode_mask(bench: Bench) -> Outcome:
    variants = []
    grid = bench.scores.prepared(bench.scores.subjects("test")[0]).volume.grid
    edge = min(grid.spacing_mm)
    for voxels in (1, 2, 3):
        mm = voxels * edge
        after = bench.from_maps(f"Eroding by {voxels}", lambda case, mm=mm: eroded(case, mm))  # type: ignore[misc]
        title = f"own brain mask eroded by {voxels} voxel{'s' if voxels > 1 else ''} ({mm:g} mm)"
        settings = {"mask": "own", "voxels": voxels, "millimetres": mm}
        variants.append(_variant(f"own-{voxels}", title, settings, bench.pair(bench.stored, after), deployable=True))
    template = working_template(bench.run.record["preprocessing"]["spacing_mm"])
    if not template.grid.matches(grid):
        return Outcome(variants, ["The scans are not on the template's grid: only their own masks were eroded."])
    depth = depth_mm(template.brain_mask, grid.spacing_mm)
    for mm in (0.0, 2.0, 4.0):
        change: Callable[[Case], Case] = functools.partial(_within, depth=depth, millimetres=mm)
        after = bench.from_maps(f"Template mask, {mm:g} mm", change)
        title = f"within the template's brain eroded by {mm:g} mm"
        settings = {"mask": "template", "millimetres": mm}
        variants.append(
            _variant(f"template-{mm:g}mm", title, settings, bench.pair(bench.stored, after), deployable=True)
        )
    return Outcome(variants)


def _within(case: Case, depth: Float32[np.ndarray, "x y z"], millimetres: float) -> Case:
    return eroded(case, millimetres, template=depth)


def _calibrate_subject(bench: Bench) -> Outcome:
    healthy = [score_quantiles(case, probabilities=TAILED) for case in bench.maps("calibration")]
    tailed = np.mean(healthy, axis=0)
    robust = tailed[[TAILED.index(p) for p in ROBUST]]
    choices: list[tuple[str, str, bool, Callable[[Case], Case]]] = [
        ("scale", "scores scaled to the median of calibration", False, lambda c: _rescaled(c, robust)),
        (
            "quantiles",
            "own 5 to 90 % score quantiles mapped onto those of calibration",
            False,
            lambda c: with_scores_mapped(c, score_quantiles(c), robust),
        ),
        (
            "oracle",
            "the same up to 99.9 %, lesion voxels left out of the quantiles",
            True,
            lambda c: with_scores_mapped(c, score_quantiles(c, probabilities=TAILED, without_lesion=True), tailed),
        ),
    ]
    variants = []
    for name, title, labels, change in choices:
        after = bench.from_maps(f"Calibrating: {name}", change)
        settings = {"reference": dict(zip(map(str, TAILED), tailed.tolist(), strict=True))}
        paired = bench.pair(bench.stored, after)
        variants.append(_variant(name, title, settings, paired, deployable=not labels, needs_labels=labels))
    return Outcome(variants)


def _rescaled(case: Case, reference: Float64[np.ndarray, " q"]) -> Case:
    middle = ROBUST.index(0.5)
    own = score_quantiles(case)[middle]
    return with_scores_mapped(case, np.array([0.0, own]), np.array([0.0, reference[middle]]))


def _label_boundary(bench: Bench) -> Outcome:
    variants = []
    for voxels, name, word in ((-1, "eroded", "eroded"), (1, "dilated", "dilated")):
        change: Callable[[Case], Case] = functools.partial(with_moved_boundary, voxels=voxels)
        after = bench.from_maps(f"Reference {word}", change)
        title = f"reference {word} by one voxel"
        paired = bench.pair(bench.stored, after)
        variants.append(_variant(name, title, {"voxels": voxels}, paired, needs_labels=True))
    return Outcome(variants, _left_out_notes(bench, variants))


def _dont_care(bench: Bench) -> Outcome:
    after = bench.from_maps("Leaving the border out", without_border)
    paired = bench.pair(bench.stored, after)
    title = "one voxel on either side of the lesion's border left out"
    variants = [_variant("band-1", title, {"voxels": 1}, paired, needs_labels=True)]
    return Outcome(variants, _left_out_notes(bench, variants))


def _threshold_grid(bench: Bench) -> Outcome:
    exact = bench.cuts(bench.stored)
    coarse = linear_thresholds(bench.stored, exact)
    paired = paired_at(bench.stored, bench.stored, exact, coarse, n_bootstrap=bench.n_bootstrap)
    cut, dice = best_common_threshold(bench.stored["test"])
    grid, found = best_of_linear_grid(bench.stored["test"])
    title = f"threshold from {LINEAR_STEPS} equal steps between the lowest and the highest score"
    variant = _variant(f"linear-{LINEAR_STEPS}", title, {"steps": LINEAR_STEPS}, paired)
    variant["oracle"] = {
        "needs_labels": True,
        **_difference(_dice_pairs(bench.stored["test"], bench.stored["test"], cut, grid), bench.n_bootstrap, 0),
    }
    note = f"Threshold chosen on the test labels (oracle): {found:.3f} on the coarse grid, {dice:.3f} exactly."
    return Outcome([variant], [note])


def linear_thresholds(scored: Scored, exact: Thresholds, steps: int = LINEAR_STEPS) -> dict[str, float | None]:
    """What each protocol would choose if only `steps` equal steps between lowest and highest score were tried.

    Healthy: the lowest step that keeps the promise of the exact threshold, or that threshold when none does.
    """
    assert exact["healthy"] is not None
    cuts = _linear_cuts(scored["calibration"], steps)
    keeping = cuts[cuts >= np.float32(exact["healthy"])]
    healthy = float(keeping[0]) if len(keeping) else exact["healthy"]
    labelled = exact["validation"] is not None
    return {
        "healthy": healthy,
        "validation": best_of_linear_grid(scored["validation"], steps)[0] if labelled else None,
    }


def best_of_linear_grid(subjects: Sequence[SubjectScores], steps: int = LINEAR_STEPS) -> tuple[float, float]:
    """(threshold, mean Dice) of the best of `steps` equal steps between lowest and highest score."""
    bearing = [s for s in subjects if s.n_lesion]
    cuts = _linear_cuts(bearing, steps)
    total = np.zeros(len(cuts))
    for subject in bearing:
        hits, alarms = (_reaching(values, cuts) for values in (subject.anomalous, subject.normal))
        total += 2.0 * hits / (hits + alarms + subject.n_lesion)
    best = int(total.argmax())
    return float(cuts[best]), float(total[best] / len(bearing))


def _linear_cuts(subjects: Sequence[SubjectScores], steps: int) -> Float32[np.ndarray, " steps"]:
    values = [part for s in subjects for part in (s.normal, s.anomalous) if len(part)]
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    return np.linspace(low, high, steps).astype(np.float32)


def _reaching(scores: Float32[np.ndarray, " voxels"], cuts: Float32[np.ndarray, " cuts"]) -> np.ndarray:
    passed = np.bincount(np.searchsorted(cuts, scores, side="right"), minlength=len(cuts) + 1)
    counts: np.ndarray = len(scores) - np.cumsum(passed)[:-1]
    return counts


def _renormalise(bench: Bench) -> Outcome:
    training = bench.training()
    with bench.progress.task("Reading training intensities", len(training)) as advance:
        total = np.zeros((len(training[0].contrasts), len(QUARTILES)))
        for volume in training:
            total += intensity_quantiles(volume)
            advance(1, volume.subject_id)
    reference = total / len(training)
    variants = []
    for name, affine, title in (
        ("affine", True, "gain and offset from the outer quartiles in the brain"),
        ("quartiles", False, "all three quartiles in the brain matched, linear between and beyond"),
    ):
        change: Callable[[Volume], Volume] = functools.partial(renormalised, reference=reference, affine=affine)
        after = bench.from_volumes(f"Renormalised, {name}", [bench.detector], change)[0]
        settings = {"reference": reference.tolist(), "probabilities": list(QUARTILES)}
        variants.append(_variant(name, title, settings, bench.pair(bench.again, after), deployable=True))
    return Outcome(variants)


def _shift(bench: Bench) -> Outcome:
    return _moved(bench, together=False)


def _register(bench: Bench) -> Outcome:
    return _moved(bench, together=True)


def _moved(bench: Bench, *, together: bool) -> Outcome:
    before, cuts = bench.again, bench.cuts(bench.again)
    variants = []
    aligned = {p: _AlignedDice(before, cuts[p]) for p in PROTOCOLS}
    for axis, mm in _offsets():
        offset = (mm * (axis == 0), mm * (axis == 1), mm * (axis == 2))
        change: Callable[[Volume], Volume] = functools.partial(moved if together else shifted, offset_mm=offset)
        back: Callable[[Scores, Volume], Scores] = functools.partial(brought_back, offset_mm=offset)
        what = f"Moved by {mm:g} mm, {_AXES[axis]}"
        detectors = [bench.detector]
        after = (
            bench.from_volumes(what, detectors, change, back)
            if together
            else bench.from_volumes(what, detectors, change)
        )[0]
        for found in aligned.values():
            found.offer(after, offset)
        if mm > 0:
            lesion = "lesion with it" if together else "lesion left where it is"
            title = f"scan moved {mm:g} mm to the {_AXES[axis]}, {lesion}"
            settings = {"offset_mm": list(offset), "millimetres": mm, "axis": _AXES[axis], "together": together}
            variants.append(_variant(f"{_AXES[axis]}-{mm:g}mm", title, settings, bench.pair(before, after)))
    slopes = {p: jitter_slope(variants, p, n_bootstrap=bench.n_bootstrap) for p in PROTOCOLS}
    oracle = _oracle_align(before, cuts, aligned, bench.n_bootstrap)
    return Outcome([*variants, oracle], [], {"jitter": _jitter(bench, slopes)})


def _offsets() -> list[tuple[int, float]]:
    """(axis, mm): forward for the slope, and back from 1 mm on, so that a scan can be put right from either side."""
    steps = [*SHIFTS_MM, *(-mm for mm in SHIFTS_MM if mm >= 1.0)]
    return [(axis, mm) for axis in range(3) for mm in steps]


@dataclass(eq=False)
class _AlignedDice:
    """Best Dice of each labelled subject over the offsets offered, at one threshold."""

    before: Scored
    cut: float | None
    best: dict[str, tuple[float, list[float]]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.offer(self.before, (0.0, 0.0, 0.0))

    def offer(self, scored: Scored, offset: tuple[float, float, float]) -> None:
        for subject in [*scored["validation"], *scored["test"]] if self.cut is not None else []:
            assert self.cut is not None
            dice = dice_at(subject, self.cut)
            if dice is not None and dice > self.best.get(subject.subject_id, (-1.0, []))[0]:
                self.best[subject.subject_id] = (dice, list(offset))


def _oracle_align(
    before: Scored,
    cuts: Thresholds,
    aligned: Mapping[str, _AlignedDice],
    n_bootstrap: int,
) -> dict[str, Any]:
    paired = paired_at(before, before, cuts, cuts, n_bootstrap=n_bootstrap)
    for p in PROTOCOLS:
        best = aligned[p].best
        cut = cuts[p]
        if cut is None:
            continue
        for role, block in (("validation", paired["validation_by_protocol"][p]), ("test", paired["test"][p])):
            if block is None:
                continue
            own = _dice_pairs(before[role], before[role], cut, cut)
            pairs = {i: (a, best[i][0]) for i, (a, _) in own.items()}
            block |= _difference(pairs, n_bootstrap, 0)
            if role == "test":
                block["subjects"] = [
                    {"subject_id": i, "before": a, "after": b, "offset_mm": best[i][1]} for i, (a, b) in pairs.items()
                ]
    paired["validation"] = paired["validation_by_protocol"]["validation"]
    title = "every labelled scan at the best of its offsets (thresholds kept): an upper bound"
    offsets = [0.0, *SHIFTS_MM, *(-mm for mm in SHIFTS_MM if mm >= 1.0)]
    return _variant("oracle-align", title, {"offsets_mm_along_each_axis": offsets}, paired, needs_labels=True)


def jitter_slope(
    variants: Sequence[Mapping[str, Any]], protocol: str, *, n_bootstrap: int = N_BOOTSTRAP
) -> dict[str, Any] | None:
    """Change of Dice per mm of shift: per subject the line through 0 that fits D(δ) − D(0), averaged over subjects."""
    sums: dict[str, list[float]] = {}
    for variant in variants:
        if variant["test"][protocol] is None:
            return None
        mm = variant["settings"]["millimetres"]
        for row in variant["test"][protocol]["subjects"]:
            total = sums.setdefault(row["subject_id"], [0.0, 0.0])
            total[0] += mm * (row["after"] - row["before"])
            total[1] += mm * mm
    slopes = [change / square for change, square in sums.values()]
    interval = mean_interval(slopes, seed=0, n_resamples=n_bootstrap, purpose="jitter slope")
    return {"per_mm": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n}


def _jitter(bench: Bench, slopes: Mapping[str, dict[str, Any] | None]) -> dict[str, Any]:
    """The slopes, the registration error that can be seen without labels, and their product: the cost of R6."""
    residual, cost = None, dict.fromkeys(slopes)
    brains = [prepared_of(bench.run, i).volume for i in bench.scores.subjects("test")]
    template = working_template(bench.run.record["preprocessing"]["spacing_mm"])
    if brains and template.grid.matches(brains[0].grid):
        spacing = template.grid.spacing_mm
        found = [boundary_distance_mm(v.brain_mask, template.brain_mask, spacing) for v in brains]
        residual = float(np.median(found))
        cost = {
            p: None if s is None or s["per_mm"] is None else 0.0 - s["per_mm"] * residual for p, s in slopes.items()
        }
    return {"slope": dict(slopes), "residual_mm": residual, "cost": cost}


def _covariance(bench: Bench) -> Outcome:
    detector = bench.detector
    assert isinstance(detector, FeatureGaussian)
    own = detector.gaussian
    notes: list[str] = []
    choices: dict[str, tuple[str, FeatureGaussian]] = {}
    for name, title, settings in _covariances(own):
        if (settings.covariance, settings.shrinkage, settings.ridge) == (own.covariance, own.shrinkage, own.ridge):
            continue
        changed = reestimated(detector, settings)
        if changed is None:
            try:
                with bench.progress.task(f"Fitting again: {title}"):
                    again = refitted(detector, bench.training(), settings)
            except EnvironmentProblem as problem:
                notes.append(f"Left out, {title}: {problem}")
                continue
            assert isinstance(again, FeatureGaussian)
            changed = again
        choices[name] = (title, changed)
    scored = bench.from_volumes("Scoring by each covariance", [detector, *(d for _, d in choices.values())])
    _check_reproduced(bench.run, bench.stored, scored[0])
    variants = []
    for (name, (title, changed)), after in zip(choices.items(), scored[1:], strict=True):
        assert changed.gaussian_ is not None
        used = changed.gaussian_.settings
        described = {"covariance": used.covariance, "shrinkage": used.shrinkage, "ridge": used.ridge}
        variants.append(_variant(name, title, described, bench.pair(scored[0], after), deployable=True))
    return Outcome(variants, notes)


def _covariances(own: GaussianSettings) -> list[tuple[str, str, GaussianSettings]]:
    ridge = own.ridge
    return [
        ("full-ridge", f"full covariance, ridge {ridge:g}", GaussianSettings(ridge=ridge)),
        ("diagonal", "no correlations between features", GaussianSettings(covariance="diagonal", ridge=ridge)),
        ("ledoit-wolf", "Ledoit-Wolf shrinkage", GaussianSettings(shrinkage="ledoit_wolf", ridge=ridge)),
        ("oas", "oracle approximating shrinkage (OAS)", GaussianSettings(shrinkage="oas", ridge=ridge)),
        ("ridge-x10", f"ridge {10 * ridge:g} in the place of {ridge:g}", replace(own, ridge=10 * ridge)),
    ]


def _fewer_scans(bench: Bench) -> Outcome:
    count = len(bench.scores.subjects("train"))
    seed = int(bench.run.record["seed"])
    before, variants = bench.again, []
    for parts in (2, 4):
        chosen = nested_subset(count, parts, seed)
        if len(chosen) < 2:
            continue
        with bench.progress.task(f"Fitting to {len(chosen)} of {count} scans"):
            smaller = refitted(bench.detector, bench.training(chosen))
        after = bench.from_volumes(f"Scoring with {len(chosen)} training scans", [smaller])[0]
        settings = {"training_scans": len(chosen), "of": count, "parts": parts, "seed": seed}
        title = f"{len(chosen)} of {count} training scans"
        variants.append(_variant(f"n-over-{parts}", title, settings, bench.pair(before, after)))
    return Outcome(variants, _curve_notes(variants, count))


def _curve_notes(variants: Sequence[Mapping[str, Any]], count: int) -> list[str]:
    notes = []
    for protocol in PROTOCOLS:
        blocks = [v["test"][protocol] for v in reversed(variants)]
        if not blocks or any(b is None or b["variant"] is None for b in blocks):
            continue
        sizes = [*(v["settings"]["training_scans"] for v in reversed(variants)), count]
        dice = [*(b["variant"] for b in blocks), blocks[0]["baseline"]]
        line = ", ".join(f"{n} scans {value:.3f}" for n, value in zip(sizes, dice, strict=True))
        notes.append(f"Learning curve on test, threshold by {protocol}: {line}.")
    return notes


def _any_detector(scores: RunScores) -> str | None:
    return None


def _missing_for_renormalise(scores: RunScores) -> str | None:
    if kind_of(scores.detector) == "Intensity":
        return "another detector: the score is a rank inside the brain, which no increasing map of intensity changes"
    return None


def _missing_for_covariance(scores: RunScores) -> str | None:
    if not isinstance(scores.detector, FeatureGaussian):
        return f"a Gaussian over features: this detector is {kind_of(scores.detector)} and has no covariance"
    return None


def _missing_for_fewer(scores: RunScores) -> str | None:
    if kind_of(scores.detector) == "Intensity":
        return "a detector that learns: Intensity takes nothing from its training scans"
    count = len(scores.subjects("train"))
    return None if count >= 4 else f"training scans: there are {count}, halving needs at least 4"


CATALOGUE: Mapping[str, WhatIf] = {
    "erode-mask": WhatIf(
        "Score less of the brain's rim",
        "D(scores within the eroded brain) − D; lesion voxels outside it count as missed",
        ("R9", "R4"),
        _erode_mask,
        _any_detector,
        Cost(maps=7),
    ),
    "calibrate-subject": WhatIf(
        "Calibrate each subject's scores",
        "D(scores mapped through the subject's own quantiles onto those of calibration) − D",
        ("R5",),
        _calibrate_subject,
        _any_detector,
        Cost(maps=4),
    ),
    "renormalise": WhatIf(
        "Bring intensities to the training scans'",
        "D(scans renormalised to the mean training quartiles, scored again) − D",
        ("R5",),
        _renormalise,
        _missing_for_renormalise,
        Cost(maps=1, scorings=3),
    ),
    "covariance": WhatIf(
        "Estimate the covariance otherwise",
        "D(diagonal, Ledoit-Wolf, OAS or ten times the ridge, same features) − D",
        ("R8",),
        _covariance,
        _missing_for_covariance,
        Cost(maps=1, scorings=2),
    ),
    "fewer-scans": WhatIf(
        "Train on half and on a quarter",
        "D(N/2), D(N/4) − D(N), nested seeded subsets, same features",
        ("R8",),
        _fewer_scans,
        _missing_for_fewer,
        Cost(maps=1, scorings=3, fits=0.75),
    ),
    "shift": WhatIf(
        "Move the scans a little",
        "D(scan moved by δ before scoring, lesion and mask left) − D for δ = 0.5, 1, 2 mm; slope per mm; best offset",
        ("R6",),
        _shift,
        _any_detector,
        Cost(maps=1, scorings=16),
    ),
    "register": WhatIf(
        "Move scan and lesion together",
        "D(scan, mask and lesion moved by δ against the healthy reference) − D, as registration errors do; best offset",
        ("R6",),
        _register,
        _any_detector,
        Cost(maps=1, scorings=17),
    ),
    "label-boundary": WhatIf(
        "Move the reference's boundary",
        "D(against the reference eroded or dilated by one voxel) − D",
        ("R13",),
        _label_boundary,
        _any_detector,
        Cost(maps=3),
    ),
    "dont-care": WhatIf(
        "Leave the lesion's border out",
        "D(without a band of ±1 voxel around the border) − D",
        ("R4",),
        _dont_care,
        _any_detector,
        Cost(maps=2),
    ),
    "threshold-grid": WhatIf(
        "Choose the threshold on a coarse grid",
        "D(best of 100 equal steps from lowest to highest score) − D(exact)",
        ("R7",),
        _threshold_grid,
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
    if not is_committed(run.directory / "evaluation"):
        return f"an evaluation: python cli.py evaluate {run.run_id}"
    if all(scores.is_healthy(i) for i in scores.subjects("test")):
        return "test subjects with lesions: without them there is no Dice"
    return None


def _bench(run: Run, scores: RunScores, layers: LayerSet, progress: Progress) -> Bench:
    metrics = read_metrics(run)
    return Bench(run, scores, layers, metrics["quantile"], metrics["fp_ml_per_scan"], progress)


def _directory(run: Run, layers: LayerSet) -> Path:
    return run.directory / "whatifs" / set_id(layers)


def _key(run: Run, name: str) -> dict[str, Any]:
    manifest = sha256_file(run.directory / "evaluation" / "manifest.json")
    return {"evaluation": manifest, "name": name, "version": CATALOGUE[name].version}


def _read(directory: Path) -> dict[str, Any] | None:
    """A stored result; None when there is none or its bytes are damaged (it is then computed anew)."""
    if not is_committed(directory):
        return None
    try:
        verify_directory(directory)
        result: dict[str, Any] = read_json(directory / "result.json")
    except (IntegrityError, FileNotFoundError):
        return None
    return result


def _commit(directory: Path, result: Mapping[str, Any]) -> None:
    """Write a result whole; what-ifs of one layer set that end at the same moment wait for one another."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        for attempt in range(50):
            try:
                held.enter_context(hold_lock(directory.parent))
                break
            except BadInput:
                if attempt == 49:
                    raise
                time.sleep(0.2)
        remove_unfinished(directory.parent)
        with committed_directory(directory) as scratch:
            write_json(scratch / "result.json", result)


def _cost_text(run: Run, cost: Cost) -> str:
    """How long it will take, from how long this run took to score and to fit; the upper end for few layers."""
    scored, trained = len(scored_subjects(run)), len(run.record["split"].get("train", []))
    stages = run.record.get("stages", {})
    seconds = cost.maps * scored * _MAP_SECONDS
    seconds += cost.scorings * float(stages.get("scores", {}).get("seconds", scored))
    seconds += cost.fits * float(stages.get("detector", {}).get("seconds", trained))
    work = [f"{cost.maps:g} x {scored} maps read"]
    work += [f"{cost.scorings:g} x {scored} scans scored"] if cost.scorings else []
    work += [f"{cost.fits:g} x {trained} scans fitted"] if cost.fits else []
    long = f"{max(seconds, 1):.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
    return f"up to about {long}: {', '.join(work)}"


def _tell(result: Mapping[str, Any], protocol: str, progress: Progress) -> None:
    for variant in result["variants"]:
        block = variant["test"][protocol]
        if block is None or block["gain"] is None:
            continue
        between = "" if block["low"] is None else f" [{block['low']:+.4f}, {block['high']:+.4f}]"
        labels = ", needs labels" if variant["needs_labels"] else ""
        progress.say(f"{variant['title']}: {block['gain']:+.4f}{between} on {block['n']} test subjects{labels}")


def _left_out_notes(bench: Bench, variants: Sequence[Mapping[str, Any]]) -> list[str]:
    bearing = sum(1 for s in bench.stored["test"] if s.n_lesion)
    notes = []
    for variant in variants:
        n = variant["test"]["healthy"]["n"]
        if n < bearing:
            notes.append(f"{variant['title']}: {bearing - n} of {bearing} test subjects have no lesion voxel left.")
    return notes


def _scored(sides: Mapping[str, Sequence[Case | SubjectScores]]) -> dict[str, list[SubjectScores]]:
    return {role: [one.voxels if isinstance(one, Case) else one for one in sides[role]] for role in _ROLES}


def _dice_pairs(
    before: Sequence[SubjectScores], after: Sequence[SubjectScores], first: float, second: float
) -> dict[str, tuple[float, float]]:
    pairs = {}
    for a, b in zip(before, after, strict=True):
        had, has = dice_at(a, first), dice_at(b, second)
        if had is not None and has is not None:
            pairs[a.subject_id] = (had, has)
    return pairs


def _difference(pairs: Mapping[str, tuple[float, float]], n_bootstrap: int, seed: int) -> dict[str, Any]:
    had, has = [a for a, _ in pairs.values()], [b for _, b in pairs.values()]
    gain = paired_difference(has, had, seed=seed, n_resamples=n_bootstrap)
    return {
        "baseline": float(np.mean(had)) if had else None,
        "variant": float(np.mean(has)) if has else None,
        "gain": gain.mean,
        "low": gain.low,
        "high": gain.high,
        "n": gain.n,
    }


def _false_ml(subjects: Sequence[SubjectScores], cut: float) -> float | None:
    """Mean volume at or above the threshold in healthy scans, mL."""
    volumes = [s.counts(cut)[1] * s.voxel_ml for s in subjects if s.healthy]
    return float(np.mean(volumes)) if volumes else None


def _check_reproduced(run: Run, stored: Scored, again: Scored) -> None:
    for role in _ROLES:
        for one, other in zip(stored[role], again[role], strict=True):
            same = len(one.normal) == len(other.normal)
            if not same or not np.allclose(one.normal, other.normal, rtol=1e-2, atol=1e-2 * float(one.normal.std())):
                raise IntegrityError(
                    f"The detector of run {run.run_id} does not give the stored scores of {one.subject_id!r} back. "
                    f"Score and evaluate it again: python cli.py score {run.run_id}"
                )
