"""Two distributions instead of a threshold: densities of normal and anomalous validation voxels, and their ratio.

Over one score the ratio can only do what thresholds do, unless it is not monotone. Over the vector of the layers' own
distances it may draw surfaces that no threshold of one score draws. Everything is fitted on labelled validation
subjects, decides on test subjects, and is counted on the working grid; unreachable lesion voxels are missed.
"""

import dataclasses
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from jaxtyping import Float, Float32, Float64
from scipy.linalg import solve_triangular
from scipy.special import expit, logsumexp

from core.bootstrap import mean_interval, paired_difference
from core.decision import KINDS, TwoDensities
from core.detectors import LayerSet
from core.diagnosis.cases import case_of
from core.distributions import fit_densities
from core.metrics import SubjectScores, best_common_threshold, dice_at
from core.randomness import number_of
from core.run_scores import RunScores
from data.errors import BadInput

VectorKind = Literal["gaussian", "mixture"]
VECTOR_KINDS: tuple[VectorKind, ...] = ("gaussian", "mixture")
MAX_SAMPLES = 50_000
"""Voxels of a class that a density over layers is fitted on."""
NO_KDE = (
    "A kernel density is not offered over several layers: its error falls only like n^(-4/(4+d)) in d dimensions, "
    "too slowly for the lesion voxels of a study."
)
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
_COMPONENTS = 3
_SMALLEST_SD = 1e-4
_FARTHEST = 36.0
"""Log odds beyond which 1 - prior is 0 in double precision."""


