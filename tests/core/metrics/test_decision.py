"""The two-distribution decision, and the label-free calibration it is compared with."""

import json
import math

import numpy as np
import pytest

from core.metrics.healthy_threshold import (
    Calibration,
    threshold_at_fp_ml,
    threshold_at_fp_volume,
    threshold_at_quantile,
)
from core.metrics.two_densities import KINDS, Density, TwoDensities
from core.types import ScoreMap
from data.errors import BadInput
from data.volume import Grid


def _lognormal(seed, mean, sd, n):
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed])))
    return np.expm1(np.maximum(rng.normal(mean, sd, n), 0.0))


def _two(normal, anomalous, prior=0.5):
    return TwoDensities("gaussian", prior, Density(*[(v,) for v in normal]), Density(*[(v,) for v in anomalous]), 100.0)


def test_equal_spreads_cut_at_the_middle_of_the_means():
    fitted = _two((1.0, 1.0, 0.5), (1.0, 3.0, 0.5))
    assert fitted.cut_points() == pytest.approx((math.expm1(2.0),))
    assert fitted.equivalent_threshold == pytest.approx(math.expm1(2.0))
    assert fitted.monotone
    assert "one threshold" in fitted.explain()


def test_a_rarer_anomaly_raises_the_cut_as_bayes_says():
    fitted = _two((1.0, 1.0, 0.5), (1.0, 3.0, 0.5), prior=0.01)
    shift = 0.25 * math.log(99) / 2
    assert fitted.cut_points() == pytest.approx((math.expm1(2.0 + shift),))


def test_unequal_spreads_cut_twice_and_no_threshold_is_claimed():
    fitted = _two((1.0, 2.0, 0.2), (1.0, 2.0, 0.6))
    d = math.sqrt(2 * math.log(3) / (1 / 0.04 - 1 / 0.36))
    assert fitted.cut_points() == pytest.approx((math.expm1(2 - d), math.expm1(2 + d)), rel=1e-6)
    assert fitted.equivalent_threshold is None
    assert not fitted.monotone
    assert fitted.starts_anomalous
    assert "Not one threshold" in fitted.explain()


def test_equal_densities_never_trade_places():
    fitted = _two((1.0, 1.0, 0.5), (1.0, 1.0, 0.5), prior=0.1)
    assert fitted.cut_points() == ()
    assert "never" in fitted.explain()


@pytest.mark.parametrize("kind", KINDS)
def test_classification_changes_exactly_at_the_cut_points(kind):
    fitted = TwoDensities.fit(_lognormal(0, 1, 0.3, 4000), _lognormal(1, 2, 0.4, 400), kind, seed=5)
    for cut in fitted.cut_points():
        around = np.array([np.nextafter(cut, 0) * (1 - 1e-6), cut * (1 + 1e-6)])
        low, high = fitted.classify(around)
        assert low != high
    x = np.linspace(0, fitted.highest, 300)
    flips = np.searchsorted(np.array(fitted.cut_points()), x, side="right") % 2 == 1
    np.testing.assert_array_equal(fitted.classify(x), flips ^ fitted.starts_anomalous)


@pytest.mark.parametrize("kind", KINDS)
def test_every_density_integrates_to_one_and_finds_the_true_cut(kind):
    fitted = TwoDensities.fit(_lognormal(2, 1, 0.25, 20_000), _lognormal(3, 2, 0.25, 20_000), kind, prior=0.5)
    x = np.linspace(-3, 8, 20_001)
    for density in (fitted.normal, fitted.anomalous):
        assert np.trapezoid(np.exp(density.log_density(x)), x) == pytest.approx(1, abs=1e-6)
    called = fitted.classify(np.expm1(np.array([1.3, 1.42, 1.58, 1.7])))
    assert called.tolist() == [False, False, True, True]


@pytest.mark.parametrize("kind", KINDS)
def test_decision_survives_json_and_repeats_for_a_seed(kind):
    data = _lognormal(4, 1, 0.3, 3000), _lognormal(5, 2, 0.3, 3000)
    fitted = TwoDensities.fit(*data, kind, seed=1, max_samples=1000)
    assert TwoDensities.from_json(json.loads(json.dumps(fitted.to_json()))) == fitted
    assert TwoDensities.fit(*data, kind, seed=1, max_samples=1000) == fitted
    assert TwoDensities.fit(*data, kind, seed=2, max_samples=1000) != fitted


