"""Two distributions instead of a threshold: densities of normal and anomalous validation voxels, and their ratio.

Over one score the ratio can only do what thresholds do, unless it is not monotone. Over the vector of the layers' own
distances it may draw surfaces that no threshold of one score draws. Everything is fitted on labelled validation
subjects, decides on test subjects, and is counted on the working grid; unreachable lesion voxels are missed.
"""

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from jaxtyping import Float32

from core.diagnosis.decision_rows import Judged, Model, Rule, missing_row, row_of_rule
from core.diagnosis.vector_densities import VECTOR_KINDS, TwoVectorDensities, VectorKind, logit
from core.metrics.confusion import fit_densities
from core.metrics.protocols import best_common_threshold
from core.metrics.subject_scores import SubjectScores, dice_at
from core.metrics.two_densities import KINDS
from core.randomness import number_of
from core.study.cases import case_of
from core.study.stored_scores import RunScores
from core.types import LayerSet
from data.errors import BadInput

MAX_SAMPLES = 50_000
"""Voxels of a class that a density over layers is fitted on."""


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
        return [missing_row("two densities", "score", "gaussian", validation.missing)]
    models: list[Model] = [Model("score", kind, (), fit_densities(validation.scores, kind, None)) for kind in KINDS]
    rows = []
    if vector:
        try:
            models += [Model("layers", kind, vector, validation.fit_vector(kind, seed)) for kind in VECTOR_KINDS]
        except BadInput as error:
            rows.append(missing_row("two densities over layers", "layers", "gaussian", str(error)))
    rules = [rule for model in _with_cuts(models, validation, scores, layers) for rule in _rules(model, prior)]
    judged = _judge(rules, validation.threshold, scores, layers, vector)
    return [row_of_rule(rule, judged, n_bootstrap) for rule in rules] + rows


@dataclass(frozen=True, eq=False)
class _Voxels:
    """One subject: its score and, in the same order, the distances of the layers."""

    score: SubjectScores
    normal: Float32[np.ndarray, "n layers"]
    anomalous: Float32[np.ndarray, "a layers"]


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


def _with_cuts(models: Sequence[Model], validation: _Validation, scores: RunScores, layers: LayerSet) -> list[Model]:
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


def _as_scores(model: Model, voxels: _Voxels) -> SubjectScores:
    """The subject with its log ratio, squeezed monotonically to 0 and more, in place of the score."""
    normal, anomalous = _ratios(model, voxels)
    return dataclasses.replace(voxels.score, normal=_squeezed(normal), anomalous=_squeezed(anomalous))


def _ratios(model: Model, voxels: _Voxels) -> tuple[np.ndarray, np.ndarray]:
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


def _rules(model: Model, prior: float | None) -> list[Rule]:
    share = model.densities.prior
    rules = [Rule(model, "validation share", share, 0.0)]
    if prior is not None:
        if not 0 < prior < 1:
            raise BadInput(f"Prior is {prior}. Allowed: between 0 and 1, the expected share of anomalous voxels.")
        rules.append(Rule(model, "given prior", prior, logit(share) - logit(prior)))
    return [*rules, Rule(model, "validation cut", share, model.cut)]


def _judge(rules: Sequence[Rule], threshold: float, scores: RunScores, layers: LayerSet, vector: LayerSet) -> Judged:
    judged = Judged([], {id(r): [] for r in rules}, {id(r): [] for r in rules}, [])
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
