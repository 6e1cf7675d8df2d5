"""Score maps: interpolation in world coordinates against scipy, normalisation by the mask, NaN outside the brain."""

import time

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from core.features.score_maps import Upsampler, gaussian_matrix, masked_score_map, separable, to_score_map
from core.types import FeatureLayout
from data.errors import BadInput
from data.volume import Grid, Volume


def _grid(shape, spacing, origin=(0.0, 0.0, 0.0)):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return Grid(shape, affine)


WORKING = _grid((14, 12, 10), (2.0, 2.0, 3.0), (-10.0, -20.0, 5.0))


def _layout(feature_grid, positions=None, working=WORKING):
    if positions is None:
        positions = np.argwhere(np.ones(feature_grid.shape, bool))
    positions = np.asarray(positions, dtype=np.int64)
    lookup = {"layer1": np.arange(len(positions))}
    return FeatureLayout(
        working, feature_grid, positions, {"layer1": feature_grid}, {"layer1": positions}, lookup, {"layer1": 4}
    )


def _volume(mask=None, grid=WORKING):
    mask = np.ones(grid.shape, bool) if mask is None else mask
    return Volume(np.zeros((1, *grid.shape), np.float32), grid, mask, "a", ("T1",))


def _random(shape, seed=0):
    return np.random.Generator(np.random.Philox(seed)).gamma(2, 1, shape).astype(np.float32)


def _by_scipy(values, source, onto):
    index = np.stack(np.meshgrid(*map(np.arange, onto.shape), indexing="ij"), axis=-1)
    matrix = np.linalg.inv(source.affine) @ onto.affine
    where = index @ matrix[:3, :3].T + matrix[:3, 3]
    return map_coordinates(values, np.moveaxis(where, -1, 0), order=1, mode="nearest")


@pytest.mark.parametrize(
    "feature_grid",
    [
        WORKING.coarser((2, 2, 2)),
        _grid((5, 4, 6), (5.0, 6.5, 5.0), (-8.0, -19.0, 4.0)),
        _grid((7, 6, 5), (-4.0, 4.0, 6.0), (14.0, -20.0, 5.0)),
    ],
    ids=["stride 2", "shifted and stretched", "flipped axis"],
)
def test_interpolation_equals_scipy_at_the_same_world_positions(feature_grid):
    values = _random(feature_grid.shape)
    score_map = to_score_map(values.reshape(-1), _layout(feature_grid), _volume(), "σ")
    np.testing.assert_allclose(score_map.scores, _by_scipy(values, feature_grid, WORKING), rtol=2e-6, atol=2e-6)


def test_smoothing_equals_interpolation_then_normalised_gaussian_of_scipy():
    feature_grid = WORKING.coarser((2, 2, 2))
    values = _random(feature_grid.shape, 1)
    fused = to_score_map(values.reshape(-1), _layout(feature_grid), _volume(), "σ", smoothing_mm=4.0).scores
    sigma = [4.0 / s for s in WORKING.spacing_mm]
    plain = _by_scipy(values, feature_grid, WORKING)
    reference = gaussian_filter(plain, sigma, mode="constant") / gaussian_filter(
        np.ones(WORKING.shape), sigma, mode="constant"
    )
    np.testing.assert_allclose(fused, reference, rtol=1e-5)


def test_gaussian_matrix_is_the_filter_of_scipy():
    x = _random(30, 2)
    np.testing.assert_allclose(gaussian_matrix(30, 1.7) @ x, gaussian_filter(x, 1.7, mode="constant"), rtol=1e-5)


def test_separable_equals_einsum():
    values = _random((4, 5, 6))
    a, b, c = _random((7, 4)), _random((8, 5), 1), _random((9, 6), 2)
    expected = np.einsum("ix,jy,kz,xyz->ijk", a, b, c, values)
    np.testing.assert_allclose(separable(values, (a, b, c)), expected, rtol=1e-5)


@pytest.mark.parametrize("smoothing_mm", [0.0, 5.0])
def test_constant_distances_stay_constant_up_to_the_edge_of_the_brain(smoothing_mm):
    feature_grid = WORKING.coarser((2, 2, 2))
    inside = np.zeros(feature_grid.shape, bool)
    inside[2:5, 1:4, 1:4] = True
    layout = _layout(feature_grid, np.argwhere(inside))
    brain = np.zeros(WORKING.shape, bool)
    brain[2:12, 1:10, 0:9] = True
    values = np.full(int(inside.sum()), 7.0, np.float32)
    scores = to_score_map(values, layout, _volume(brain), "σ", smoothing_mm=smoothing_mm).scores
    np.testing.assert_allclose(scores[brain], 7.0, rtol=1e-5)
    assert np.isnan(scores[~brain]).all()


