"""Metrics against scikit-learn and brute force; histograms at their edges; lesions, intervals."""

import itertools
import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from core.metrics import bootstrap, exact_curve, lesions, subject_scores
from core.metrics import dice as metrics
from core.metrics import score_histogram as curves
from core.metrics.protocols import best_common_threshold, thresholds
from core.metrics.score_histogram import ScoreHistogram
from core.metrics.subject_scores import SubjectScores
from core.types import ScoreMap
from data.errors import BadInput, IntegrityError
from data.volume import Grid, Mask


def _rng(*key):
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def _scores(seed, positives=60, negatives=400, ties=False):
    rng = _rng(seed)
    p = rng.gamma(4.0, 1.0, positives).astype(np.float32)
    n = rng.gamma(2.0, 1.0, negatives).astype(np.float32)
    return (np.round(p), np.round(n)) if ties else (p, n)


def _subject(seed, name="a", unreachable=0, positives=60, negatives=400, healthy=False):
    p, n = _scores(seed, positives, negatives)
    return SubjectScores(name, healthy, n, p, 0.008, unreachable)


def _labels(p, n):
    return np.concatenate([np.ones(len(p)), np.zeros(len(n))]), np.concatenate([p, n])


def _brute_dice(p, n, t, unreachable=0):
    hits = (p >= t).sum()
    return 2 * hits / (hits + (n >= t).sum() + len(p) + unreachable)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_exact_curve_equals_scikit_learn_with_and_without_ties(seed, ties):
    p, n = _scores(seed, ties=ties)
    y, s = _labels(p, n)
    curve = exact_curve.exact_curve(p, n)
    assert curve.auprc == pytest.approx(average_precision_score(y, s), abs=1e-12)
    assert curve.auroc == pytest.approx(roc_auc_score(y, s), abs=1e-12)
    precision, recall, _ = precision_recall_curve(y, s)
    with np.errstate(invalid="ignore"):
        dice = np.nan_to_num(2 * precision * recall / (precision + recall))[:-1]
    assert curve.best_dice == pytest.approx(dice.max(), abs=1e-12)
    assert _brute_dice(p, n, np.float32(curve.best_threshold)) == pytest.approx(dice.max(), abs=1e-12)
    fpr, tpr, _ = roc_curve(y, s, drop_intermediate=False)
    assert curve.fpr95 == pytest.approx(fpr[tpr >= 0.95].min(), abs=1e-12)


def test_one_lesion_voxel_above_one_normal_voxel_is_perfect_and_below_it_is_half():
    up, down = np.array([2.0], np.float32), np.array([1.0], np.float32)
    assert exact_curve.exact_curve(up, down).best_dice == 1.0
    worst = exact_curve.exact_curve(down, up)
    assert (worst.auprc, worst.auroc) == (0.5, 0.0)
    assert worst.best_dice == pytest.approx(2 / 3)


def test_all_voxels_positive_gives_full_precision_and_no_auroc():
    curve = exact_curve.exact_curve(np.array([1.0, 2.0], np.float32), np.empty(0, np.float32))
    assert (curve.auprc, curve.auroc, curve.best_dice, curve.fpr95) == (1.0, None, 1.0, None)


def test_no_lesion_voxel_is_refused_and_not_called_zero():
    with pytest.raises(BadInput, match="undefined"):
        exact_curve.exact_curve(np.empty(0, np.float32), np.array([1.0], np.float32))


def test_nan_scores_are_refused_by_curve_subject_and_histogram():
    bad, good = np.array([1.0, np.nan], np.float32), np.array([1.0], np.float32)
    with pytest.raises(BadInput, match="finite"):
        exact_curve.exact_curve(bad, good)
    with pytest.raises(BadInput, match="finite"):
        SubjectScores("a", False, bad, good, 1.0)
    with pytest.raises(BadInput, match="NaN"):
        curves.bin_counts(bad)


def test_unreachable_lesion_voxels_count_as_missed_in_every_dice():
    s = _subject(3, unreachable=40)
    t = 3.0
    assert subject_scores.dice_at(s, t) == pytest.approx(_brute_dice(s.anomalous, s.normal, t, 40))
    curve = exact_curve.exact_curve(s.anomalous, s.normal, unreachable=40)
    brute = max(_brute_dice(s.anomalous, s.normal, t, 40) for t in s.anomalous)
    assert curve.best_dice == pytest.approx(brute, abs=1e-12)
    assert s.histogram().dice_curve()[0] == pytest.approx(2 * 60 / (60 + 400 + 60 + 40))


