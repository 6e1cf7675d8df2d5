"""How far numbers may move when nothing that matters changed: rounding, threads, huge means, places without spread."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from core.detectors import CATALOGUE
from core.detectors.voxel_zscore import VoxelZScore
from core.memory_plan import GaussianSettings
from data.errors import BadInput
from data.volume import Volume
from tests.core.detectors.test_detectors import scores, small
from tests.core.gaussian.test_gaussian import SUBSETS, fit, make_volumes, reference
from tests.study import small_volumes

SHARE_OF_PEAK = 1e-3
"""Most that threads may move a score, as a share of the largest score of the map."""


def changed(volumes: Sequence[Volume], new: list[np.ndarray]) -> list[Volume]:
    return [dataclasses.replace(v, voxels=x.astype(np.float32)) for v, x in zip(volumes, new, strict=True)]


def nudged(volumes: Sequence[Volume], seed: int) -> list[Volume]:
    """Every voxel moved to the next 32-bit number up or down, as drawn: rounding that another machine might do."""
    draw = np.random.Generator(np.random.Philox(seed))
    return changed(
        volumes,
        [np.nextafter(v.voxels, np.where(draw.random(v.voxels.shape) < 0.5, -1, 2), dtype=np.float32) for v in volumes],
    )


@pytest.mark.parametrize("name", list(CATALOGUE))
def test_threads_move_scores_no_more_than_rounding_the_scans_does(name: str) -> None:
    train, test = small_volumes(5), small_volumes(1, seed=5)[0]
    threads = torch.get_num_threads()
    maps = []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            maps.append(scores(small(name).fit(train), test)[test.brain_mask])
        torch.set_num_threads(1)
        rounded = [
            scores(small(name).fit(nudged(train, seed)), nudged([test], seed)[0])[test.brain_mask] for seed in (1, 2)
        ]
    finally:
        torch.set_num_threads(threads)
    peak = float(np.abs(maps[0]).max())
    by_threads = float(np.abs(maps[1] - maps[0]).max()) / peak
    by_rounding = max(float(np.abs(one - maps[0]).max()) for one in rounded) / peak
    assert by_threads <= SHARE_OF_PEAK
    assert by_threads <= 2 * by_rounding + 1e-6
    assert by_rounding <= 20 * SHARE_OF_PEAK


@pytest.mark.parametrize("shrinkage", ["ridge", "oas", "ledoit_wolf"])
def test_fewer_scans_than_features_give_finite_distances_that_a_solver_confirms(shrinkage: str) -> None:
    settings = GaussianSettings(shrinkage=shrinkage)  # type: ignore[arg-type]
    train, test = make_volumes(5), make_volumes(2, seed=1)
    d = sum(int(rows.shape[1]) for rows in train[0].values())
    assert len(train) - 1 < d
    distances = fit(train, settings).mahalanobis_subsets(test, SUBSETS)
    assert np.isfinite(distances).all()
    for number, subset in enumerate(SUBSETS):
        np.testing.assert_allclose(distances[number], reference(train, test, subset, settings), rtol=1e-3)


def test_mean_and_deviation_of_a_z_score_keep_their_digits_under_a_huge_mean() -> None:
    base = small_volumes(40)
    volumes = changed(base, [1e4 + np.float32(1e-2) * v.voxels for v in base])
    detector = VoxelZScore(prior_smoothing_mm=0.0, floor=0.0).fit(volumes)
    stack = np.stack([v.voxels for v in volumes]).astype(np.longdouble)
    inside = base[0].brain_mask
    assert detector.mean_ is not None
    assert detector.deviation_ is not None
    np.testing.assert_allclose(detector.mean_[:, inside], stack.mean(0)[:, inside].astype(float), rtol=1e-7)
    want = stack.std(0, ddof=1)[:, inside].astype(float)
    np.testing.assert_allclose(detector.deviation_[:, inside], want, rtol=1e-6, atol=1e-9)


def flat(share: float) -> list[Volume]:
    """Training scans of which that share of the brain is the same in all of them."""
    volumes = small_volumes(6)
    index = np.cumsum(volumes[0].brain_mask).reshape(volumes[0].brain_mask.shape)
    same = volumes[0].brain_mask & (index <= share * index.max())
    return changed(volumes, [np.where(same, np.float32(0.5), v.voxels) for v in volumes])


@pytest.mark.parametrize("share", [0.1, 0.6, 0.999])
def test_places_without_spread_are_floored_and_never_divide_by_zero(share: float) -> None:
    test = small_volumes(1, seed=5)[0]
    for floor, most in ((0.05, 1e4), (0.0, np.inf)):
        detector = VoxelZScore(prior_smoothing_mm=0.0, floor=floor).fit(flat(share))
        assert detector.deviation_ is not None
        assert float(detector.deviation_.min()) > 0
        found = scores(detector, test)[test.brain_mask]
        assert np.isfinite(found).all()
        assert float(found.max()) < most


def test_training_scans_that_do_not_differ_anywhere_are_refused() -> None:
    with pytest.raises(BadInput, match="do not differ"):
        VoxelZScore().fit([small_volumes(1)[0]] * 3)
