"""Dense contrast: positives really are the same place, negatives really are others, and local shifts are local."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core.pretraining.simclr import NegativesSettings, SimclrSettings, pretrain_encoder
from core.pretraining.simclr.dense import Dense, brain_in_view, common_places, read_places, told_apart
from core.pretraining.simclr.local_changes import BlobDraw, draw_blobs, shifted
from core.pretraining.simclr.variant import Batch, Setup
from core.pretraining.view_settings import ViewSettings
from core.pretraining.views import ViewDraw, apply_view, draw_view, places_in_view, trilinear, view_coordinates
from data.errors import BadInput
from models.encoder import load_encoder, make_encoder
from models.settings import EncoderSettings
from models.taps import Tap
from tests.core.pretraining.test_simclr import TINY, _volumes

SHAPE = (24, 28, 22)
VOXEL = Tap("input", 1, (1, 1, 1))
MOVES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "flips": {"flip": (True, True, False)},
    "affine": {
        "scale": (1.2, 0.85, 1.1), "rotation_degrees": (12.0, -9.0, 14.0), "translation_voxels": (1.5, -0.7, 0.4)
    },
    "elastic": {"elastic_voxels": 1.0, "field_seed": 3},
    "all": {
        "flip": (True, False, False), "scale": (0.9, 1.2, 1.0), "rotation_degrees": (5.0, 10.0, -15.0),
        "translation_voxels": (-1.0, 0.5, 0.3), "elastic_voxels": 0.8, "field_seed": 5,
    },
}  # fmt: skip


def coordinate_volume(shape: tuple[int, int, int] = SHAPE) -> Tensor:
    """Three contrasts: every voxel holds its own indices."""
    return torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij"))


def ball() -> Tensor:
    """A brain that keeps off the border, where views repeat the edge."""
    centre = (torch.tensor(SHAPE) - 1)[:, None, None, None] / 2
    return (coordinate_volume() - centre).square().sum(0) < 8.5**2


def setup(settings: SimclrSettings, shape: tuple[int, int, int] = SHAPE) -> Setup:
    return Setup(settings, make_encoder(settings.encoder), torch.device("cpu"), shape, (2.0, 2.0, 2.0), 5)


def dense(kind: str = "dense", **changes: Any) -> SimclrSettings:
    small = NegativesSettings(kind=kind, layer="stage1", positions=6, apart_mm=6.0)  # type: ignore[arg-type]
    return replace(TINY, negatives=replace(small, **changes))


@pytest.mark.parametrize("crop", [((0, 0, 0), SHAPE), ((3, 4, 2), (18, 19, 17))])
@pytest.mark.parametrize("move", MOVES)
def test_a_place_found_in_a_view_holds_the_coordinates_it_was_looked_for(move: str, crop: Any) -> None:
    draw = ViewDraw(*crop, **MOVES[move])
    points = ball().nonzero()[::7].float() + 0.3
    places, held = places_in_view(draw, SHAPE, points)
    assert held.double().mean() > 0.3
    view = apply_view(coordinate_volume(), draw)
    read = trilinear(view[None], places[None])[0]
    assert float((read - points)[held].abs().max()) < 0.03
    assert (places >= 0).all()
    assert (places <= torch.tensor(crop[1]) - 1).all()


def test_a_place_that_left_the_view_is_not_held() -> None:
    draw = ViewDraw((4, 4, 4), (10, 10, 10), translation_voxels=(2.0, 0.0, 0.0))
    points = torch.tensor([[6.0, 4.0, 4.0], [5.9, 4.0, 4.0], [15.0, 13.0, 13.0], [15.1, 13.0, 13.0], [10.0, 14.0, 9.0]])
    places, held = places_in_view(draw, SHAPE, points)
    assert held.tolist() == [True, False, True, False, False]
    torch.testing.assert_close(places[2], torch.tensor([9.0, 9.0, 9.0]))


def test_view_coordinates_are_what_a_view_of_the_coordinates_shows() -> None:
    draw = ViewDraw((0, 0, 0), SHAPE, **MOVES["all"])
    there = view_coordinates(draw, SHAPE)
    clamped = torch.minimum(there.clamp_min(0), torch.tensor(SHAPE) - 1.0)
    torch.testing.assert_close(apply_view(coordinate_volume(), draw).movedim(0, -1), clamped, rtol=0, atol=1e-3)


@pytest.mark.parametrize("step", range(6))
def test_positives_of_two_strong_views_are_the_same_anatomical_position(step: int) -> None:
    settings = replace(dense(positions=40), views=ViewSettings(photometric=0.0, first_view_clean=False))
    one, two = (draw_view(settings.views, SHAPE, 0, step, 1, view) for view in (0, 1))
    found = common_places(ball(), (one, two), VOXEL, 40, setup(settings), step, 1)
    assert len(found.anatomy) == 40
    maps = torch.stack([apply_view(coordinate_volume(), draw) for draw in (one, two)])
    first, second = read_places(maps, list(found.in_view), VOXEL).chunk(2)
    assert float((first - second).abs().max()) < 0.06
    assert float((first - found.anatomy).abs().max()) < 0.03
    i, j, k = found.anatomy.long().T
    assert ball()[i, j, k].all()


def test_places_lie_in_the_brain_inside_the_crop_and_between_cells_of_the_layer() -> None:
    settings = replace(dense(), views=ViewSettings(crop_voxels=(16, 16, 15), first_view_clean=False))
    draws = tuple(draw_view(settings.views, SHAPE, 0, 2, 0, view) for view in (0, 1))
    found = common_places(ball(), (draws[0], draws[1]), Tap("deep", 8, (4, 4, 4)), 30, setup(settings), 2, 0)
    assert 0 < len(found.anatomy) <= 30
    assert len(np.unique(found.anatomy.numpy(), axis=0)) == len(found.anatomy)
    assert float(found.in_view.min()) >= 0
    assert float(found.in_view.max()) <= 12  # cells lie on voxels 0, 4, 8, 12


def test_places_depend_on_seed_step_and_subject_alone() -> None:
    draw = ViewDraw((0, 0, 0), SHAPE)
    given = setup(dense())
    base = common_places(ball(), (draw, draw), VOXEL, 9, given, 3, 1)
    torch.rand(5)
    assert torch.equal(common_places(ball(), (draw, draw), VOXEL, 9, given, 3, 1).anatomy, base.anatomy)
    other_seed = setup(replace(dense(), seed=1))
    for other in ((given, 4, 1), (given, 3, 2), (other_seed, 3, 1)):
        assert not torch.equal(common_places(ball(), (draw, draw), VOXEL, 9, *other).anatomy, base.anatomy)


def test_a_layer_is_read_at_the_exact_place_between_its_cells() -> None:
    maps = coordinate_volume()[:, ::4, ::4, ::4][None].repeat(2, 1, 1, 1, 1)
    places = [torch.tensor([[4.0, 8.0, 12.0], [5.5, 3.25, 0.0]]), torch.tensor([[19.0, 23.0, 1.0]])]
    read = read_places(maps, places, Tap("deep", 3, (4, 4, 4)))
    torch.testing.assert_close(read, torch.cat(places), rtol=0, atol=1e-4)


@pytest.mark.parametrize("everywhere", [True, False])
def test_negatives_are_far_positions_of_the_same_subject_and_positions_of_others(everywhere: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    anatomy = torch.randint(0, 12, (14, 3), generator=generator).float()
    owner = torch.tensor([0] * 5 + [1] * 9)
    found = told_apart(anatomy, owner, (2.0, 1.0, 3.0), 12.0, everywhere)
    for i in range(14):
        for j in range(14):
            far = math.dist(
                (anatomy[i] * torch.tensor([2, 1, 3])).tolist(), (anatomy[j] * torch.tensor([2, 1, 3])).tolist()
            )
            expected = i != j and (far >= 12.0 or (everywhere and owner[i] != owner[j]))
            assert bool(found[i, j]) == expected


def test_a_position_is_never_its_own_negative_even_without_a_distance() -> None:
    assert not told_apart(torch.zeros(3, 3), torch.zeros(3, dtype=torch.int64), (1.0, 1.0, 1.0), 0.0, True).diag().any()


def test_the_dense_loss_equals_a_loop_over_its_definition() -> None:
    settings = replace(dense(), views=ViewSettings(photometric=0.0))
    given = Dense(setup(settings, (16, 14, 12)))
    seen: list[Tensor] = []
    given.head.register_forward_hook(lambda _, __, out: seen.append(out.detach()))
    volumes = _volumes()[:3]
    scans, brains = [torch.tensor(v.voxels) for v in volumes], [torch.tensor(v.brain_mask) for v in volumes]
    loss, logs = given.loss_of(Batch(1, (0, 1, 2), scans, brains))
    z = torch.nn.functional.normalize(seen[0].double(), dim=1)
    anatomy, owner = [], []
    for subject in range(3):
        draws = [draw_view(settings.views, (16, 14, 12), 0, 1, subject, view) for view in (0, 1)]
        found = common_places(brains[subject], (draws[0], draws[1]), given.tap, 6, given.setup, 1, subject)
        anatomy += found.anatomy.tolist()
        owner += [subject] * len(found.anatomy)
    rows, total, negatives = len(anatomy), 0.0, 0
    for a in range(2 * rows):
        own = math.exp(float(z[a] @ z[(a + rows) % (2 * rows)]) / 0.1)
        others = 0.0
        for b in range(2 * rows):
            i, j = a % rows, b % rows
            if owner[i] != owner[j] or 2 * math.dist(anatomy[i], anatomy[j]) >= 6.0:
                others += math.exp(float(z[a] @ z[b]) / 0.1)
                negatives += 1
        total -= math.log(own / (own + others))
    assert float(loss.detach()) == pytest.approx(total / (2 * rows), rel=1e-4)
    assert logs["candidates"] == round(1 + negatives / (2 * rows))
    assert logs["positions"] == rows


def test_brains_that_leave_every_view_are_refused_in_words() -> None:
    given = Dense(setup(dense(), (16, 14, 12)))
    scans = [torch.rand(1, 16, 14, 12) for _ in range(3)]
    with pytest.raises(BadInput, match="0 positions lie in both views"):
        given.loss_of(Batch(1, (0, 1, 2), scans, [torch.zeros(16, 14, 12, dtype=torch.bool)] * 3))


def test_one_subject_without_places_does_not_stop_the_others() -> None:
    given = Dense(setup(dense("dense-shift"), (16, 14, 12)))
    volumes = _volumes()[:3]
    brains = [torch.tensor(v.brain_mask) for v in volumes]
    brains[1] = torch.zeros_like(brains[1])
    loss, logs = given.loss_of(Batch(1, (0, 1, 2), [torch.tensor(v.voxels) for v in volumes], brains))
    assert math.isfinite(float(loss.detach()))
    assert logs["positions"] <= 12


def test_a_blob_changes_its_centre_by_what_was_drawn_and_fades_as_a_gaussian() -> None:
    view = torch.full((1, 21, 21, 21), 0.5)
    view[0, 0, 0, 0], view[0, 0, 0, 1] = 0.0, 1.0
    draw = BlobDraw(np.array([[4.0, 2.0, 6.0]]), np.array([-0.3]))
    copy, changed = shifted(view, torch.tensor([[10.0, 9.0, 11.0]]), draw, (2.0, 1.0, 3.0), torch.ones(21, 21, 21) > 0)
    change = (copy - view)[0]
    assert float(change[10, 9, 11]) == pytest.approx(-0.3)
    assert float(change[12, 9, 11]) == pytest.approx(-0.3 * math.exp(-0.5))  # 4 mm are 2 voxels of 2 mm
    assert float(change[10, 11, 11]) == pytest.approx(-0.3 * math.exp(-0.5))
    assert float(change[10, 9, 13]) == pytest.approx(-0.3 * math.exp(-0.5))
    assert changed.tolist() == [True]


def test_blobs_stay_inside_the_brain_and_between_the_values_of_the_view() -> None:
    view = torch.rand(1, 16, 16, 16)
    within = torch.zeros(16, 16, 16, dtype=torch.bool)
    within[4:12] = True
    centres = torch.tensor([[6.0, 8.0, 8.0], [9.0, 4.0, 4.0]])
    copy, _ = shifted(view, centres, BlobDraw(np.full((2, 3), 9.0), np.array([0.8, -0.9])), (1.0, 1.0, 1.0), within)
    assert torch.equal(copy[:, :4], view[:, :4])
    assert torch.equal(copy[:, 12:], view[:, 12:])
    assert not torch.equal(copy, view)
    assert float(copy.min()) >= float(view.min())
    assert float(copy.max()) <= float(view.max())


def test_blobs_that_cancel_are_not_counted_as_a_change() -> None:
    view = torch.full((1, 9, 9, 9), 0.5)
    view[0, 0, 0, 0], view[0, 0, 0, 1] = 0.0, 1.0
    centres = torch.tensor([[4.0, 4.0, 4.0], [4.0, 4.0, 4.0]])
    draw = BlobDraw(np.full((2, 3), 2.0), np.array([0.3, -0.3]))
    copy, changed = shifted(view, centres, draw, (1.0, 1.0, 1.0), torch.ones(9, 9, 9) > 0)
    torch.testing.assert_close(copy, view)
    assert changed.tolist() == [False, False]


def test_a_blob_draw_depends_on_seed_step_and_subject_and_keeps_its_ranges() -> None:
    base = draw_blobs(500, (0.1, 0.4), (2.0, 8.0), 0, 3, 1)
    again = draw_blobs(500, (0.1, 0.4), (2.0, 8.0), 0, 3, 1)
    assert np.array_equal(base.change, again.change)
    assert np.array_equal(base.std_mm, again.std_mm)
    for other in ((1, 3, 1), (0, 4, 1), (0, 3, 2)):
        assert not np.array_equal(base.change, draw_blobs(500, (0.1, 0.4), (2.0, 8.0), *other).change)
    assert 0.1 <= np.abs(base.change).min() < 0.12
    assert 0.38 < np.abs(base.change).max() <= 0.4
    assert 0.4 < (base.change > 0).mean() < 0.6
    assert base.std_mm.min() >= 2.0
    assert base.std_mm.max() <= 8.0


def test_the_brain_of_a_view_is_where_its_voxels_were_read() -> None:
    draw = ViewDraw((2, 3, 1), (18, 20, 19), flip=(True, False, False), translation_voxels=(0.0, 2.0, 0.0))
    moved = apply_view(ball()[None].float(), draw)[0] > 0.5
    assert torch.equal(brain_in_view(ball(), draw), moved)


def test_a_local_shift_adds_one_negative_where_it_changed_the_position() -> None:
    volumes = _volumes()[:3]
    batch = Batch(
        1, (0, 1, 2), [torch.tensor(v.voxels) for v in volumes], [torch.tensor(v.brain_mask) for v in volumes]
    )
    plain, with_shift = (Dense(setup(dense(kind), (16, 14, 12))) for kind in ("dense", "dense-shift"))
    loss, logs = plain.loss_of(batch)
    more, shift_logs = with_shift.loss_of(batch)
    assert float(more.detach()) > float(loss.detach())
    assert 0 < shift_logs["shift_share"] <= 1
    assert logs["positive_similarity"] == pytest.approx(shift_logs["positive_similarity"], abs=1e-5)
    negatives, changed = sum(logs["negative_histogram"]), 2 * round(shift_logs["shift_share"] * logs["positions"])
    assert sum(shift_logs["negative_histogram"]) == negatives + changed


def test_the_shifted_copy_is_compared_at_the_same_position_of_the_second_view() -> None:
    volumes = _volumes()[:3]
    scans, brains = [torch.tensor(v.voxels) for v in volumes], [torch.tensor(v.brain_mask) for v in volumes]
    # Small blobs of next to nothing: the copy is the second view.
    settings = dense("dense-shift", blob_strength=(1e-4, 1e-4), blob_mm=(1.0, 1.5))
    _, logs = Dense(setup(settings, (16, 14, 12))).loss_of(Batch(1, (0, 1, 2), scans, brains))
    assert logs["shift_share"] > 0.9
    assert logs["positive_similarity"] < 0.95
    assert logs["shift_similarity"] == pytest.approx((logs["positive_similarity"] + 1) / 2, abs=0.02)


def test_training_with_local_shifts_makes_features_see_them(tmp_path: Path) -> None:
    found: dict[str, Mapping[str, float]] = {}

    def keep(step: int, values: Mapping[str, float]) -> None:
        found["first" if step == 1 else "last"] = values

    settings = replace(dense("dense-shift", blob_mm=(4.0, 8.0)), steps=60, lr=3e-3, checkpoint_every=60)
    settings = replace(settings, views=ViewSettings(geometric=0.5, photometric=0.0))
    pretrain_encoder(_volumes(), settings, tmp_path, keep)
    margins = [found[step]["positive_similarity"] - found[step]["shift_similarity"] for step in ("first", "last")]
    assert margins[1] > margins[0] + 0.05


def test_stages_behind_the_layer_keep_their_first_weights(tmp_path: Path) -> None:
    trained, _ = load_encoder(pretrain_encoder(_volumes(), dense(), tmp_path))
    fresh = make_encoder(TINY.encoder).state_dict()
    same = {name: torch.equal(value, fresh[name]) for name, value in trained.state_dict().items()}
    assert all(same[name] == (name.split(".")[1] not in ("stage0", "stage1")) for name in same)


def test_slicewise_encoders_and_crops_can_be_trained_densely(tmp_path: Path) -> None:
    settings = replace(
        dense(layer="layer1"), encoder=EncoderSettings(architecture="resnet10_2d", width=4), steps=2,
        views=ViewSettings(crop_voxels=(14, 13, 10)),
    )  # fmt: skip
    load_encoder(pretrain_encoder(_volumes(), settings, tmp_path))


def test_other_brain_masks_cannot_continue_a_dense_run(tmp_path: Path) -> None:
    pretrain_encoder(_volumes(), dense(), tmp_path)
    eroded = [replace(volume, brain_mask=volume.brain_mask & (volume.voxels[0] > 0.5)) for volume in _volumes()]
    with pytest.raises(BadInput, match="brains_sha256"):
        pretrain_encoder(eroded, dense(), tmp_path)