def test_only_unreachable_lesion_gives_dice_zero():
    curve = exact_curve.exact_curve(np.empty(0, np.float32), np.array([1.0], np.float32), unreachable=5)
    assert (curve.best_dice, curve.best_threshold, curve.auprc) == (0.0, None, 0.0)


def test_dice_from_rates_equals_dice_from_counts():
    s = _subject(4)
    hits, alarms, _ = s.counts(3.0)
    prevalence = 60 / 460
    assert exact_curve.dice_from_rates(prevalence, hits / 60, alarms / 400) == pytest.approx(
        subject_scores.dice_at(s, 3.0)
    )


def test_fpr_for_dice_half_gives_dice_one_half():
    assert exact_curve.dice_from_rates(0.01, 0.8, exact_curve.fpr_for_dice_half(0.01, 0.8)) == pytest.approx(0.5)


def test_all_positive_dice_is_the_dice_at_the_lowest_threshold():
    s = _subject(5)
    assert subject_scores.dice_at(s, 0.0) == pytest.approx(exact_curve.all_positive_dice(60 / 460))


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_best_common_threshold_equals_brute_force_over_all_cut_points(seed, pooled):
    subjects = [_subject(10 * seed + i, str(i), unreachable=3 * i, positives=15 + 20 * i) for i in range(4)]
    cuts = np.unique(np.concatenate([np.concatenate([s.anomalous, s.normal]) for s in subjects]))

    def dice(t):
        if pooled:
            return subject_scores.pooled_dice_at(subjects, t)
        return np.mean([subject_scores.dice_at(s, t) for s in subjects])

    threshold, value = best_common_threshold(subjects, pooled=pooled)
    assert value == pytest.approx(max(dice(t) for t in cuts), abs=1e-12)
    assert dice(threshold) == pytest.approx(value, abs=1e-12)


def test_best_common_threshold_is_exact_when_every_score_shares_one_bin():
    base = np.float32(3.0)
    steps = [base]
    for _ in range(40):
        steps.append(np.nextafter(steps[-1], np.float32(np.inf)))
    ladder = np.array(steps, np.float32)
    assert np.count_nonzero(curves.bin_counts(ladder)) == 1
    s = SubjectScores("a", False, ladder[:35], ladder[30:], 1.0)
    assert best_common_threshold([s])[1] == exact_curve.exact_curve(s.anomalous, s.normal).best_dice


def _test_set():
    test = [_subject(i, f"s{i}", unreachable=i, positives=30 + 10 * i) for i in range(5)]
    healthy = [SubjectScores(f"h{i}", True, _scores(50 + i)[1], np.empty(0, np.float32), 0.008) for i in range(3)]
    validation = [_subject(70 + i, f"v{i}") for i in range(3)]
    calibration = [SubjectScores(f"c{i}", True, _scores(90 + i)[1], np.empty(0, np.float32), 0.008) for i in range(3)]
    return test + healthy, validation, calibration


def test_evaluation_orders_its_protocols_and_is_json():
    test, validation, calibration = _test_set()
    protocols = thresholds(validation, calibration, test, quantile=0.95)
    result = metrics.evaluate(test, protocols, n_bootstrap=200, seed=1)
    json.dumps(result, allow_nan=False)
    dice = {name: p["mean_dice"] for name, p in result["protocols"].items()}
    assert dice["oracle_subject"] >= dice["oracle_set"] >= dice["validation"]
    assert dice["oracle_set"] >= dice["healthy"]
    assert result["selection_optimism"] == pytest.approx(dice["oracle_set"] - dice["validation"])
    for p in result["protocols"].values():
        assert p["ci_low"] <= p["mean_dice"] <= p["ci_high"]
    assert (result["n_lesion_subjects"], result["n_healthy_subjects"]) == (5, 3)


def test_ceil_dice_is_the_best_dice_of_all_lesion_bearing_voxels_pooled():
    test, validation, calibration = _test_set()
    result = metrics.evaluate(test, thresholds(validation, calibration, test), n_bootstrap=50)
    bearing = [s for s in test if s.n_lesion]
    pooled = exact_curve.exact_curve(
        np.concatenate([s.anomalous for s in bearing]),
        np.concatenate([s.normal for s in bearing]),
        unreachable=sum(s.lesion_unreachable_voxels for s in bearing),
    )
    assert result["ceil_dice"]["dice"] == pytest.approx(pooled.best_dice, abs=1e-12)
    scored = sum(len(s.anomalous) for s in bearing) / sum(len(s.anomalous) + len(s.normal) for s in bearing)
    assert result["pooled"]["lift"] == pytest.approx(pooled.auprc / scored)


