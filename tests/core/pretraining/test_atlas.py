"""Positions found again in other brains: the same anatomy, told from far places and from local changes."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from core.pretraining.simclr import NegativesSettings, SimclrSettings
from core.pretraining.simclr.atlas import Anatomy, Atlas, position_loss
from core.pretraining.simclr.dense import read_places
from core.pretraining.simclr.variant import Batch, Setup, view_pair
from core.pretraining.view_settings import ViewSettings
from data.errors import BadInput
from models.encoder import make_encoder
from tests.core.pretraining.test_dense import SHAPE, VOXEL, ball, coordinate_volume
from tests.core.pretraining.test_simclr import TINY


def atlas(kind: str = "atlas", **changes: Any) -> SimclrSettings:
    small = NegativesSettings(kind=kind, layer="stage1", positions=8, apart_mm=6.0)  # type: ignore[arg-type]
    return replace(TINY, negatives=replace(small, **changes))


def setup(settings: SimclrSettings) -> Setup:
    return Setup(settings, make_encoder(settings.encoder), torch.device("cpu"), SHAPE, (2.0, 2.0, 2.0), 5)


def seen_by_all(points: Tensor, subjects: int = 2) -> Anatomy:
    held = torch.ones((2, subjects, len(points)), dtype=torch.bool)
    return Anatomy(points, points.expand(2, subjects, -1, -1), held)


def batch(step: int = 1, subjects: int = 3, scans: list[Tensor] | None = None) -> Batch:
    generator = torch.Generator().manual_seed(7)
    drawn = [torch.rand((1, *SHAPE), generator=generator) * ball() for _ in range(subjects)]
    return Batch(step, list(range(subjects)), scans or drawn, [ball()] * subjects)


@pytest.mark.parametrize("crop", [None, (16, 18, 16)])
@pytest.mark.parametrize("step", range(1, 5))
def test_positions_are_one_anatomy_in_both_views_of_every_subject(crop: tuple[int, int, int] | None, step: int) -> None:
    views = ViewSettings(photometric=0.0, crop_voxels=crop, first_view_clean=False)
    given = Atlas(setup(replace(atlas(), views=views)))
    given.tap = VOXEL
    work = batch(step, scans=[coordinate_volume()] * 3)
    draws, anatomy = given._together(work)
    assert len({draw.crop_start for side in draws for draw in side}) == 1
    assert len(anatomy.points) >= 2
    maps = view_pair(work.scans, draws)
    rows = read_places(maps, list(anatomy.in_view.flatten(0, 1)), VOXEL).unflatten(0, (6, -1))
    held = anatomy.held.flatten(0, 1)
    assert float((rows - anatomy.points[None])[held].abs().max()) < 0.05
    assert float(held.double().mean(0).min()) >= 0.5
    assert all(bool(ball()[tuple(point.long())]) for point in anatomy.points)


def test_positives_are_every_subject_at_the_place_and_negatives_are_far_from_it() -> None:
    given = Atlas(setup(atlas(apart_mm=5.0)))
    points = torch.tensor([[0.0, 0, 0], [2, 0, 0], [4, 0, 0]])  # 4 mm and 8 mm apart
    z = functional.normalize(torch.randn(2, 2, 3, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    positive, negative = given._compare(z, seen_by_all(points), None)
    for subject in range(2):
        for place in range(3):
            row = 3 * subject + place
            for other in range(2):
                assert float(positive[row, other]) == pytest.approx(
                    float(z[0, subject, place] @ z[1, other, place]), abs=1e-6
                )
                for q in range(3):
                    value = float(negative[row, 3 * other + q])
                    far = abs(place - q) == 2
                    expected = float(z[0, subject, place] @ z[1, other, q]) if far else -math.inf
                    assert value == pytest.approx(expected, abs=1e-6)


def test_a_changed_copy_is_a_negative_only_where_it_changed() -> None:
    given = Atlas(setup(atlas("atlas-shift", apart_mm=5.0)))
    points = torch.tensor([[0.0, 0, 0], [4, 0, 0]])
    z = functional.normalize(torch.randn(3, 2, 2, 5, generator=torch.Generator().manual_seed(1)), dim=-1)
    changed = torch.tensor([[True, False], [False, False]])  # the first subject, at the first place
    _, negative = given._compare(z, seen_by_all(points), changed)
    copies = negative[:, 4:]
    assert torch.isfinite(copies).tolist() == [[True, False], [False, False], [True, False], [False, False]]
    assert float(copies[2, 0]) == pytest.approx(float(z[0, 1, 0] @ z[2, 0, 0]), abs=1e-6)


def test_a_place_that_a_view_does_not_hold_is_no_anchor_no_positive_and_no_negative() -> None:
    given = Atlas(setup(atlas(apart_mm=5.0)))
    anatomy = seen_by_all(torch.tensor([[0.0, 0, 0], [4, 0, 0]]))
    anatomy.held[0, 0, 1] = False  # the first view of the first subject lacks the second place
    anatomy.held[1, 1, 0] = False  # the second view of the second subject lacks the first place
    z = functional.normalize(torch.randn(2, 2, 2, 5, generator=torch.Generator().manual_seed(4)), dim=-1)
    positive, negative = given._compare(z, anatomy, None)
    assert torch.isfinite(positive).tolist() == [[True, False], [False, False], [True, False], [True, True]]
    assert not bool(torch.isfinite(negative[:, 2]).any())
    assert torch.isfinite(negative[0]).tolist() == [False, True, False, True]
    pairs = [(0, 0), (2, 0), (3, 0), (3, 1)]
    terms = []
    for row, column in pairs:
        p = math.exp(float(positive[row, column]) / 0.2)
        n = sum(math.exp(float(v) / 0.2) for v in negative[row] if math.isfinite(float(v)))
        terms.append(-math.log(p / (p + n)))
    assert float(position_loss(positive, negative, 0.2)) == pytest.approx(sum(terms) / 4, rel=1e-5)


@pytest.mark.parametrize("kind", ["atlas", "atlas-shift"])
def test_strong_views_of_many_brains_leave_places_to_learn_from(kind: str) -> None:
    views = ViewSettings(first_view_clean=False, crop_voxels=(14, 16, 14))
    given = Atlas(setup(replace(atlas(kind), views=views)))
    for step in range(1, 9):
        loss, logs = given.loss_of(batch(step, subjects=8))
        assert math.isfinite(float(loss.detach()))
        assert logs["candidates"] > 1


def test_the_loss_is_its_definition_and_at_chance_the_mean_of_ln_1_plus_negatives() -> None:
    generator = torch.Generator().manual_seed(2)
    positive, negative = torch.rand(5, 3, generator=generator), torch.rand(5, 7, generator=generator)
    negative[0, 2:] = -math.inf
    negative[4] = -math.inf  # says nothing
    p, n = (
        np.exp(positive[:4].double().numpy() / 0.2),
        np.exp(negative[:4].double().numpy() / 0.2).sum(1, keepdims=True),
    )
    expected = float(-np.log(p / (p + n)).mean())
    assert float(position_loss(positive, negative, 0.2)) == pytest.approx(expected, rel=1e-5)
    same = torch.where(torch.isfinite(negative), 0.5, -math.inf)
    chance = (3 * math.log(8) + math.log(3)) / 4
    assert float(position_loss(torch.full((5, 3), 0.5), same, 0.1)) == pytest.approx(chance, rel=1e-6)


def test_a_constant_embedding_has_the_chance_that_is_logged() -> None:
    given = Atlas(setup(atlas("atlas-shift")))
    with torch.no_grad():
        for parameter in given.head.parameters():
            parameter.zero_()
        given.modules["head"].get_parameter("2.bias").fill_(1.0)
    loss, logs = given.loss_of(batch())
    assert float(loss.detach()) == pytest.approx(logs["chance"], rel=1e-5)
    assert logs["top1"] == 0.0
    assert logs["shift_share"] > 0


def test_blobs_reach_some_positions_and_leave_others() -> None:
    given = Atlas(setup(atlas("atlas-shift", positions=40, blob_mm=(2.0, 3.0))))
    work = batch()
    draws, anatomy = given._together(work)
    copies, changed = given._changed_copies(work, draws, view_pair(work.scans, draws), anatomy)
    assert 0 < float(changed.double().mean()) < 1
    views = view_pair(work.scans, draws)[3:]
    assert bool((copies != views).flatten(1).any(1).all())


def test_brains_without_a_common_place_are_refused_with_what_to_do() -> None:
    nowhere = torch.zeros(SHAPE, dtype=torch.bool)
    work = batch()
    alone = Batch(work.step, work.subjects, work.scans, [ball(), ball(), nowhere])
    with pytest.raises(BadInput, match="Register the scans"):
        Atlas(setup(atlas())).loss_of(alone)


def test_training_makes_a_place_alike_across_brains() -> None:
    settings = replace(atlas(apart_mm=8.0), views=ViewSettings(geometric=0.0, photometric=0.0), lr=3e-3)
    given = Atlas(setup(settings))
    place = coordinate_volume()[:1] / SHAPE[0]
    generator = torch.Generator().manual_seed(3)
    scans = [(place + 0.2 * torch.rand((1, *SHAPE), generator=generator)) * ball() for _ in range(3)]
    optimiser = torch.optim.Adam([p for module in given.modules.values() for p in module.parameters()], lr=3e-3)
    found = []
    for step in range(1, 41):
        loss, logs = given.loss_of(batch(step, scans=scans))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append((float(loss.detach()), logs["chance"], logs["top1"]))
    losses, chances, tops = np.array(found).T
    assert losses[-10:].mean() < 0.7 * chances[-10:].mean()
    assert tops[-10:].mean() > tops[:5].mean()