def test_ratio_through_the_table_agrees_with_the_exact_one():
    fitted = TwoDensities.fit(_lognormal(6, 1, 0.3, 5000), _lognormal(7, 2, 0.3, 5000), "kde")
    many = np.linspace(0, 60, 60_000)
    few = many[::1000]
    np.testing.assert_allclose(fitted.log_ratio(many)[::1000], fitted.log_ratio(few), atol=2e-2)


def test_nan_scores_are_never_called_anomalous_and_shape_is_kept():
    fitted = _two((1.0, 1.0, 0.5), (1.0, 3.0, 0.5))
    called = fitted.classify(np.array([[np.nan, 50.0], [0.1, 20.0]]))
    assert called.tolist() == [[False, True], [False, True]]


def test_default_prior_is_the_share_of_anomalous_voxels():
    assert TwoDensities.fit(_lognormal(0, 1, 0.3, 900), _lognormal(1, 2, 0.3, 100)).prior == pytest.approx(0.1)


def test_bad_scores_kinds_and_priors_are_refused():
    good = _lognormal(0, 1, 0.3, 100)
    for normal, anomalous, kind, prior in [
        (good, good[:1], "gaussian", None),
        (good, -good, "gaussian", None),
        (good, good, "spline", None),
        (good, good, "gaussian", 1.0),
        (np.append(good, np.nan), good, "gaussian", None),
    ]:
        with pytest.raises(BadInput):
            TwoDensities.fit(normal, anomalous, kind, prior)


# calibration

GRID = Grid((10, 10, 10), np.diag([2.0, 2.0, 2.0, 1.0]))


def _map(seed, name="a"):
    scores = _lognormal(seed, 1, 0.5, 1000).reshape(GRID.shape).astype(np.float32)
    scores[0] = np.nan
    return ScoreMap(scores, GRID, name, "σ")


def test_quantile_threshold_leaves_at_most_its_share_and_is_the_smallest_that_does():
    pooled = _lognormal(0, 1, 0.5, 999).astype(np.float32)
    for q in (0.5, 0.9, 0.99, 0.9999):
        t = np.float32(threshold_at_quantile([pooled], q))
        assert (pooled >= t).mean() <= 1 - q
        assert (pooled >= np.nextafter(t, np.float32(0))).mean() > 1 - q


def test_quantile_threshold_does_not_overshoot_on_ties():
    t = threshold_at_quantile([np.array([1, 1, 1, 2, 2, 2], np.float32)], 0.9)
    assert t > 2


def test_false_positive_volume_is_kept_on_average_per_scan():
    maps = [_map(1), _map(2)]
    t = threshold_at_fp_volume(maps, 0.4)
    called = sum(np.nansum(m.scores >= np.float32(t)) for m in maps)
    assert called == 100


def test_false_positive_volume_weighs_scans_with_larger_voxels():
    scans = [np.array([5.0, 1.0], np.float32), np.array([4.0, 3.0], np.float32)]
    t = threshold_at_fp_ml(scans, [1.0, 3.0], 2.0)
    assert 3.0 < t <= 4.0
    assert threshold_at_fp_ml(scans, [1.0, 3.0], 1.9) > 4.0


def test_calibration_segments_what_reaches_the_threshold_and_never_nan():
    calibration = Calibration.fit([_map(3), _map(4)], quantile=0.9)
    mask = calibration.segment(_map(5))
    assert not mask.voxels[0].any()
    np.testing.assert_array_equal(mask.voxels[1:], _map(5).scores[1:] >= np.float32(calibration.threshold))
    assert Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration


def test_display_is_one_half_at_the_healthy_median_and_keeps_order():
    calibration = Calibration.fit([_map(6)])
    shown = calibration.display(np.array([0.0, math.expm1(calibration.median), 1e6, np.nan], np.float32))
    assert shown[1] == pytest.approx(0.5, abs=1e-5)
    assert 0 <= shown[0] < shown[1] < shown[2] <= 1
    assert np.isnan(shown[3])
    unit = math.expm1(calibration.median + calibration.q95 - calibration.q05)
    assert calibration.display(np.array([unit], np.float32))[0] == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-5)


def test_calibration_without_subjects_is_refused():
    with pytest.raises(BadInput, match="healthy"):
        Calibration.fit([])