def test_label_free_threshold_ignores_lesions_and_the_test_set():
    test, validation, calibration = _test_set()
    before = thresholds(validation, calibration, test).healthy
    after = thresholds(validation[:1], calibration, test[:1]).healthy
    assert before == after
    assert not before.needs_labels
    assert not before.oracle


def test_validation_threshold_ignores_the_test_labels():
    test, validation, calibration = _test_set()
    full = thresholds(validation, calibration, test).validation
    assert full == thresholds(validation, calibration, test[1:]).validation
    assert thresholds([], calibration, test).validation is None


def test_calibration_with_a_lesion_is_refused():
    test, validation, _ = _test_set()
    with pytest.raises(BadInput, match="lesions"):
        thresholds(validation, test, test)


def test_healthy_scans_get_false_positive_volume_and_no_dice():
    test, validation, calibration = _test_set()
    result = metrics.evaluate(test, thresholds(validation, calibration, test), n_bootstrap=50)
    rule = result["protocols"]["healthy"]
    by_hand = [np.count_nonzero(s.normal >= rule["threshold"]) * 0.008 for s in test if s.healthy]
    assert rule["false_positive_ml_per_healthy_scan"] == pytest.approx(np.mean(by_hand))
    assert {r["subject_id"] for r in rule["subjects"]} == {f"s{i}" for i in range(5)}


def test_dice_at_five_percent_fpr_keeps_the_rate():
    test, validation, calibration = _test_set()
    result = metrics.evaluate(test, thresholds(validation, calibration, test), n_bootstrap=50)
    normal = np.concatenate([s.normal for s in test if s.n_lesion])
    rate = (normal >= result["oracle_dice_at_5pct_fpr"]["threshold"]).mean()
    assert 0.05 - 2 / len(normal) < rate <= 0.05


def test_doubtful_lesion_masks_are_named_in_the_notes():
    test, validation, calibration = _test_set()
    test += [_subject(8, "outside", unreachable=500), _subject(9, "huge", positives=300, negatives=100)]
    test += [SubjectScores("unclear", False, _scores(3)[1], np.empty(0, np.float32), 0.008)]
    notes = metrics.evaluate(test, thresholds(validation, calibration, test), n_bootstrap=20)["notes"]
    for word in ("outside: more than half", "huge: the lesion fills", "left out: unclear", "rest on 7 subjects"):
        assert sum(word in note for note in notes) == 1


def test_subject_scores_from_a_map_count_lesion_voxels_outside_the_brain():
    grid = Grid((4, 4, 4), np.diag([2.0, 2.0, 2.0, 1.0]))
    scores = np.ones(grid.shape, np.float32)
    scores[0] = np.nan
    lesion = np.zeros(grid.shape, bool)
    lesion[0, 0, 0] = lesion[1, 1, 1] = True
    s = subject_scores.subject_scores(ScoreMap(scores, grid, "a", "mm"), Mask(lesion, grid), healthy=False)
    assert (len(s.anomalous), len(s.normal), s.lesion_unreachable_voxels) == (1, 47, 1)
    assert s.voxel_ml == pytest.approx(0.008)


def test_lesion_mask_on_another_grid_is_refused():
    grid = Grid((2, 2, 2), np.eye(4))
    other = Mask(np.zeros((2, 2, 2), bool), Grid((2, 2, 2), np.diag([2.0, 2, 2, 1])))
    score_map = ScoreMap(np.ones(grid.shape, np.float32), grid, "a", "mm")
    with pytest.raises(BadInput, match="different grids"):
        subject_scores.subject_scores(score_map, other, healthy=False)
    with pytest.raises(BadInput, match="no lesion mask"):
        subject_scores.subject_scores(score_map, None, healthy=False)


# histograms


def _random_histogram(seed, size=5000):
    rng = _rng(seed, 7)
    scores = np.exp(rng.normal(1, 3, size)).astype(np.float32)
    return scores, rng.random(size) < 0.1


