"""A decision by two densities as a row of a table, with its explanation in words."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import expit

from core.diagnosis.vector_densities import NO_KDE, TwoVectorDensities, logit
from core.metrics.bootstrap import mean_interval, paired_difference
from core.metrics.two_densities import TwoDensities
from core.types import LayerSet

NOT_DICE = (
    "This makes the fewest wrong voxels, which is not the highest Dice: Dice is served best by every voxel whose "
    "probability of lesion is at least half of the Dice reached, so the cut that is best on validation is tried too."
)
KIND_NAMES = {"gaussian": "two Gaussians", "mixture": "two mixtures of Gaussians", "kde": "two kernel densities"}
RULE_NAMES = {
    "validation share": "prior = share of lesion voxels in validation",
    "given prior": "prior = {prior:g}, as given",
    "validation cut": "cut with the best validation Dice",
}
"""What each `rule` is called in front of people."""
_FARTHEST = 36.0
"""Log odds beyond which 1 - prior is 0 in double precision."""
_EMPTY_ROW: Mapping[str, Any] = {
    "layers": [],
    "threshold": None,
    "cut": None,
    "prior": None,
    "mean_dice": None,
    "low": None,
    "high": None,
    "n": 0,
    "gain": None,
    "gain_low": None,
    "gain_high": None,
    "validation_dice": None,
    "needs_labels": True,
    "deployable": True,
    "false_ml_per_healthy_scan": None,
    "subjects": [],
    "missing": None,
}


@dataclass(frozen=True, eq=False)
class Model:
    """One pair of densities; `cut` is the log ratio of best mean validation Dice, `cut_dice` that Dice."""

    over: Literal["score", "layers"]
    kind: str
    layers: LayerSet
    densities: TwoDensities | TwoVectorDensities
    cut: float = 0.0
    cut_dice: float = 0.0

    def log_ratio(self, score: np.ndarray, distances: np.ndarray) -> np.ndarray:
        if isinstance(self.densities, TwoDensities):
            return self.densities.log_ratio(score)
        return self.densities.log_ratio(distances)


@dataclass(frozen=True, eq=False)
class Rule:
    """A model and where its log ratio is cut: at 0 by Bayes' rule with the share it was fitted with."""

    model: Model
    name: Literal["validation share", "given prior", "validation cut"]
    prior: float
    cut: float


@dataclass(frozen=True, eq=False)
class Judged:
    """Dice per rule and lesion-bearing test subject, mL per rule and healthy test scan, and Dice at the threshold."""

    subjects: list[str]
    dice: dict[int, list[float]]
    false_ml: dict[int, list[float]]
    baseline: list[float]


def row_of_rule(rule: Rule, judged: Judged, n_bootstrap: int) -> dict[str, Any]:
    """One decision of the table: its figures, the equal threshold, and what it does in words."""
    dice, false_ml = judged.dice[id(rule)], judged.false_ml[id(rule)]
    mean = mean_interval(dice, seed=0, n_resamples=n_bootstrap, purpose="dice")
    gain = paired_difference(dice, judged.baseline, seed=0, n_resamples=n_bootstrap)
    model = rule.model
    over = "the score" if model.over == "score" else f"{len(model.layers)} layer distances"
    rule_name = RULE_NAMES[rule.name].format(prior=rule.prior)
    return {
        **_EMPTY_ROW,
        "name": f"{KIND_NAMES[model.kind]} over {over}: {rule_name}",
        "over": model.over,
        "kind": model.kind,
        "rule": rule.name,
        "layers": list(model.layers),
        "prior": rule.prior,
        "cut": rule.cut,
        "threshold": _equivalent_threshold(rule),
        "validation_dice": model.cut_dice if rule.name == "validation cut" else None,
        "mean_dice": mean.mean,
        "low": mean.low,
        "high": mean.high,
        "n": mean.n,
        "gain": gain.mean,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "false_ml_per_healthy_scan": float(np.mean(false_ml)) if false_ml else None,
        "subjects": [{"subject_id": i, "dice": d} for i, d in zip(judged.subjects, dice, strict=True)],
        "explain": _explain(rule),
    }


def missing_row(name: str, over: str, kind: str, missing: str) -> dict[str, Any]:
    """The row of a decision that could not be made, with the reason."""
    row = {**_EMPTY_ROW, "name": name, "over": over, "kind": kind, "rule": "validation share"}
    return row | {"missing": missing, "explain": missing}


def _at_cut(rule: Rule) -> TwoDensities | None:
    """The densities over one score with the prior at which Bayes' rule is this rule; None beyond double precision."""
    assert isinstance(rule.model.densities, TwoDensities)
    odds = logit(rule.model.densities.prior) - rule.cut
    return dataclasses.replace(rule.model.densities, prior=float(expit(odds))) if abs(odds) < _FARTHEST else None


def _equivalent_threshold(rule: Rule) -> float | None:
    same = _at_cut(rule) if rule.model.over == "score" else None
    return None if same is None else same.equivalent_threshold


def _explain(rule: Rule) -> str:
    prior = (
        f"the share of lesion voxels in validation, {rule.prior:.3g}"
        if rule.name == "validation share"
        else f"the given prior, {rule.prior:.3g}"
    )
    where = (
        "A voxel is called lesion where the ratio of the two densities is at or above the cut that had the best mean "
        f"Dice on validation (log posterior odds {rule.cut:.3g})."
        if rule.name == "validation cut"
        else f"A voxel is called lesion where that is the likelier of the two at {prior} (Bayes' rule). {NOT_DICE}"
    )
    densities = rule.model.densities
    if not isinstance(densities, TwoDensities):
        names = ", ".join(rule.model.layers)
        return f"A surface in the space of {names}: it can differ from every threshold of one score. {where} {NO_KDE}"
    same = _at_cut(rule)
    amounts = "No prior between 0 and 1 amounts to this cut." if same is None else same.explain()
    if densities.monotone:
        return f"{amounts} The ratio rises with the score, so at any prior it cannot differ from a threshold. {where}"
    if same is not None and same.equivalent_threshold is not None:
        return f"{amounts} Here it cannot differ from a threshold; at other priors it may. {where}"
    return f"{amounts} The ratio does not rise everywhere with the score, so it can differ from a threshold. {where}"