@dataclass(frozen=True, eq=False)
class VectorDensity:
    """A mixture of Gaussians over the vector log1p(distance of each layer)."""

    weights: Float64[np.ndarray, " k"]
    means: Float64[np.ndarray, "k d"]
    factors: Float64[np.ndarray, "k d d"]
    """Lower Cholesky factors of the covariances."""

    def log_density(self, x: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
        """Natural logarithm of the density at each row."""
        points = np.asarray(x, dtype=np.float64)
        terms = np.empty((len(self.weights), len(points)))
        for k, (weight, mean, factor) in enumerate(zip(self.weights, self.means, self.factors, strict=True)):
            white = solve_triangular(factor, (points - mean).T, lower=True, check_finite=False)
            terms[k] = math.log(weight) - 0.5 * (white**2).sum(axis=0) - np.log(np.diag(factor)).sum()
        total: np.ndarray = logsumexp(terms, axis=0) if len(terms) > 1 else terms[0]
        total -= 0.5 * points.shape[1] * math.log(2 * math.pi)
        return total


@dataclass(frozen=True, eq=False)
class TwoVectorDensities:
    """Densities of normal and anomalous voxels over the layers' distances, and the prior share of anomalous ones."""

    kind: VectorKind
    prior: float
    normal: VectorDensity
    anomalous: VectorDensity

    @classmethod
    def fit(
        cls,
        normal: Float[np.ndarray, "n layers"],
        anomalous: Float[np.ndarray, "a layers"],
        kind: VectorKind,
        prior: float,
        *,
        seed: int = 0,
    ) -> Self:
        """Fit both on distances (0 or more), one row per voxel. BadInput below 2 (d + 1) voxels of a class.

        "gaussian" is mean and covariance, "mixture" up to three Gaussians with full covariances, by EM.
        """
        if kind not in VECTOR_KINDS:
            raise BadInput(f"Density kind {kind!r} is not for vectors. Allowed: {', '.join(VECTOR_KINDS)}. {NO_KDE}")
        if not 0 < prior < 1:
            raise BadInput(f"Prior is {prior}. Allowed: between 0 and 1, the expected share of anomalous voxels.")
        needed = 2 * (np.shape(normal)[1] + 1)
        for name, rows in (("normal", normal), ("anomalous", anomalous)):
            if len(rows) < needed:
                raise BadInput(
                    f"{len(rows)} {name} validation voxels: a density over {np.shape(normal)[1]} layers needs "
                    f"{needed} or more. Add labelled validation subjects."
                )
        return cls(kind, float(prior), *(_fit_density(np.log1p(x), kind, seed) for x in (normal, anomalous)))

    def log_ratio(self, distances: Float[np.ndarray, "n layers"]) -> Float64[np.ndarray, " n"]:
        """Log posterior odds of anomalous, log p(d|a) − log p(d|n) + log(prior / (1 − prior))."""
        x = np.log1p(np.asarray(distances, dtype=np.float64))
        odds: np.ndarray = self.anomalous.log_density(x) - self.normal.log_density(x) + _logit(self.prior)
        return odds


def decisions(
    scores: RunScores, layers: LayerSet, *, prior: float | None = None, seed: int = 0, n_bootstrap: int = 10_000
) -> list[dict[str, Any]]:
    """Every two-distribution decision of a layer set as a table row: fitted on validation, judged on test.

    Each density decides by Bayes' rule at the share of lesion voxels in validation, at `prior` when one is given, and
    at the cut of the log ratio with the best mean validation Dice. The vector holds the distances of the set's own
    layers (of all fitted layers when the set is a single one). `gain` is paired, against the best validation
    threshold on the score. Without labels there is one row, whose `missing` says what is missing.
    """
    vector = _vector_layers(scores, layers)
    validation = _Validation.read(scores, layers, vector, seed)
    if validation.missing is not None:
        return [_missing_row("two densities", "score", "gaussian", validation.missing)]
    models: list[_Model] = [_Model("score", kind, (), fit_densities(validation.scores, kind, None)) for kind in KINDS]
    rows = []
    if vector:
        try:
            models += [_Model("layers", kind, vector, validation.fit_vector(kind, seed)) for kind in VECTOR_KINDS]
        except BadInput as error:
            rows.append(_missing_row("two densities over layers", "layers", "gaussian", str(error)))
    rules = [rule for model in _with_cuts(models, validation, scores, layers) for rule in _rules(model, prior)]
    judged = _judge(rules, validation.threshold, scores, layers, vector)
    return [_row(rule, judged, n_bootstrap) for rule in rules] + rows


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
class _Voxels:
    """One subject: its score and, in the same order, the distances of the layers."""

    score: SubjectScores
    normal: Float32[np.ndarray, "n layers"]
    anomalous: Float32[np.ndarray, "a layers"]


@dataclass(frozen=True, eq=False)
class _Model:
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
class _Rule:
    """A model and where its log ratio is cut: at 0 by Bayes' rule with the share it was fitted with."""

    model: _Model
    name: Literal["validation share", "given prior", "validation cut"]
    prior: float
    cut: float


@dataclass(frozen=True, eq=False)
class _Validation:
    """What the labelled validation subjects give; voxels of the vector are thinned, seeded, and few."""

    scores: list[SubjectScores]
    normal: Float32[np.ndarray, "n layers"]
    anomalous: Float32[np.ndarray, "a layers"]
    missing: str | None

    @classmethod
    def read(cls, scores: RunScores, layers: LayerSet, vector: LayerSet, seed: int) -> Self:
        kept: list[SubjectScores] = []
        normal, anomalous = _Thinned(len(vector)), _Thinned(len(vector))
        for voxels in _voxels(scores, "validation", layers, vector):
            if voxels.score.healthy or voxels.score.n_lesion:  # an ill subject without a mask would teach lesions
                kept.append(voxels.score)
                number = number_of(voxels.score.subject_id)
                normal.add(voxels.normal, seed, 2 * number)
                anomalous.add(voxels.anomalous, seed, 2 * number + 1)
        return cls(kept, normal.rows, anomalous.rows, _what_is_missing(kept))

    @property
    def share(self) -> float:
        """Share of anomalous voxels among the scored ones."""
        anomalous, normal = (sum(len(getattr(s, name)) for s in self.scores) for name in ("anomalous", "normal"))
        return anomalous / (anomalous + normal)

    @property
    def threshold(self) -> float:
        """The deployable threshold that the decisions are compared with."""
        return best_common_threshold(self.scores)[0]

    def fit_vector(self, kind: VectorKind, seed: int) -> TwoVectorDensities:
        return TwoVectorDensities.fit(self.normal, self.anomalous, kind, self.share, seed=seed)


class _Thinned:
    """A uniform sample without replacement of rows that arrive in parts: those with the smallest seeded keys."""

    def __init__(self, n_columns: int) -> None:
        self.rows = np.empty((0, n_columns), dtype=np.float32)
        self._keys = np.empty(0)

    def add(self, rows: np.ndarray, seed: int, part: int) -> None:
        entropy = [seed, zlib.crc32(b"thin voxels"), part]
        keys = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy))).random(len(rows))
        self.rows, self._keys = np.concatenate([self.rows, rows]), np.concatenate([self._keys, keys])
        if len(self._keys) > MAX_SAMPLES:
            smallest = np.sort(np.argpartition(self._keys, MAX_SAMPLES)[:MAX_SAMPLES])
            self.rows, self._keys = self.rows[smallest], self._keys[smallest]