def test_voxels_without_a_position_near_take_the_nearest_one():
    feature_grid = WORKING.coarser((2, 2, 2))
    layout = _layout(feature_grid, [[0, 0, 0], [6, 5, 4]])
    scores = to_score_map(np.array([1.0, 9.0], np.float32), layout, _volume(), "σ").scores
    assert np.isfinite(scores).all()
    assert scores[3, 3, 3] == 1.0
    assert scores[10, 9, 7] == 9.0
    assert set(np.unique(scores)) == {1.0, 9.0}


def test_a_peak_stays_at_its_world_position():
    feature_grid = WORKING.coarser((2, 2, 2))
    values = np.zeros(feature_grid.shape, np.float32)
    values[3, 2, 1] = 5.0
    scores = to_score_map(values.reshape(-1), _layout(feature_grid), _volume(), "σ", smoothing_mm=2.0).scores
    assert np.unravel_index(scores.argmax(), scores.shape) == (6, 4, 2)


def test_median_removes_a_lone_peak_and_does_not_leak_nan():
    brain = np.zeros(WORKING.shape, bool)
    brain[2:12, 2:10, 2:8] = True
    values = np.where(brain, np.float32(1), np.float32(np.nan))
    values[6, 6, 5] = 100.0
    scores = masked_score_map(values, _volume(brain), "σ", median_voxels=3).scores
    np.testing.assert_array_equal(scores[brain], 1.0)
    assert np.isnan(scores[~brain]).all()


def test_dense_values_are_smoothed_within_the_mask_only():
    brain = np.zeros(WORKING.shape, bool)
    brain[2:12, 2:10, 2:8] = True
    values = np.where(brain, np.float32(3), np.float32(1000))
    scores = masked_score_map(values, _volume(brain), "σ", smoothing_mm=4.0).scores
    np.testing.assert_allclose(scores[brain], 3.0, rtol=1e-5)


def test_wrong_distances_grids_axes_and_masks_are_refused():
    feature_grid = WORKING.coarser((2, 2, 2))
    layout, n = _layout(feature_grid), int(np.prod(feature_grid.shape))
    good = np.ones(n, np.float32)
    with pytest.raises(BadInput, match="one finite value"):
        to_score_map(good[1:], layout, _volume(), "σ")
    with pytest.raises(BadInput, match="one finite value"):
        to_score_map(np.full(n, np.nan, np.float32), layout, _volume(), "σ")
    with pytest.raises(BadInput, match="grid"):
        to_score_map(good, layout, _volume(grid=_grid((5, 5, 5), (2, 2, 2))), "σ")
    with pytest.raises(BadInput, match="empty"):
        to_score_map(good, layout, _volume(np.zeros(WORKING.shape, bool)), "σ")
    with pytest.raises(BadInput, match="no in-brain position"):
        Upsampler(_layout(feature_grid, np.empty((0, 3))))
    turned = np.array([[0.0, 4, 0, 0], [4, 0, 0, 0], [0, 0, 6, 0], [0, 0, 0, 1]])
    with pytest.raises(BadInput, match="different axes"):
        Upsampler(_layout(Grid((6, 7, 5), turned)))


def test_an_upsampler_serves_many_maps_and_equals_the_function():
    feature_grid = WORKING.coarser((2, 2, 2))
    layout = _layout(feature_grid)
    upsampler = Upsampler(layout, 3.0)
    for seed in range(3):
        values = _random(int(np.prod(feature_grid.shape)), seed)
        expected = to_score_map(values, layout, _volume(), "σ", smoothing_mm=3.0).scores
        np.testing.assert_array_equal(upsampler.score_map(values, _volume(), "σ").scores, expected)


def test_a_whole_brain_map_takes_milliseconds():
    working = _grid((80, 96, 80), (2.0, 2.0, 2.0))
    feature_grid = working.coarser((2, 2, 2))
    upsampler = Upsampler(_layout(feature_grid, working=working), 8.0)
    values, volume = _random(int(np.prod(feature_grid.shape))), _volume(grid=working)
    seconds = []
    for _ in range(5):
        start = time.process_time()
        upsampler.score_map(values, volume, "σ")
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.2
