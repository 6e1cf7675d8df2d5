"""The two-distribution decision as table rows: closed forms, and when it can and cannot beat a threshold."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from core.diagnosis import likelihood
from core.diagnosis.likelihood import decisions
from core.diagnosis.vector_densities import TwoVectorDensities
from core.metrics.protocols import best_common_threshold
from core.metrics.subject_scores import SubjectScores, dice_at
from core.metrics.two_densities import TwoDensities
from core.runs.listing import open_run
from core.study.stored_scores import open_scores
from core.types import ScoreMap
from data.errors import BadInput
from data.volume import Grid, Mask, Volume

GRID = Grid((20, 20, 20), np.diag([2.0, 2.0, 2.0, 1.0]))


@dataclass
class Scan:
    """A prepared scan as far as a case needs it."""

    volume: Volume
    lesion: Mask | None


@dataclass
class MadeScores:
    """Scores that a test makes up, with the face of RunScores."""

    maps: dict[str, dict[tuple[str, ...], np.ndarray]]
    lesions: dict[str, np.ndarray | None]
    split: dict[str, list[str]]
    layers: tuple[str, ...] = ("a", "b")
    brain: np.ndarray = field(default_factory=lambda: np.ones(GRID.shape, bool))

    def subjects(self, role):
        return self.split.get(role, [])

    def is_healthy(self, subject_id):
        return self.lesions[subject_id] is None

    def prepared(self, subject_id):
        lesion = self.lesions[subject_id]
        volume = Volume(np.ones((1, *GRID.shape), np.float32), GRID, self.brain, subject_id, ("T1",))
        return Scan(volume, None if lesion is None else Mask(lesion, GRID))

    def score_map(self, subject_id, layers):
        scores = np.where(self.brain, self.maps[subject_id][layers], np.nan).astype(np.float32)
        return ScoreMap(scores, GRID, subject_id, "distance")


def random(seed):
    return np.random.Generator(np.random.Philox(seed))


def logged_normal(rng, mean, sd, size):
    """Distances whose log1p is Gaussian."""
    return np.expm1(np.maximum(rng.normal(mean, sd, size), 0.01)).astype(np.float32)


def block(number):
    lesion = np.zeros(GRID.shape, bool)
    lesion[2 : 8 + number % 3, 2:8, 2:8] = True
    return lesion


def monotone_scores():
    """Equal spreads on the log1p scale, so the Gaussian ratio rises with the score."""
    maps, lesions = {}, {}
    split = {"validation": ["v0", "v1", "v2"], "test": ["t0", "t1", "t2"]}
    for number, name in enumerate(split["validation"] + split["test"]):
        rng = random(number)
        lesion = block(number) if name not in ("v2", "t2") else None
        both = logged_normal(rng, 1.0, 0.3, GRID.shape)
        if lesion is not None:
            both[lesion] = logged_normal(rng, 2.0, 0.3, int(lesion.sum()))
        maps[name] = {("a",): both, ("a", "b"): both, ("b",): both}
        lesions[name] = lesion
    return MadeScores(maps, lesions, split, layers=("a",))


def either_or_scores():
    """Anomalous: exactly one of two layers is high. Normal: both or neither. No sum can tell."""
    maps, lesions = {}, {}
    split = {"validation": ["v0", "v1"], "test": ["t0", "t1", "t2"]}
    for number, name in enumerate(split["validation"] + split["test"]):
        rng = random(100 + number)
        lesion = block(number)
        first = rng.random(GRID.shape) < 0.5
        second = np.where(lesion, ~first, first)
        a, b = (logged_normal(rng, 1.0, 0.15, GRID.shape) * np.where(high, 4, 1) for high in (first, second))
        maps[name] = {("a",): a, ("b",): b, ("a", "b"): np.hypot(a, b)}
        lesions[name] = lesion
    return MadeScores(maps, lesions, split)


def find(rows, kind, rule="validation cut", over="score"):
    return next(r for r in rows if (r["kind"], r["rule"], r["over"]) == (kind, rule, over))


def test_the_gaussian_vector_ratio_crosses_where_the_algebra_says() -> None:
    rng = random(1)
    normal, anomalous = rng.normal([1.0, 1.0], 0.2, (200_000, 2)), rng.normal([2.0, 1.5], 0.2, (200_000, 2))
    two = TwoVectorDensities.fit(np.expm1(normal), np.expm1(anomalous), "gaussian", 0.5)
    middle = np.array([[1.5, 1.25], [1.0, 1.0], [2.0, 1.5]])
    expected = ((middle - [1.0, 1.0]) ** 2 - (middle - [2.0, 1.5]) ** 2).sum(axis=1) / (2 * 0.04)
    np.testing.assert_allclose(two.log_ratio(np.expm1(middle)), expected, atol=0.25)
    tenth = TwoVectorDensities("gaussian", 0.1, two.normal, two.anomalous)
    np.testing.assert_allclose(two.log_ratio(middle) - tenth.log_ratio(middle), np.log(9), rtol=1e-9)


def test_a_vector_density_integrates_to_one_and_correlation_is_kept() -> None:
    rng = random(2)
    both = rng.multivariate_normal([1.0, 2.0], [[0.04, 0.03], [0.03, 0.09]], 50_000)
    density = TwoVectorDensities.fit(np.expm1(both), np.expm1(both + 1), "mixture", 0.5).normal
    axis = np.linspace(-1, 4.5, 400)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    mass = np.exp(density.log_density(grid)) * (axis[1] - axis[0]) ** 2
    assert mass.sum() == pytest.approx(1, abs=1e-3)
    mean = mass @ grid
    assert mass @ ((grid - mean)[:, 0] * (grid - mean)[:, 1]) == pytest.approx(0.03, abs=2e-3)


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_with_one_layer_the_vector_ratio_is_the_ratio_over_the_score(kind) -> None:
    rng = random(3)
    normal, anomalous = logged_normal(rng, 1.0, 0.3, 4000), logged_normal(rng, 1.8, 0.5, 900)
    single = TwoDensities.fit(normal, anomalous, kind, 0.02)
    vector = TwoVectorDensities.fit(normal[:, None], anomalous[:, None], kind, 0.02)
    at = np.linspace(0.2, 15, 200)
    np.testing.assert_allclose(vector.log_ratio(at[:, None]), single.log_ratio(at), rtol=1e-4, atol=1e-3)


def test_a_monotone_ratio_is_a_threshold_and_its_best_cut_is_the_validation_threshold() -> None:
    scores = monotone_scores()
    rows = decisions(scores, ("a",), n_bootstrap=200)
    validation = [voxels(scores, i) for i in scores.split["validation"]]
    threshold, dice = best_common_threshold(validation)
    row = find(rows, "gaussian")
    assert row["validation_dice"] == pytest.approx(dice, abs=1e-6)
    assert row["threshold"] == pytest.approx(threshold, rel=1e-3)
    expected = [dice_at(voxels(scores, i), threshold) for i in ("t0", "t1")]
    assert [s["dice"] for s in row["subjects"]] == pytest.approx(expected, abs=2e-3)
    assert row["gain"] == pytest.approx(0, abs=2e-3)
    bayes = find(rows, "gaussian", "validation share")
    crossing = 1.5 + 0.09 * np.log((1 - bayes["prior"]) / bayes["prior"])
    assert np.log1p(bayes["threshold"]) == pytest.approx(crossing, abs=0.03)
    assert "threshold" in bayes["explain"]
    assert "fewest wrong voxels, which is not the highest Dice" in bayes["explain"]
    assert {r["over"] for r in rows} == {"score"}
    assert rows[0]["n"] == 2
    assert bayes["false_ml_per_healthy_scan"] is not None


@pytest.mark.parametrize("prior", [0.3, 0.001])
def test_a_given_prior_moves_the_crossing_as_bayes_says(prior) -> None:
    row = find(decisions(monotone_scores(), ("a",), prior=prior, n_bootstrap=50), "gaussian", "given prior")
    assert np.log1p(row["threshold"]) == pytest.approx(1.5 + 0.09 * np.log((1 - prior) / prior), abs=0.03)
    assert row["prior"] == prior
    scores = monotone_scores()
    expected = [dice_at(voxels(scores, i), row["threshold"]) for i in ("t0", "t1")]
    assert [s["dice"] for s in row["subjects"]] == pytest.approx(expected, abs=2e-3)


def test_over_two_layers_the_decision_beats_every_threshold_of_every_sum() -> None:
    scores = either_or_scores()
    row = find(decisions(scores, ("a", "b"), n_bootstrap=200), "mixture", over="layers")
    best = 0.0
    for weight in np.linspace(0, 1, 21):
        subjects = [
            voxels(scores, i, weight * m[("a",)] + (1 - weight) * m[("b",)])
            for i, m in scores.maps.items()
            if i in scores.split["test"]
        ]
        best = max(best, best_common_threshold(subjects)[1])
    assert row["mean_dice"] > 0.8
    assert best < 0.5
    assert row["threshold"] is None
    assert row["gain_low"] > 0.2
    assert "can differ from every threshold" in row["explain"]


def test_dice_counts_lesion_voxels_outside_the_scored_brain_as_missed() -> None:
    scores = monotone_scores()
    full = find(decisions(scores, ("a",), n_bootstrap=50), "gaussian")
    scores.brain[:5] = False
    cut = find(decisions(scores, ("a",), n_bootstrap=50), "gaussian")
    lost = block(3)[:5].sum() / block(3).sum()
    assert cut["subjects"][0]["dice"] <= 2 * (1 - lost) / (2 - lost) + 1e-12
    assert full["subjects"][0]["dice"] > 2 * (1 - lost) / (2 - lost)


def test_test_labels_change_no_decision() -> None:
    scores = either_or_scores()
    before = decisions(scores, ("a", "b"), prior=0.05, n_bootstrap=50)
    for name in scores.split["test"]:
        scores.lesions[name] = random(9).permutation(scores.lesions[name].reshape(-1)).reshape(GRID.shape)
    after = decisions(scores, ("a", "b"), prior=0.05, n_bootstrap=50)
    for old, new in zip(before, after, strict=True):
        assert all(old[key] == new[key] for key in ("name", "threshold", "cut", "prior", "explain", "validation_dice"))
    assert before[-1]["mean_dice"] != after[-1]["mean_dice"]


def test_voxels_are_thinned_the_same_way_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "MAX_SAMPLES", 1500)
    scores = either_or_scores()
    first, again = (decisions(scores, ("a", "b"), n_bootstrap=50) for _ in range(2))
    assert first == again
    other = decisions(scores, ("a", "b"), seed=1, n_bootstrap=50)
    assert find(other, "mixture", over="layers")["cut"] != find(first, "mixture", over="layers")["cut"]
    assert find(first, "mixture", over="layers")["mean_dice"] > 0.7


def test_thinning_gives_every_row_the_same_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "MAX_SAMPLES", 1000)
    thinned = likelihood._Thinned(1)
    for part in range(10):
        thinned.add(np.full((1000, 1), part, dtype=np.float32), seed=0, part=part)
    counts = np.bincount(thinned.rows[:, 0].astype(int), minlength=10)
    assert counts.sum() == 1000
    assert (abs(counts - 100) < 40).all()
    kept = []
    for seed in (0, 1):
        chosen = likelihood._Thinned(1)
        chosen.add(np.arange(2000, dtype=np.float32)[:, None], seed=seed, part=0)
        kept.append(chosen.rows)
    assert (kept[0] != kept[1]).any()


def test_without_lesion_labels_one_row_says_what_is_missing() -> None:
    scores = monotone_scores()
    scores.lesions["v0"] = scores.lesions["v1"] = None
    (row,) = decisions(scores, ("a",))
    assert row["mean_dice"] is None
    assert row["missing"].startswith("Missing: lesion masks of validation subjects (0 labelled lesion voxels")


def test_too_few_lesion_voxels_for_a_vector_leave_the_score_rows() -> None:
    scores = either_or_scores()
    for name in scores.split["validation"]:
        scores.lesions[name] = np.zeros(GRID.shape, bool)
    scores.lesions["v0"][3, 3, :3] = True
    rows = decisions(scores, ("a", "b"), n_bootstrap=50)
    assert rows[-1]["missing"].startswith("3 anomalous validation voxels: a density over 2 layers needs 6")
    assert find(rows, "gaussian")["mean_dice"] is not None


def test_a_kernel_density_over_layers_and_an_impossible_prior_are_refused() -> None:
    with pytest.raises(BadInput, match="not for vectors"):
        TwoVectorDensities.fit(np.ones((9, 2)), np.ones((9, 2)), "kde", 0.1)
    with pytest.raises(BadInput, match="Prior is 1"):
        decisions(monotone_scores(), ("a",), prior=1.0)


def test_a_real_run_gives_decisions_over_score_and_layers_in_plain_words(study) -> None:
    scores = open_scores(open_run(study.runs, "tiny"))
    rows = decisions(scores, scores.layer_sets[-1], prior=0.01, n_bootstrap=50)
    assert {r["over"] for r in rows} == {"score", "layers"}
    assert all(r["n"] == 3 for r in rows if r["missing"] is None)
    assert {frozenset(r) for r in rows} == {frozenset(rows[0])}
    names = {r["rule"]: r["name"] for r in rows if r["kind"] == "gaussian" and r["over"] == "score"}
    assert names == {
        "validation share": "two Gaussians over the score: prior = share of lesion voxels in validation",
        "given prior": "two Gaussians over the score: prior = 0.01, as given",
        "validation cut": "two Gaussians over the score: cut with the best validation Dice",
    }
    assert len({r["name"] for r in rows}) == len(rows)
    assert not [r["name"] for r in rows if "validation share" in r["name"] + r["explain"]]
    assert not [r["name"] for r in rows if "validation cut" in r["name"] + r["explain"]]


def test_a_detector_without_layers_is_judged_over_its_score_alone(study) -> None:
    scores = open_scores(open_run(study.runs, "tiny-intensity"))
    rows = decisions(scores, scores.layers, n_bootstrap=50)
    assert {r["over"] for r in rows} == {"score"}


def voxels(scores, subject_id, values=None):
    chosen = scores.maps[subject_id][("a",)] if values is None else values
    lesion = scores.lesions[subject_id]
    marked = np.zeros(GRID.shape, bool) if lesion is None else lesion
    return SubjectScores(subject_id, lesion is None, chosen[~marked], chosen[marked], 0.008)