def _vector_layers(scores: RunScores, layers: LayerSet) -> LayerSet:
    """The set's layers; all fitted ones for a single one; none when the detector has no layers to tell apart."""
    chosen = layers if len(layers) > 1 else scores.layers
    return chosen if len(chosen) > 1 else ()


def _voxels(scores: RunScores, role: str, layers: LayerSet, vector: LayerSet) -> Iterator[_Voxels]:
    for subject_id in scores.subjects(role):
        case = case_of(scores, subject_id, layers)
        inside = np.isfinite(case.scores)
        maps = [scores.score_map(subject_id, (layer,)).scores for layer in vector]
        parts = [inside & ~case.lesion, inside & case.lesion]
        rows = [np.stack([m[part] for m in maps], axis=1) if maps else np.empty((0, 0), np.float32) for part in parts]
        yield _Voxels(case.voxels, *rows)


def _what_is_missing(validation: Sequence[SubjectScores]) -> str | None:
    lesion, normal = (sum(len(getattr(s, name)) for s in validation) for name in ("anomalous", "normal"))
    if lesion < 2:
        return (
            f"Missing: lesion masks of validation subjects ({lesion} labelled lesion voxels; a density of anomalous "
            "scores needs two or more). Give subjects with a mask the role validation, fit and evaluate again."
        )
    if normal < 2:
        return "Missing: normal voxels of validation subjects. Check their brain and lesion masks."
    return None


def _with_cuts(models: Sequence[_Model], validation: _Validation, scores: RunScores, layers: LayerSet) -> list[_Model]:
    """The models, each with the cut of its log ratio that is best on validation."""
    ratios: list[list[SubjectScores]] = [[] for _ in models]
    vector = next((m.layers for m in models if m.layers), ())
    parts = (
        _voxels(scores, "validation", layers, vector)
        if vector
        else (_Voxels(s, np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)) for s in validation.scores)
    )
    for voxels in parts:
        if not voxels.score.n_lesion:
            continue
        for found, model in zip(ratios, models, strict=True):
            found.append(_as_scores(model, voxels))
    best = [best_common_threshold(found) for found in ratios]
    return [
        dataclasses.replace(model, cut=_odds_of(cut), cut_dice=dice)
        for model, (cut, dice) in zip(models, best, strict=True)
    ]


def _as_scores(model: _Model, voxels: _Voxels) -> SubjectScores:
    """The subject with its log ratio, squeezed monotonically to 0 and more, in place of the score."""
    normal, anomalous = _ratios(model, voxels)
    return dataclasses.replace(voxels.score, normal=_squeezed(normal), anomalous=_squeezed(anomalous))


def _ratios(model: _Model, voxels: _Voxels) -> tuple[np.ndarray, np.ndarray]:
    return (
        model.log_ratio(voxels.score.normal, voxels.normal),
        model.log_ratio(voxels.score.anomalous, voxels.anomalous),
    )


def _squeezed(log_odds: np.ndarray) -> np.ndarray:
    """1 + r for r ≥ 0 and 1 / (1 − r) below: rising, positive, and fine over the range of the fixed bins."""
    return np.where(log_odds >= 0, 1 + np.abs(log_odds), 1 / (1 + np.abs(log_odds))).astype(np.float32)


