"""What an encoder has been taught to ignore: closed forms of movement, visibility and brightness, on tiny volumes."""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

import cli
from core.metrics.bootstrap import Interval
from core.presentation.figures.visibility import brightness_bars, taught_away_lines, visibility_dumbbells
from core.pretraining.view_settings import VIEW_SETS, ViewSettings
from core.pretraining.views import ViewDraw
from core.pretraining.visibility.changes import VIEW, lesion_balls, lesion_change, lesion_places, view_change, window_of
from core.pretraining.visibility.intensity import explained_share, intensity_effects
from core.pretraining.visibility.measure import (
    Network,
    Visibility,
    measure_visibility,
    movement_of,
    ratio_interval,
    windows_of,
)
from core.pretraining.visibility.settings import LesionKind, VisibilitySettings
from core.pretraining.visibility.trained import _compared, compare_training, damage, taught_away
from core.pretraining.visibility.words import before_sentences, trained_sentences
from core.progress import open_progress
from core.runs.listing import open_run
from core.study.visibility import stored_visibility, visibility_before, visibility_of_run
from data.errors import BadInput
from models.encoder import make_encoder
from models.settings import EncoderSettings
from models.taps import Tap
from tests.study import TinyStudy, small_volumes

SMALL = VisibilitySettings(scans=3, diameters_mm=(8.0, 16.0), contrasts=(0.2, 0.4), places=1, draws=1, whole_views=2)
SHAPE = (20, 24, 20)