def test_histogram_dice_is_exact_at_every_edge():
    scores, lesion = _random_histogram(0)
    curve = ScoreHistogram.of(scores, lesion, unreachable=9).dice_curve()
    cuts = curves.edges()
    for k in _rng(1).integers(0, curves.N_BINS, 300):
        assert curve[k] == pytest.approx(_brute_dice(scores[lesion], scores[~lesion], cuts[k], 9), abs=1e-14)


def test_a_score_on_an_edge_belongs_to_the_bin_above_it():
    cuts = curves.edges()
    chosen = cuts[[1, 17, 30_000, curves.N_BINS - 1]]
    assert np.flatnonzero(curves.bin_counts(chosen)).tolist() == [1, 17, 30_000, curves.N_BINS - 1]
    below = np.nextafter(chosen, np.float32(0))
    assert np.flatnonzero(curves.bin_counts(below)).tolist() == [0, 16, 29_999, curves.N_BINS - 2]


def test_scores_beyond_the_bins_are_clamped_counted_and_reported():
    scores = np.array([0.0, -0.0, 1e-9, 1.0, 1e30], np.float32)
    histogram = ScoreHistogram.of(scores, np.zeros(5, bool))
    assert histogram.normal.sum() == 5
    assert histogram.clamped_fraction == pytest.approx(0.8)


def test_negative_and_infinite_scores_are_refused():
    for bad in (-1e-30, np.inf):
        with pytest.raises(BadInput, match="negative"):
            curves.bin_counts(np.array([1.0, bad], np.float32))


def test_histograms_of_subjects_add_to_the_histogram_of_all_and_subtract_again():
    parts = [_random_histogram(i) for i in range(3)]
    whole = ScoreHistogram.of(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))
    each = [ScoreHistogram.of(*p) for p in parts]
    total = curves.pooled(each)
    np.testing.assert_array_equal(total.normal, whole.normal)
    np.testing.assert_array_equal(total.anomalous, whole.anomalous)
    np.testing.assert_array_equal((total - each[0]).normal, (each[1] + each[2]).normal)


def test_counts_of_ten_billion_voxels_do_not_overflow():
    big = np.full(curves.N_BINS, 200_000, np.int64)
    histogram = ScoreHistogram(big, big) + ScoreHistogram(big, big)
    assert histogram.false_positives()[0] == 400_000 * curves.N_BINS > 2**34
    assert 0 < histogram.dice_curve()[0] < 1


def test_best_dice_over_edges_is_close_to_and_never_above_the_exact_one():
    scores, lesion = _random_histogram(4, 20_000)
    exact = exact_curve.exact_curve(scores[lesion], scores[~lesion]).best_dice
    best, edge = ScoreHistogram.of(scores, lesion).best_dice()
    assert exact - 2e-3 <= best <= exact + 1e-12
    assert best == pytest.approx(_brute_dice(scores[lesion], scores[~lesion], np.float32(edge)), abs=1e-14)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_histogram_brackets_hold_the_exact_average_precision_and_auroc(seed, ties):
    p, n = _scores(seed, 40, 3000, ties)
    exact, histogram = exact_curve.exact_curve(p, n), ScoreHistogram.of_classes(n, p)
    for bracket, value in ((histogram.average_precision(), exact.auprc), (histogram.auroc(), exact.auroc)):
        assert bracket.low - 1e-12 <= value <= bracket.high + 1e-12
        if not ties:
            assert bracket.value == pytest.approx(value, abs=5e-3)


def test_mean_dice_curve_is_the_mean_over_subjects_with_lesion():
    first, second = (ScoreHistogram.of(*_random_histogram(i)) for i in (5, 6))
    healthy = ScoreHistogram(first.normal, np.zeros_like(first.normal))
    mean = curves.mean_dice_curve([first, second, healthy])
    np.testing.assert_allclose(mean, (first.dice_curve() + second.dice_curve()) / 2, atol=1e-15)
    with pytest.raises(BadInput, match="undefined"):
        curves.mean_dice_curve([healthy])


def test_histogram_survives_its_file_and_a_damaged_one_is_named(tmp_path):
    histogram = ScoreHistogram.of(*_random_histogram(8), unreachable=4)
    path = tmp_path / "h.npz"
    histogram.save(path)
    again = ScoreHistogram.load(path)
    np.testing.assert_array_equal(again.normal, histogram.normal)
    np.testing.assert_array_equal(again.anomalous, histogram.anomalous)
    assert again.unreachable == 4
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(IntegrityError, match=r"h\.npz"):
        ScoreHistogram.load(path)


