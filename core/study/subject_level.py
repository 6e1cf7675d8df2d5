"""One number per scan, and how well it tells ill scans from healthy ones: an AUROC over subjects, not voxels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64

from core.detectors import from_recipe
from core.detectors.capabilities import ScanScores, TwoParts, can
from core.randomness import stream
from core.study.stored_scores import RunScores, set_id
from core.types import Detector, LayerSet
from data.health import is_unknown

MAXIMUM = "largest score in the brain, on the working grid"
OF_THE_GATE = "of the gate, which decides for the pipeline whether a scan is ill: "
_RESAMPLES = 10_000


def subject_level(scores: RunScores, layers: LayerSet) -> dict[str, Any]:
    """AUROC of healthy against ill test scans under one layer set, by each rule that the run has.

    `maximum` is there for every detector, so that runs compare; `reweighted` where every test scan of a memory bank
    was scored with it, else None. Ill is who is not healthy by the cohort, with or without a lesion mask; who is of
    unknown health is left out.
    Both are the gate's in a gated run, whose map is 0 wherever its gate found nothing.
    """
    unknown = {s["subject_id"] for s in scores.run.record["cohort"]["subjects"] if is_unknown(s)}
    test = [i for i in scores.subjects("test") if i not in unknown]
    whole = {i: scores.subject_scores(i) for i in test}
    if can(scores.detector, TwoParts):
        of, largest = OF_THE_GATE, {i: whole[i]["maximum"] for i in test if "maximum" in whole[i]}
        stored = {i: whole[i].get("reweighted") for i in test}
    else:
        of, largest = "", {i: float(np.nanmax(scores.score_map(i, layers).scores)) for i in test}
        stored = {i: whole[i].get(set_id(layers)) for i in test}
    reweighted = {i: value for i, value in stored.items() if value is not None}
    healthy = {i: scores.is_healthy(i) for i in test}
    complete = bool(test) and len(reweighted) == len(test)
    return {
        "maximum": {"rule": of + MAXIMUM, **told_apart(largest, healthy)},
        "reweighted": {"rule": of + _scan_rule(scores.detector), **told_apart(reweighted, healthy)}
        if complete
        else None,
    }


def _scan_rule(detector: Detector) -> str:
    """How the detector's own number per scan comes about; of two parts it is the gate's."""
    gives = from_recipe(detector.gate) if can(detector, TwoParts) else detector
    return gives.scan_rule if can(gives, ScanScores) else "the detector's own number per scan"


def told_apart(values: Mapping[str, float], healthy: Mapping[str, bool], *, seed: int = 0) -> dict[str, Any]:
    """AUROC of the values, with a percentile bootstrap interval that resamples healthy and ill subjects apart.

    The share of (ill, healthy) pairs in which the ill one is higher, ties counting half (Mann & Whitney 1947). None
    without a subject on either side, no interval below two on either.
    """
    ill = np.array([value for i, value in values.items() if not healthy[i]], dtype=np.float64)
    well = np.array([value for i, value in values.items() if healthy[i]], dtype=np.float64)
    found: dict[str, Any] = {"auroc": None, "low": None, "high": None, "n_ill": len(ill), "n_healthy": len(well)}
    if len(ill) and len(well):
        higher = (ill[:, None] > well) + 0.5 * (ill[:, None] == well)
        found["auroc"] = float(higher.mean())
        if min(higher.shape) > 1:
            found["low"], found["high"] = map(float, np.quantile(_resampled(higher, seed), [0.025, 0.975]))
    return {**found, "scores": dict(values)}


def subject_level_text(found: Mapping[str, Any] | None) -> str:
    """The figure, its interval and both counts in one line; a dash where it is not defined."""
    if found is None or found["auroc"] is None:
        return "–"
    interval = "" if found["low"] is None else f" [{found['low']:.2f}, {found['high']:.2f}]"
    return f"{found['auroc']:.2f}{interval}, {found['n_ill']} ill, {found['n_healthy']} healthy"


def _resampled(higher: Float64[np.ndarray, "ill healthy"], seed: int) -> Float64[np.ndarray, " resamples"]:
    generator = stream(seed, "subject level")
    times = [generator.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) for n in higher.shape]
    shares: np.ndarray = np.einsum("ri,rj,ij->r", times[0], times[1], higher, optimize=True) / higher.size
    return shares
