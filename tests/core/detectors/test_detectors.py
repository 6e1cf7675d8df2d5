"""The contract of every detector of the catalogue, and the one exact law of the Gaussian: a marginal is a sub-block."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from core.detectors import CATALOGUE, from_recipe, make, recipe_json
from core.detectors.capabilities import LayerSets, can
from core.detectors.feature_gaussian import FeatureGaussian
from core.detectors.patchcore import PatchCore
from core.features.settings import FeatureSettings, every_layer_set
from core.types import Detector
from data.errors import BadInput
from data.volume import Volume
from models.settings import EncoderSettings
from tests.study import small_volumes, with_lesion

N_TRAIN = 8


def small(name: str) -> Detector:
    """The recipe of the catalogue, with a narrow encoder and a grid that 16 voxels allow."""
    detector = make(name)
    if isinstance(detector, PatchCore):
        detector = dataclasses.replace(detector, bank=dataclasses.replace(detector.bank, coreset_ratio=0.3))
    if can(detector, LayerSets):
        return dataclasses.replace(
            detector,
            encoder=dataclasses.replace(detector.encoder, width=4),
            features=dataclasses.replace(detector.features, grid="8mm", max_channels=6),
        )
    return detector


@pytest.fixture(scope="module")
def train() -> list[Volume]:
    return small_volumes(N_TRAIN)


@pytest.fixture(scope="module")
def healthy() -> Volume:
    return small_volumes(1, seed=5)[0]


@pytest.fixture(scope="module")
def fitted(train: list[Volume]) -> dict[str, Detector]:
    """Each detector fitted once; tests that fit again make their own."""
    return {name: small(name).fit(train) for name in CATALOGUE}


def scores(detector: Detector, volume: Volume) -> np.ndarray:
    return np.asarray(detector.score(volume).scores)


every_detector = pytest.mark.parametrize("name", list(CATALOGUE))


@every_detector
def test_fit_returns_the_detector_and_tells_the_monitor_of_every_volume(name: str, train: list[Volume]) -> None:
    heard: list[int] = []
    detector = small(name)
    assert detector.fit(train, lambda step, values: heard.append(step)) is detector
    assert heard[-1] == N_TRAIN
    assert heard == sorted(heard)


@every_detector
def test_inputs_are_unchanged(name: str, healthy: Volume) -> None:
    volumes = small_volumes(4)
    before = [v.voxels.tobytes() + v.brain_mask.tobytes() for v in [*volumes, healthy]]
    small(name).fit(volumes).score(healthy)
    assert [v.voxels.tobytes() + v.brain_mask.tobytes() for v in [*volumes, healthy]] == before


@every_detector
def test_the_same_seed_gives_the_same_map(
    name: str, train: list[Volume], healthy: Volume, fitted: dict[str, Detector]
) -> None:
    assert scores(small(name).fit(train), healthy).tobytes() == scores(fitted[name], healthy).tobytes()


@every_detector
def test_the_map_lies_on_the_grid_of_the_volume_finite_in_the_brain_and_nan_outside(
    name: str, healthy: Volume, fitted: dict[str, Detector]
) -> None:
    score_map = fitted[name].score(healthy)
    assert score_map.grid.matches(healthy.grid)
    assert score_map.subject_id == healthy.subject_id
    assert score_map.unit == type(fitted[name]).score_unit
    assert score_map.scores.dtype == np.float32
    assert np.array_equal(np.isfinite(score_map.scores), healthy.brain_mask)
    assert np.isnan(score_map.scores[~healthy.brain_mask]).all()


@every_detector
def test_a_planted_lesion_scores_above_healthy_tissue(name: str, healthy: Volume, fitted: dict[str, Detector]) -> None:
    ill, ball = with_lesion(healthy, -0.6 if name == "intensity-dark" else 0.6)
    found = scores(fitted[name], ill)
    lesion, other = found[ball], found[ill.brain_mask & ~ball]
    assert np.median(lesion) > np.quantile(other, 0.9)
    assert lesion.mean() > scores(fitted[name], healthy)[ball].mean()


@every_detector
def test_what_is_saved_and_loaded_gives_the_identical_map(
    name: str, healthy: Volume, fitted: dict[str, Detector], tmp_path: Path
) -> None:
    fitted[name].save(tmp_path)
    loaded = type(fitted[name]).load(tmp_path)
    assert recipe_json(loaded) == recipe_json(fitted[name])
    assert scores(loaded, healthy).tobytes() == scores(fitted[name], healthy).tobytes()
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} <= {".json", ".safetensors", ".npy"}


@every_detector
def test_hyper_parameters_survive_json(name: str) -> None:
    for detector in (CATALOGUE[name].recipe, small(name), dataclasses.replace(small(name), smoothing_mm=3.5)):
        again = from_recipe(json.loads(json.dumps(recipe_json(detector), allow_nan=False)))
        assert type(again) is type(detector)
        assert recipe_json(again) == recipe_json(detector)
        assert all(getattr(again, f.name) == getattr(detector, f.name) for f in dataclasses.fields(again) if f.init)


@every_detector
def test_a_second_fit_forgets_the_first(
    name: str, train: list[Volume], healthy: Volume, fitted: dict[str, Detector]
) -> None:
    detector = small(name).fit(small_volumes(5, seed=9))
    if not name.startswith("intensity"):
        assert scores(detector, healthy).tobytes() != scores(fitted[name], healthy).tobytes()
    detector.fit(train)
    assert scores(detector, healthy).tobytes() == scores(fitted[name], healthy).tobytes()


@every_detector
def test_scoring_before_fitting_says_what_to_do(name: str, healthy: Volume) -> None:
    with pytest.raises(RuntimeError, match=r"not fitted.*fit\(train\)"):
        small(name).score(healthy)


@every_detector
def test_a_fit_without_volumes_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="Give at least two"):
        small(name).fit([])


@every_detector
def test_every_detector_is_described(name: str) -> None:
    assert len(CATALOGUE[name].description) > 20


def test_making_an_unknown_detector_names_the_closest_and_making_one_leaves_the_catalogue_alone() -> None:
    with pytest.raises(BadInput, match=r"Did you mean 'padim'\?.*gaussian, padim, patchcore, .*zscore"):
        make("padin")
    changed = make("zscore", {"smoothing_mm": 8.0})
    assert changed.smoothing_mm == 8.0
    assert CATALOGUE["zscore"].recipe.smoothing_mm != 8.0
    assert make("gaussian") is not CATALOGUE["gaussian"].recipe


def test_a_recipe_of_an_unknown_type_or_with_an_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(BadInput, match=r"'Oracle'.*FeatureGaussian"):
        from_recipe({"kind": "Oracle"})
    with pytest.raises(BadInput, match=r"no setting sharpness.*smoothing_mm"):
        from_recipe({"kind": "VoxelZScore", "sharpness": 3})


def test_every_layer_set_is_each_combination_once_in_the_order_of_the_layers_the_full_set_last() -> None:
    assert every_layer_set(("a", "b", "c")) == (
        ("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c"),
    )  # fmt: skip
    assert len(every_layer_set("abcde")) == len(set(every_layer_set("abcde"))) == 2**5 - 1


@pytest.mark.parametrize("reduction", ["none", "draw", "pca"])
@pytest.mark.parametrize("form", ["dual", "primal"])
def test_distances_of_a_layer_subset_are_those_of_a_detector_of_these_layers_alone(
    form: str, reduction: str, train: list[Volume], healthy: Volume
) -> None:
    layers = ("input", "stage0", "stage2")
    recipe = FeatureGaussian(
        encoder=EncoderSettings(width=4),
        features=FeatureSettings(layers=layers, grid="8mm", reduction=reduction, max_channels=3),
    )
    recipe = dataclasses.replace(recipe, gaussian=dataclasses.replace(recipe.gaussian, form=form))
    together = dataclasses.replace(recipe).fit(train)
    distances = together.distances([healthy, train[0]])
    assert distances.shape == (7, 2, len(together.layout_.positions))
    for number, subset in enumerate(together.layer_sets):
        if reduction == "draw" and subset != layers[: len(subset)]:
            continue  # the draw is seeded by the layer's place, so only prefixes draw the same channels
        features = dataclasses.replace(recipe.features, layers=subset)
        alone = dataclasses.replace(recipe, features=features).fit(train)
        np.testing.assert_allclose(distances[number], alone.distances([healthy, train[0]])[-1], rtol=2e-4, atol=1e-4)


def test_the_score_is_the_map_of_the_distance_over_all_layers(fitted: dict[str, Detector], healthy: Volume) -> None:
    gaussian = fitted["gaussian"]
    assert isinstance(gaussian, FeatureGaussian)
    distances = gaussian.distances([healthy])[-1, 0]
    np.testing.assert_array_equal(gaussian.to_map(distances, healthy).scores, scores(gaussian, healthy))


def test_the_zscore_is_the_textbook_one_where_nothing_is_smoothed(train: list[Volume], healthy: Volume) -> None:
    detector = make("zscore", {"prior_smoothing_mm": 0.0, "floor": 0.0}).fit(train)
    stack = np.stack([v.voxels[0] for v in train]).astype(np.float64)
    brain = healthy.brain_mask
    wanted = np.abs(healthy.voxels[0] - stack.mean(axis=0))[brain] / stack.std(axis=0, ddof=1)[brain]
    np.testing.assert_allclose(scores(detector, healthy)[brain], wanted, rtol=1e-3, atol=1e-3)


def test_an_encoder_of_other_contrasts_is_refused_with_both_numbers(train: list[Volume]) -> None:
    with pytest.raises(BadInput, match=r"expects 2 contrast\(s\), the volumes have 1"):
        FeatureGaussian(encoder=EncoderSettings(width=4, in_channels=2)).fit(train)


def test_volumes_of_another_grid_are_refused(fitted: dict[str, Detector]) -> None:
    other = small_volumes(1, shape=(16, 16, 16))[0]
    for name in ("gaussian", "padim", "patchcore", "patchcore-position", "zscore"):
        with pytest.raises(BadInput, match="run's own preprocessing"):
            fitted[name].score(other)


def test_an_intensity_of_a_contrast_that_is_not_there_is_refused(train: list[Volume]) -> None:
    for contrast in (1, -1):
        with pytest.raises(BadInput, match=rf"no contrast {contrast}.*1: T1"):
            make("intensity-bright", {"contrast": contrast}).fit(train)