def test_snap_gives_the_edge_at_or_below():
    for t in (0.0, 0.7, 3.0, 1e9):
        edge = curves.snap(t)
        assert edge <= t
        assert edge in curves.edges()
    assert curves.snap(float(curves.edges()[1234])) == float(curves.edges()[1234])


# intervals


def test_interval_covers_the_mean_and_shrinks_with_subjects():
    values = _rng(2).random(200)
    small = bootstrap.mean_interval(values[:20], seed=0, n_resamples=2000)
    large = bootstrap.mean_interval(values, seed=0, n_resamples=2000)
    assert small.low < small.mean < small.high
    assert large.high - large.low < small.high - small.low
    standard_error = values.std() / np.sqrt(200)
    assert (large.high - large.low) / (2 * 1.96 * standard_error) == pytest.approx(1, abs=0.1)


def test_interval_is_the_same_for_the_same_seed_and_absent_below_two_subjects():
    assert bootstrap.mean_interval([0.1, 0.5], seed=3) == bootstrap.mean_interval([0.1, 0.5], seed=3)
    one = bootstrap.mean_interval([0.4], seed=0)
    assert (one.mean, one.low, one.high) == (0.4, None, None)
    assert bootstrap.mean_interval([], seed=0).mean is None
    with pytest.raises(BadInput, match="finite"):
        bootstrap.mean_interval([0.4, float("nan")], seed=0)


def test_pairing_removes_the_spread_that_subjects_share():
    base = _rng(5).random(30)
    difference = bootstrap.paired_difference(base + 0.01, base, seed=0)
    assert difference.low == pytest.approx(0.01)
    assert difference.high == pytest.approx(0.01)


def test_stratified_resampling_keeps_every_site():
    values = np.array([0.0] * 5 + [1.0] * 5)
    interval = bootstrap.mean_interval(values, seed=0, strata=["a"] * 5 + ["b"] * 5)
    assert (interval.low, interval.high) == (0.5, 0.5)


# lesions

GRID = Grid((24, 24, 24), np.diag([3.0, 3.0, 3.0, 1.0]))


def _box(*corners):
    mask = np.zeros(GRID.shape, bool)
    for (a, b), (c, d), (e, f) in corners:
        mask[a:b, c:d, e:f] = True
    return mask


def _report(segmented, lesion, scores=None):
    values = np.ones(GRID.shape, np.float32) if scores is None else scores
    return lesions.lesion_report(ScoreMap(values, GRID, "a", "mm"), Mask(segmented, GRID), Mask(lesion, GRID))


def test_found_missed_and_false_lesions_are_counted():
    first, second = ((1, 5), (1, 5), (1, 5)), ((12, 15), (12, 15), (12, 15))
    false = ((20, 22), (20, 22), (20, 22))
    report = _report(_box(first, false), _box(first, second))
    assert (report.recall, report.precision, report.f1) == (0.5, 0.5, 0.5)
    assert [r.found for r in report.lesions] == [True, False]
    assert report.missed[0].centre_voxel == (13, 13, 13)
    assert report.missed[0].centre_mm == (39.0, 39.0, 39.0)
    assert report.lesions[0].volume_ml == pytest.approx(64 * 0.027)
    assert not report.false_positives[0].touches_lesion


def test_false_positives_are_sorted_by_score_and_give_their_peak():
    low, high = ((1, 3), (1, 3), (1, 3)), ((10, 13), (10, 13), (10, 13))
    scores = np.ones(GRID.shape, np.float32)
    scores[2, 2, 2], scores[11, 12, 10] = 3.0, 7.0
    report = _report(_box(low, high), _box(), scores)
    assert [r.max_score for r in report.false_positives] == [7.0, 3.0]
    assert report.false_positives[0].peak_voxel == (11, 12, 10)
    assert (report.recall, report.precision) == (None, 0.0)


def test_ten_percent_overlap_matches_and_less_does_not():
    lesion = _box(((0, 10), (0, 2), (0, 10)))
    outside = _box(((0, 1), (2, 8), (0, 10)))
    for depth, found in ((10, True), (9, False)):
        touching = _box(((0, 1), (0, 2), (0, depth)))
        touching[0, 2] = outside[0, 2]
        report = _report(touching | outside, lesion)
        assert report.lesions[0].overlap == pytest.approx(depth / 100)
        assert report.lesions[0].found is found


