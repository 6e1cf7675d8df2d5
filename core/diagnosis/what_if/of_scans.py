"""What-ifs that change the scans and score them again: their intensities, and where they lie."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from core.diagnosis.what_if.bench import Bench, Outcome, Scores, variant_of
from core.diagnosis.what_if.paired import N_BOOTSTRAP, PROTOCOLS, Scored
from core.diagnosis.what_if.variants import (
    QUARTILES,
    boundary_distance_mm,
    brought_back,
    intensity_quantiles,
    moved,
    renormalised,
    shifted,
)
from core.metrics.bootstrap import mean_interval
from core.metrics.exact_curve import exact_curve
from core.metrics.subject_scores import SubjectScores
from core.study.run_scans import prepared_of
from data.template import working_template
from data.volume import Volume

SHIFTS_MM = (0.5, 1.0, 2.0)
_AXES = ("right", "front", "top")


def renormalise(bench: Bench) -> Outcome:
    """Intensities of every scan brought to those of the training scans, and scored again: R5."""
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
        variants.append(variant_of(name, title, settings, bench.pair(bench.again, after), deployable=True))
    return Outcome(variants)


def shift(bench: Bench) -> Outcome:
    """Every scan moved under its lesion and mask, as labels that do not sit on the scan: R6."""
    return _moved(bench, together=False)


def register(bench: Bench) -> Outcome:
    """Every scan moved with its lesion and mask against the healthy reference, as registration errs: R6."""
    return _moved(bench, together=True)


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


def _moved(bench: Bench, *, together: bool) -> Outcome:
    before, variants = bench.again, []
    aligned = _Aligned(before)
    for axis, mm in _offsets():
        offset = (mm if axis == 0 else 0.0, mm if axis == 1 else 0.0, mm if axis == 2 else 0.0)
        change: Callable[[Volume], Volume] = functools.partial(moved if together else shifted, offset_mm=offset)
        back: Callable[[Scores, Volume], Scores] = functools.partial(brought_back, offset_mm=offset)
        what = f"Moved by {mm:g} mm, {_AXES[axis]}"
        after = bench.from_volumes(what, [bench.detector], change, back if together else None)[0]
        aligned.offer(after, offset)
        if mm > 0:
            lesion = "lesion with it" if together else "lesion left where it is"
            title = f"scan moved {mm:g} mm to the {_AXES[axis]}, {lesion}"
            settings = {"offset_mm": list(offset), "millimetres": mm, "axis": _AXES[axis], "together": together}
            variants.append(variant_of(f"{_AXES[axis]}-{mm:g}mm", title, settings, bench.pair(before, after)))
    slopes = {p: jitter_slope(variants, p, n_bootstrap=bench.n_bootstrap) for p in PROTOCOLS}
    return Outcome([*variants, _oracle_align(bench, aligned)], [], {"jitter": _jitter(bench, slopes)})


def _offsets() -> list[tuple[int, float]]:
    """(axis, mm): forward for the slope, and back from 1 mm on, so that a scan can be put right from either side."""
    steps = [*SHIFTS_MM, *(-mm for mm in SHIFTS_MM if mm >= 1.0)]
    return [(axis, mm) for axis in range(3) for mm in steps]


@dataclass(eq=False)
class _Aligned:
    """The maps of every labelled subject at the offset where its own best Dice, over all thresholds, is highest."""

    before: Scored
    best: dict[str, tuple[float, list[float], SubjectScores]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.offer(self.before, (0.0, 0.0, 0.0))

    def offer(self, scored: Scored, offset: tuple[float, float, float]) -> None:
        for subject in (s for role in ("validation", "test") for s in scored[role] if s.n_lesion):
            curve = exact_curve(subject.anomalous, subject.normal, unreachable=subject.lesion_unreachable_voxels)
            if curve.best_dice > self.best.get(subject.subject_id, (-1.0,))[0]:
                self.best[subject.subject_id] = (curve.best_dice, list(offset), subject)

    def scored(self) -> dict[str, list[SubjectScores]]:
        """The subjects as aligned; those without a lesion as they were."""
        return {
            role: [self.best[s.subject_id][2] if s.subject_id in self.best else s for s in subjects]
            for role, subjects in self.before.items()
        }


def _oracle_align(bench: Bench, aligned: _Aligned) -> dict[str, Any]:
    title = "every labelled scan at the best of its offsets: an upper bound"
    steps = [0.0, *SHIFTS_MM, *(-mm for mm in SHIFTS_MM if mm >= 1.0)]
    settings = {
        "millimetres_along_each_axis": steps,
        "offset_mm": {subject_id: offset for subject_id, (_, offset, _) in aligned.best.items()},
    }
    paired = bench.pair(aligned.before, aligned.scored())
    return variant_of("oracle-align", title, settings, paired, needs_labels=True)


def _jitter(bench: Bench, slopes: Mapping[str, dict[str, Any] | None]) -> dict[str, Any]:
    """The slopes, the registration error that can be seen without labels, and their product: the cost of R6."""
    brains = [prepared_of(bench.run, i).volume for i in bench.scores.subjects("test")]
    template = working_template(bench.run.record["preprocessing"]["spacing_mm"])
    if not template.grid.matches(brains[0].grid):
        return {"slope": dict(slopes), "residual_mm": None, "cost": dict.fromkeys(slopes)}
    spacing = template.grid.spacing_mm
    residual = float(np.median([boundary_distance_mm(v.brain_mask, template.brain_mask, spacing) for v in brains]))
    return {
        "slope": dict(slopes),
        "residual_mm": residual,
        "cost": {p: jitter_cost(slope, residual) for p, slope in slopes.items()},
    }


def jitter_cost(slope: Mapping[str, Any] | None, residual_mm: float) -> dict[str, Any] | None:
    """What a registration error of so many mm costs by a `jitter_slope`; its interval is the slope's alone."""
    if slope is None or slope["per_mm"] is None:
        return None
    low, high = (None if end is None else 0.0 - end * residual_mm for end in (slope["high"], slope["low"]))
    return {"cost": 0.0 - slope["per_mm"] * residual_mm, "low": low, "high": high, "n": slope["n"]}