@dataclasses.dataclass
class Fake:
    """A network of one layer: a function of the image."""

    of: "object"
    taps: tuple[Tap, ...] = (Tap("layer", 1, (1, 1, 1)),)

    def features(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        return {name: self.of(x) for name in names}  # type: ignore[operator]


def volumes(n: int = 3) -> list:
    return small_volumes(n, shape=SHAPE)


def measured(network: Network, views: ViewSettings, settings: VisibilitySettings = SMALL) -> Visibility:
    windows = windows_of(volumes(), views, settings)
    return measure_visibility(windows, {"it": network}, views, settings)["it"]


def identity(x: Tensor) -> Tensor:
    return x


def test_views_that_change_nothing_move_nothing_and_visibility_has_no_bound() -> None:
    found = measured(make_encoder(EncoderSettings(width=4)).eval(), VIEW_SETS["none"])
    assert all(one.view.mean.mean == 0 for one in found.layers)
    assert all(one.families == () for one in found.layers)
    assert all(one.visibility.mean is None for one in found.layers)
    assert all(one.lesion.mean.mean > 0 for one in found.layers)  # type: ignore[operator]


def test_intensity_does_not_move_under_flips_affine_and_elastic_at_matched_places() -> None:
    found = measured(Fake(identity), ViewSettings(photometric=0.0))
    moved = {one.change: one.mean.mean for one in found.layers[0].families}
    assert set(moved) == {"flip", "affine", "elastic"}
    assert max(moved.values()) < 1e-4  # type: ignore[type-var]
    assert found.layers[0].view.mean.mean == pytest.approx(0, abs=1e-4)
    assert found.layers[0].visibility.mean is None


def test_at_unmatched_places_a_flip_would_have_moved_the_intensity() -> None:
    window = window_of(0, volumes()[0], ViewSettings(), 48)
    flipped = view_change(window, "flip", ViewDraw(window.start, window.inside.grid.shape, flip=(True, False, False)))
    assert float((flipped.image - window.image()).abs().max()) > 0.1
    assert flipped.points is not None
    assert torch.allclose(flipped.points[0, 0, 0], torch.tensor([19.0, 0.0, 0.0]))


def test_an_encoder_that_divides_by_the_mean_is_blind_to_a_change_of_scale_alone() -> None:
    """Blind to brightness by construction: the movement under a view that scales brightness is zero there."""
    window = window_of(0, volumes()[0], ViewSettings(), 48)
    scaled = dataclasses.replace(
        view_change(window, VIEW, ViewDraw(window.start, window.inside.grid.shape)), image=1.3 * window.image()
    )
    from core.pretraining.visibility.measure import _features, _medians, _spreads

    for network, blind in ((Fake(lambda x: x / x.mean(dim=(1, 2, 3, 4), keepdim=True)), True), (Fake(identity), False)):
        reference = _features(network, [window.image()])
        spreads = _spreads(network, reference, [window])
        moved = _medians(network, window, reference[0], spreads, [scaled])["layer"][VIEW]
        assert (moved < 1e-3) == blind


def test_movement_counts_in_healthy_standard_deviations() -> None:
    """A shift by twice the spread of the healthy intensities is 2, whatever unit the features have."""
    windows = windows_of(volumes(), ViewSettings(), SMALL)
    from core.pretraining.visibility.measure import _brain_cells, _features, _medians, _spreads

    tap = Tap("layer", 1, (1, 1, 1))
    pool = np.concatenate([w.image()[0].numpy()[_brain_cells(w, tap)] for w in windows]).astype(np.float64)
    for scale in (1.0, 50.0):
        network = Fake(lambda x, scale=scale: scale * x + 3)
        references = [_features(network, [w.image()])[0] for w in windows]
        spreads = _spreads(network, references, windows)
        shifted = view_change(windows[0], VIEW, ViewDraw(windows[0].start, windows[0].inside.grid.shape))
        shifted = dataclasses.replace(shifted, image=shifted.image + 2 * float(pool.std()))
        moved = _medians(network, windows[0], references[0], spreads, [shifted])["layer"][VIEW]
        assert moved == pytest.approx(2, rel=1e-3)


def test_a_channel_that_never_varies_counts_for_nothing() -> None:
    doubled = Fake(lambda x: torch.cat([x, torch.ones_like(x)], dim=1), (Tap("layer", 2, (1, 1, 1)),))
    alone, both = (measured(network, ViewSettings(geometric=0)) for network in (Fake(identity), doubled))
    assert both.layers[0].view.mean.mean == pytest.approx(alone.layers[0].view.mean.mean, rel=1e-5)


def test_a_lesion_of_contrast_0_moves_nothing_and_more_contrast_moves_more() -> None:
    settings = dataclasses.replace(SMALL, contrasts=(0.0, 0.2, 0.4))
    found = measured(make_encoder(EncoderSettings(width=4)).eval(), ViewSettings(), settings)
    for layer in found.layers:
        at = {(one.kind.polarity, one.kind.diameter_mm, one.kind.contrast): one for one in layer.lesions}
        for (polarity, diameter, contrast), one in at.items():
            assert one.movement.mean.mean is not None
            if contrast == 0:
                assert one.movement.mean.mean == 0
                assert one.visibility.mean == 0
            elif contrast == 0.4:
                assert one.movement.mean.mean > at[polarity, diameter, 0.2].movement.mean.mean  # type: ignore[operator]


def test_visibility_is_the_ratio_of_the_two_movements() -> None:
    layer = measured(make_encoder(EncoderSettings(width=4)).eval(), ViewSettings()).layers[2]
    lesion = layer.lesions[0]
    ratio = lesion.movement.mean.mean / layer.view.mean.mean  # type: ignore[operator]
    assert lesion.visibility.mean == pytest.approx(ratio)
    assert lesion.visibility.low <= ratio <= lesion.visibility.high  # type: ignore[operator]
    every = np.mean([one.movement.per_scan for one in layer.lesions], axis=0)
    assert layer.lesion.per_scan == pytest.approx(every)


def test_a_ratio_is_resampled_in_pairs_and_has_no_number_over_nothing() -> None:
    assert ratio_interval([2, 4, 6], [1, 2, 3], 0) == Interval(2.0, 2.0, 2.0, 3, 0.95)
    assert ratio_interval([2, 4], [0, 0], 0).mean is None
    assert ratio_interval([3], [2], 0) == Interval(1.5, None, None, 1, 0.95)


def test_equal_seeds_give_equal_numbers_and_another_seed_others() -> None:
    encoder = make_encoder(EncoderSettings(width=4)).eval()
    first, again = measured(encoder, ViewSettings()), measured(encoder, ViewSettings())
    assert first == again
    assert measured(encoder, ViewSettings(), dataclasses.replace(SMALL, seed=1)) != first


def test_an_encoder_of_slices_is_measured_too() -> None:
    encoder = make_encoder(EncoderSettings(architecture="resnet10_2d", width=4)).eval()
    found = measured(encoder, ViewSettings(), dataclasses.replace(SMALL, scans=2))
    assert [one.layer for one in found.layers] == [tap.name for tap in encoder.taps]
    assert all(one.view.mean.mean > 0 for one in found.layers)  # type: ignore[operator]


def test_lesions_lie_inside_the_brain_and_are_the_only_change() -> None:
    window = window_of(1, volumes()[1], ViewSettings(), 48)
    kind = LesionKind("hypo", 16.0, 0.4)
    places = lesion_places(window, SMALL)
    (ball,) = lesion_balls(window, kind, places)
    change = lesion_change(window, kind, places, 0)
    moved = (change.image - window.image()).abs()[0].numpy()
    assert (ball & ~window.inside.brain_mask).sum() == 0
    assert moved[ball].mean() > 10 * moved[~ball].mean()
    assert moved[~window.inside.brain_mask].max() == 0
    assert np.linalg.norm((np.argwhere(ball) - places[0]) * 4.0, axis=1).max() <= 8.0


def test_the_window_lies_in_the_middle_so_that_a_flip_maps_it_onto_itself() -> None:
    for crop in (None, (7, 8, 9)):
        window = window_of(0, volumes()[0], ViewSettings(crop_voxels=crop), 12)
        for start, size, whole in zip(window.start, window.inside.grid.shape, SHAPE, strict=True):
            assert start + size + start == whole
            assert size <= 12
        flip = ViewDraw(window.start, window.inside.grid.shape, flip=(True, True, False))
        assert torch.equal(view_change(window, "flip", flip).image, window.image().flip(1, 2)) or torch.allclose(
            view_change(window, "flip", flip).image, window.image().flip(1, 2), atol=1e-5
        )


def test_gamma_and_bias_explain_a_change_of_their_own_kind_and_not_a_blob_in_its_surroundings() -> None:
    generator = np.random.Generator(np.random.Philox(7))
    places = np.argwhere(np.ones((9, 9, 9), dtype=bool)).astype(np.float64)
    values = generator.uniform(0.2, 0.9, len(places))
    gamma, bias = 0.1 * values * np.log(values), values * (0.1 + 0.02 * places[:, 0])
    assert explained_share(gamma, values, places, ("gamma",)) == pytest.approx(1)
    assert explained_share(bias, values, places, ("bias",)) == pytest.approx(1)
    assert explained_share(gamma + bias, values, places, ("gamma", "bias")) == pytest.approx(1)
    assert explained_share(gamma, values, places, ()) == 0
    blob = -0.2 * (np.linalg.norm(places - 4, axis=1) <= 2)
    assert explained_share(blob, values, places, ("gamma", "bias")) < 0.2
    assert explained_share(np.zeros(len(places)), values, places, ("gamma",)) == 0


def test_stronger_gamma_moves_brightness_more_and_no_gamma_says_so_in_a_sentence() -> None:
    settings = dataclasses.replace(SMALL, scans=2)
    moved = {}
    for tone in (0.0, 0.5, 1.0):
        views = ViewSettings(tone=tone)
        effects = intensity_effects(windows_of(volumes(), views, settings), views, settings)
        gamma = effects.of("gamma")
        moved[tone] = 0.0 if gamma is None else float(gamma.of_range.mean or 0)
        said = " ".join(before_sentences(effects, None, settings))
        assert ("Gamma as drawn" in said) == (tone > 0)
        assert ("gamma and bias field are off" in said) == (tone == 0)
    assert moved[0.0] == 0 < moved[0.5] < moved[1.0]


def test_the_verdict_of_a_sentence_follows_from_its_numbers() -> None:
    views, settings = ViewSettings(geometric=0), dataclasses.replace(SMALL, scans=2)
    effects = intensity_effects(windows_of(volumes(), views, settings), views, settings)
    gamma, lesion = effects.of("gamma"), effects.of(settings.example().name)
    assert gamma is not None
    assert lesion is not None
    for strength, taught in ((0.9, True), (0.1, False)):
        level = strength * float(lesion.of_range.mean or 0)
        changed = dataclasses.replace(gamma, of_range=Interval(level, level, level, 2))
        given = dataclasses.replace(effects, views=(changed,))
        said = before_sentences(given, None, settings)[0]
        assert ("is asked to ignore changes as large as this lesion's" in said) == taught


def test_an_encoder_made_blind_to_brightness_is_named_as_having_learned_gamma_and_lost_lesions() -> None:
    """Layer 'deep' before: the intensity and noise of its own; after: the intensity a tenth as strong."""
    fixed = torch.rand((1, 1, *SHAPE), generator=torch.Generator().manual_seed(3))
    settings, views = dataclasses.replace(SMALL, scans=6), ViewSettings(geometric=0)
    tap = (Tap("deep", 1, (1, 1, 1)),)
    networks: dict[str, Network] = {
        "before": Fake(lambda x: x + fixed, tap),
        "after": Fake(lambda x: 0.1 * x + fixed, tap),
    }
    found = measure_visibility(windows_of(volumes(6), views, settings), networks, views, settings)
    trained = compare_training(found["before"], found["after"])
    assert {"gamma", "noise"} <= {one.change for one in taught_away(trained, "deep")}
    assert damage(trained, "deep").fell
    assert damage(trained, "deep").ratio.mean == pytest.approx(0.1, rel=0.1)
    said = " ".join(trained_sentences(found["before"], found["after"], trained, settings))
    assert "Learned as invariances at deep" in said
    assert "Lesions move deep less than before training, in all 6 scans" in said
    assert said.index("Whole views move deep") < said.index("Learned as invariances")
    same = compare_training(found["before"], found["before"])
    unchanged = " ".join(trained_sentences(found["before"], found["before"], same, settings))
    assert "Whole views move deep 1.00 [1.00, 1.00] times as far as before training" in unchanged
    assert "no invariance that 6 scans can show" in unchanged
    assert "no loss that 6 scans can show" in unchanged
    assert taught_away(same, "deep") == []
    assert not damage(same, "deep").fell


def test_a_claim_needs_six_scans_that_all_agree() -> None:
    def fell(before: Sequence[float], after: Sequence[float]) -> bool:
        first, second = (movement_of("gamma", values, 0) for values in (before, after))
        return _compared("deep", first, second, 0).fell

    assert fell([1.0] * 6, [0.5] * 6)
    assert not fell([1.0] * 5, [0.5] * 5)
    assert not fell([1.0] * 6, [0.1] * 5 + [1.01])  # the interval of the ratio lies below 1


def test_few_scans_are_said_to_be_too_few_for_a_claim() -> None:
    views, tap = ViewSettings(geometric=0), (Tap("deep", 1, (1, 1, 1)),)
    networks: dict[str, Network] = {"before": Fake(identity, tap), "after": Fake(identity, tap)}
    found = measure_visibility(windows_of(volumes(), views, SMALL), networks, views, SMALL)
    trained = compare_training(found["before"], found["after"])
    said = " ".join(trained_sentences(found["before"], found["after"], trained, SMALL))
    assert "3 scans are too few" in said
    assert "invariance" not in said


def test_a_number_of_scans_below_one_is_refused_by_its_flag_before_anything_is_prepared(
    own_study: TinyStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("core.study.preparing.prepare", lambda *given: pytest.fail("prepared"))
    words = [str(own_study.table), "--runs", str(own_study.runs), "--scans", "-3"]
    assert cli.main(["visibility-before", *words]) == 2
    assert "--scans is -3. Allowed: 1 and above" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [{"scans": 0}, {"contrasts": (1.5,)}, {"diameters_mm": (0.0,)}, {"contrasts": ()}, {"places": 0}]
)
def test_settings_that_measure_nothing_are_refused_with_what_is_allowed(wrong: dict) -> None:
    with pytest.raises(BadInput, match="Allowed"):
        windows_of(volumes(), ViewSettings(), dataclasses.replace(SMALL, **wrong))


def test_without_a_healthy_scan_nothing_is_measured() -> None:
    with pytest.raises(BadInput, match="No healthy scan"):
        windows_of([], ViewSettings(), SMALL)


def test_a_run_is_measured_once_kept_and_measured_again_when_settings_differ(own_study: TinyStudy) -> None:
    run = open_run(own_study.runs, "tiny-encoder")
    assert stored_visibility(run) is None
    settings = dataclasses.replace(SMALL, scans=2, diameters_mm=(16.0,))
    found = visibility_of_run(run, open_progress(), settings)
    assert set(found["subjects"]) <= set(run.record["split"]["train"])
    written = run.directory / "visibility" / "result.json"
    before = written.stat().st_mtime_ns
    assert visibility_of_run(run, open_progress(), settings) == found == stored_visibility(run)
    assert written.stat().st_mtime_ns == before
    other = visibility_of_run(run, open_progress(), dataclasses.replace(settings, seed=1))
    assert other["made_from"] != found["made_from"]
    assert visibility_dumbbells(other["trained"], other["untrained"]).data
    assert taught_away_lines(other["compared"], "stage4").data
    assert open_run(own_study.runs, "tiny-encoder").status == "finished"


def test_the_lesion_masks_of_the_cohort_are_never_opened(own_study: TinyStudy) -> None:
    for mask in own_study.table.parent.rglob("lesion.nii.gz"):
        mask.unlink()
    run = open_run(own_study.runs, "tiny-encoder")
    settings = dataclasses.replace(SMALL, scans=1, diameters_mm=(16.0,))
    assert visibility_of_run(run, open_progress(), settings)["subjects"]


def test_a_detector_run_is_refused(study: TinyStudy) -> None:
    with pytest.raises(BadInput, match="no finished encoder"):
        visibility_of_run(open_run(study.runs, "tiny-intensity"), open_progress(), SMALL)


def test_both_verbs_speak_json(own_study: TinyStudy, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.study import SCAN_FLAGS

    runs = ["--runs", str(own_study.runs)]
    assert cli.main(["visibility", "tiny-encoder", *runs, "--scans", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "One scan gives no interval" in found["sentences"][1]
    assert cli.main(["visibility", "tiny-encoder", *runs, "--scans", "1"]) == 0
    assert found["sentences"][0] in capsys.readouterr().out
    words = ["visibility-before", str(own_study.table), *runs, *SCAN_FLAGS, "--scans", "1", "--width", "4"]
    assert cli.main([*words, "--view-set", "toneless", "--json"]) == 0
    before = json.loads(capsys.readouterr().out)
    assert before["views"]["tone"] == 0
    assert brightness_bars(before["intensity"]).data
    assert cli.main([*words, "--view-set", "wild"]) == 2
    assert "geometric" in capsys.readouterr().err


def test_before_training_the_same_scans_and_seed_give_the_same_words() -> None:
    settings = dataclasses.replace(SMALL, scans=2, diameters_mm=(16.0,))
    words = [
        visibility_before(volumes(), ViewSettings(), EncoderSettings(width=4), settings)["sentences"] for _ in range(2)
    ]
    assert words[0] == words[1]