def _odds_of(squeezed: float) -> float:
    """The log odds of a squeezed cut, a hair below, so that the voxel that made the cut still reaches it."""
    odds = squeezed - 1 if squeezed >= 1 else 1 - 1 / max(squeezed, 1e-9)
    return odds - 1e-6 * (1 + abs(odds))


def _rules(model: _Model, prior: float | None) -> list[_Rule]:
    share = model.densities.prior
    rules = [_Rule(model, "validation share", share, 0.0)]
    if prior is not None:
        if not 0 < prior < 1:
            raise BadInput(f"Prior is {prior}. Allowed: between 0 and 1, the expected share of anomalous voxels.")
        rules.append(_Rule(model, "given prior", prior, _logit(share) - _logit(prior)))
    return [*rules, _Rule(model, "validation cut", share, model.cut)]


@dataclass(frozen=True, eq=False)
class _Judged:
    """Dice per rule and lesion-bearing test subject, mL per rule and healthy test scan, and Dice at the threshold."""

    subjects: list[str]
    dice: dict[int, list[float]]
    false_ml: dict[int, list[float]]
    baseline: list[float]


def _judge(rules: Sequence[_Rule], threshold: float, scores: RunScores, layers: LayerSet, vector: LayerSet) -> _Judged:
    judged = _Judged([], {id(r): [] for r in rules}, {id(r): [] for r in rules}, [])
    for voxels in _voxels(scores, "test", layers, vector):
        subject = voxels.score
        if not subject.n_lesion and not subject.healthy:
            continue
        ratios = {id(model): _ratios(model, voxels) for model in {id(r.model): r.model for r in rules}.values()}
        for rule in rules:
            normal, anomalous = ratios[id(rule.model)]
            alarms, hits = np.count_nonzero(normal >= rule.cut), np.count_nonzero(anomalous >= rule.cut)
            if subject.n_lesion:
                judged.dice[id(rule)].append(2.0 * hits / (hits + alarms + subject.n_lesion))
            else:
                judged.false_ml[id(rule)].append(alarms * subject.voxel_ml)
        if (plain := dice_at(subject, threshold)) is not None:
            judged.subjects.append(subject.subject_id)
            judged.baseline.append(plain)
    return judged


def _row(rule: _Rule, judged: _Judged, n_bootstrap: int) -> dict[str, Any]:
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


def _missing_row(name: str, over: str, kind: str, missing: str) -> dict[str, Any]:
    row = {**_EMPTY_ROW, "name": name, "over": over, "kind": kind, "rule": "validation share"}
    return row | {"missing": missing, "explain": missing}


def _at_cut(rule: _Rule) -> TwoDensities | None:
    """The densities over one score with the prior at which Bayes' rule is this rule; None beyond double precision."""
    assert isinstance(rule.model.densities, TwoDensities)
    odds = _logit(rule.model.densities.prior) - rule.cut
    return dataclasses.replace(rule.model.densities, prior=float(expit(odds))) if abs(odds) < _FARTHEST else None


def _equivalent_threshold(rule: _Rule) -> float | None:
    same = _at_cut(rule) if rule.model.over == "score" else None
    return None if same is None else same.equivalent_threshold


def _explain(rule: _Rule) -> str:
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


def _fit_density(x: np.ndarray, kind: VectorKind, seed: int) -> VectorDensity:
    values = np.asarray(x, dtype=np.float64)
    d = values.shape[1]
    if kind == "gaussian":
        covariance = np.atleast_2d(np.cov(values, rowvar=False)) + _SMALLEST_SD**2 * np.eye(d)
        return VectorDensity(np.ones(1), values.mean(axis=0)[None], np.linalg.cholesky(covariance)[None])
    from sklearn.mixture import GaussianMixture

    components = max(1, min(_COMPONENTS, len(values) // (2 * (d + 1)), len(np.unique(values, axis=0))))
    model = GaussianMixture(components, reg_covar=_SMALLEST_SD**2, random_state=seed).fit(values)
    keep = model.weights_ > 0
    return VectorDensity(model.weights_[keep], model.means_[keep], np.linalg.cholesky(model.covariances_[keep]))


def _logit(prior: float) -> float:
    return math.log(prior / (1 - prior))