def test_one_component_over_two_lesions_matches_only_one():
    lesion = _box(((0, 4), (0, 4), (0, 4)), ((6, 10), (0, 4), (0, 4)))
    report = _report(_box(((0, 10), (0, 4), (0, 4))), lesion)
    assert sum(r.found for r in report.lesions) == 1
    assert report.false_positives == ()


def test_matching_has_the_largest_total_iou_of_all_one_to_one_matchings():
    rng = _rng(12)
    for _ in range(10):
        reference = rng.integers(0, 6, (6, 6, 3))
        found = np.where(rng.random(reference.shape) < 0.4, reference, rng.integers(0, 6, reference.shape))
        table = np.zeros((5, 5))
        for i, j in itertools.product(range(5), range(5)):
            lesion, component = reference == i + 1, found == j + 1
            common, union = (lesion & component).sum(), (lesion | component).sum()
            if common / lesion.sum() >= 0.1 or common / union >= 0.25:
                table[i, j] = common / union
        best = max(sum(table[i, p[i]] for i in range(5)) for p in itertools.permutations(range(5)))
        pairs = lesions._match(found, reference)
        assert len(set(pairs.values())) == len(pairs)
        assert sum(table[i - 1, j - 1] for i, j in pairs.items()) == pytest.approx(best)


def test_components_join_at_corners_and_small_ones_are_dropped():
    grid = Grid((6, 6, 6), np.diag([2.0, 2.0, 2.0, 1.0]))
    mask = np.zeros(grid.shape, bool)
    mask[[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]] = True
    mask[0, 5, 5] = True
    labels = lesions.components(Mask(mask, grid))
    assert labels.max() == 1
    assert (labels > 0).sum() == 4


def test_segmenting_an_ignored_tiny_lesion_is_neither_found_nor_false():
    grid = Grid((9, 9, 9), np.diag([2.0, 2.0, 2.0, 1.0]))
    lesion, segmented = np.zeros(grid.shape, bool), np.zeros(grid.shape, bool)
    lesion[4, 4, 4] = True
    segmented[3:6, 3:6, 3:6] = True
    score_map = ScoreMap(np.ones(grid.shape, np.float32), grid, "a", "mm")
    report = lesions.lesion_report(score_map, Mask(segmented, grid), Mask(lesion, grid))
    assert (report.lesions, report.false_positives, report.ignored_lesions) == ((), (), 1)


def test_recall_is_binned_by_size_over_all_subjects():
    small, large = ((1, 2), (1, 2), (1, 3)), ((8, 14), (8, 14), (8, 14))
    report = _report(_box(large), _box(small, large))
    summary = lesions.summarise([report, report])
    assert summary["recall_by_size"]["< 0.1 mL"] == {"n": 2, "found": 0, "recall": 0.0}
    assert summary["recall_by_size"]["1 to 10 mL"] == {"n": 2, "found": 2, "recall": 1.0}
    json.dumps(summary, allow_nan=False)


def test_unscored_lesion_has_no_score_and_is_missed():
    scores = np.ones(GRID.shape, np.float32)
    scores[:6] = np.nan
    report = _report(_box(), _box(((1, 5), (1, 5), (1, 5))), scores)
    assert report.lesions[0].max_score is None
    assert not report.lesions[0].found


def test_healthy_scans_report_volume_and_components_of_false_positives():
    clean, noisy = Mask(_box(), GRID), Mask(_box(((1, 3), (1, 3), (1, 3)), ((9, 11), (9, 11), (9, 11))), GRID)
    table = lesions.healthy_false_positives({"a": clean, "b": noisy})
    assert table["ml_per_scan"] == pytest.approx(16 * 0.027 / 2)
    assert (table["components_per_scan"], table["fraction_without_voxel"]) == (1.0, 0.5)


@pytest.mark.parametrize("seed", range(3))
def test_dice_is_that_of_monai_on_the_segmentation_at_the_threshold(seed):
    import torch
    from monai.metrics import compute_dice

    rng = np.random.default_rng(seed)
    lesion = rng.random((6, 7, 8)) < 0.1
    scores = (rng.random(lesion.shape) + 0.4 * lesion).astype(np.float32)
    subject = SubjectScores("s", False, scores[~lesion], scores[lesion], 0.008)
    for threshold in (0.2, 0.7, 1.1):
        called = torch.from_numpy((scores >= threshold)[None, None].astype(np.float32))
        theirs = compute_dice(called, torch.from_numpy(lesion[None, None].astype(np.float32)))
        assert subject_scores.dice_at(subject, threshold) == pytest.approx(float(theirs), abs=1e-6)
