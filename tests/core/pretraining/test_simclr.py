"""Contrastive pretraining: closed forms of the loss, honest views, runs that survive kill -9, verdicts in words."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from core.pretraining.checkpoints import VOLATILE, checkpoint_step
from core.pretraining.contrastive import chance_loss, diagnostics, nt_xent
from core.pretraining.minimise import read_events
from core.pretraining.simclr import NegativesSettings, SimclrSettings, batch_indices, pretrain_encoder
from core.pretraining.training_verdict import verdict
from core.pretraining.view_settings import ViewSettings
from core.pretraining.views import ViewDraw, apply_view, draw_view, view_coordinates
from data.errors import BadInput
from data.volume import Grid, Volume
from models.encoder import load_encoder, make_encoder
from models.settings import EncoderSettings

TINY = SimclrSettings(
    encoder=EncoderSettings(width=4, strides=(2, 2, 1, 1, 1)), batch=3, steps=6, checkpoint_every=2, lr=1e-2
)
SHAPE = (16, 14, 12)


def test_collinear_embeddings_have_the_chance_loss() -> None:
    z = torch.ones(5, 8)
    assert float(nt_xent(z, 3 * z, 0.1)) == pytest.approx(math.log(9), abs=1e-6)
    assert chance_loss(12) == pytest.approx(math.log(23))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_orthogonal_perfect_pairs_have_the_closed_form_loss(temperature: float) -> None:
    n = 6
    z = torch.eye(n)
    best = math.exp(1 / temperature)
    expected = -math.log(best / (best + 2 * n - 2))
    assert float(nt_xent(z, z, temperature)) == pytest.approx(expected, abs=1e-6)


def test_the_loss_equals_a_loop_over_its_definition() -> None:
    z1, z2 = torch.randn(4, 5), torch.randn(4, 5)
    z = functional.normalize(torch.cat([z1, z2]).double(), dim=1)
    total = 0.0
    for i in range(8):
        others = [math.exp(float(z[i] @ z[k]) / 0.2) for k in range(8) if k != i]
        total -= math.log(math.exp(float(z[i] @ z[(i + 4) % 8]) / 0.2) / sum(others))
    assert float(nt_xent(z1, z2, 0.2)) == pytest.approx(total / 8, rel=1e-5)


def test_diagnostics_of_perfect_orthogonal_pairs() -> None:
    found = diagnostics(torch.eye(6), torch.eye(6))
    assert found["top1"] == 1.0
    assert found["alignment"] == pytest.approx(0.0, abs=1e-6)
    assert found["uniformity"] == pytest.approx(-4.0, abs=1e-6)
    assert found["effective_rank"] == pytest.approx(5.0, abs=1e-6)
    assert found["embedding_std"] == pytest.approx(math.sqrt(5 / 6), abs=1e-6)
    assert found["positive_similarity"] == pytest.approx(1.0)
    assert found["negative_similarity"] == pytest.approx(0.0)


def test_diagnostics_of_a_constant_embedding() -> None:
    found = diagnostics(torch.ones(6, 4), torch.ones(6, 4))
    assert found["embedding_std"] == pytest.approx(0.0, abs=1e-6)
    assert found["effective_rank"] == pytest.approx(1.0)
    assert found["uniformity"] == pytest.approx(0.0, abs=1e-6)


def test_unusable_batches_are_refused() -> None:
    with pytest.raises(BadInput):
        nt_xent(torch.ones(1, 4), torch.ones(1, 4))
    with pytest.raises(BadInput):
        nt_xent(torch.ones(3, 4), torch.ones(3, 4), temperature=0.0)


def test_both_strengths_at_zero_give_the_volume_itself() -> None:
    volume = torch.rand(2, *SHAPE)
    settings = ViewSettings(geometric=0.0, photometric=0.0, first_view_clean=False)
    for step in range(30):
        assert torch.equal(apply_view(volume, draw_view(settings, SHAPE, 0, step, 0, 1)), volume)


def test_the_clean_view_is_untouched_and_the_other_is_not() -> None:
    volume = torch.rand(1, *SHAPE)
    changed = 0
    for step in range(20):
        assert torch.equal(apply_view(volume, draw_view(ViewSettings(), SHAPE, 0, step, 4, 0)), volume)
        changed += not torch.equal(apply_view(volume, draw_view(ViewSettings(), SHAPE, 0, step, 4, 1)), volume)
    assert changed >= 19


def test_without_a_clean_view_both_sides_differ() -> None:
    settings = ViewSettings(first_view_clean=False)
    one, other = (draw_view(settings, SHAPE, 0, 1, 0, view) for view in (0, 1))
    assert one != other
    assert one.field_seed != other.field_seed


def test_a_draw_depends_on_seed_step_sample_and_view_only() -> None:
    settings = ViewSettings(first_view_clean=False)
    base = draw_view(settings, SHAPE, 0, 3, 5, 1)
    for step in range(5):
        draw_view(settings, SHAPE, 0, step, 1, 0)
    torch.rand(7)
    assert draw_view(settings, SHAPE, 0, 3, 5, 1) == base
    for other in ((1, 3, 5, 1), (0, 4, 5, 1), (0, 3, 6, 1), (0, 3, 5, 0)):
        assert draw_view(settings, SHAPE, *other) != base


def test_a_view_is_a_function_of_its_draw() -> None:
    volume = torch.rand(1, *SHAPE)
    draw = ViewDraw(
        (0, 0, 0), SHAPE, scale=(1.1, 0.9, 1.0), elastic_voxels=1.0, ghost=0.2, gamma=1.3, noise_std=0.03, bias=0.4,
        blur_voxels=0.7, swaps=3, field_seed=11,
    )  # fmt: skip
    assert torch.equal(apply_view(volume, draw), apply_view(volume.clone(), draw))


def test_a_view_keeps_its_bits_under_autocast() -> None:
    volume = torch.rand(1, *SHAPE)
    draw = ViewDraw(
        (0, 0, 0), SHAPE, scale=(1.1, 0.9, 1.0), rotation_degrees=(3.0, 4.0, 5.0), elastic_voxels=1.0, ghost=0.2,
        gamma=1.3, noise_std=0.03, bias=0.4, blur_voxels=0.7, swaps=3, field_seed=11,
    )  # fmt: skip
    plain = apply_view(volume, draw), view_coordinates(draw, SHAPE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(apply_view(volume, draw), plain[0])
        assert torch.equal(view_coordinates(draw, SHAPE), plain[1])


def test_one_strength_leaves_the_draws_of_the_other_family_alone() -> None:
    for step in range(10):
        full = draw_view(ViewSettings(), SHAPE, 0, step, 0, 1)
        intensity_only = draw_view(ViewSettings(geometric=0.0), SHAPE, 0, step, 0, 1)
        geometry_only = draw_view(ViewSettings(photometric=0.0), SHAPE, 0, step, 0, 1)
        assert (intensity_only.gamma, intensity_only.noise_std) == (full.gamma, full.noise_std)
        assert intensity_only.scale == (1, 1, 1)
        assert geometry_only.scale == full.scale
        assert (geometry_only.gamma, geometry_only.noise_std, geometry_only.swaps) == (1, 0, 0)


def test_flips_and_whole_voxel_shifts_are_exact() -> None:
    volume = torch.rand(1, *SHAPE)
    flipped = apply_view(volume, ViewDraw((0, 0, 0), SHAPE, flip=(True, False, False)))
    torch.testing.assert_close(flipped, volume.flip(1), rtol=1e-4, atol=1e-5)
    shifted = apply_view(volume, ViewDraw((0, 0, 0), SHAPE, translation_voxels=(0.0, 2.0, 0.0)))
    torch.testing.assert_close(shifted[:, :, :-2], volume[:, :, 2:], rtol=1e-4, atol=1e-5)


def test_a_right_angle_turns_the_axes() -> None:
    volume = torch.rand(1, 9, 9, 5)
    turned = apply_view(volume, ViewDraw((0, 0, 0), (9, 9, 5), rotation_degrees=(0.0, 0.0, 90.0)))
    torch.testing.assert_close(turned, volume.rot90(-1, (1, 2)), rtol=1e-4, atol=1e-4)


def test_scaling_reads_further_from_the_centre() -> None:
    ramp = torch.arange(-4.0, 5.0)[:, None, None].expand(9, 9, 9)[None].contiguous()
    wider = apply_view(ramp, ViewDraw((0, 0, 0), (9, 9, 9), scale=(0.5, 1.0, 1.0)))
    torch.testing.assert_close(wider, 0.5 * ramp, rtol=1e-4, atol=1e-4)


def test_a_crop_of_the_augmented_volume_is_the_augmented_crop() -> None:
    volume = torch.rand(1, *SHAPE)
    move = {"rotation_degrees": (5.0, 0.0, 9.0), "translation_voxels": (1.0, 0.5, 0.0)}
    whole = apply_view(volume, ViewDraw((0, 0, 0), SHAPE, **move))  # type: ignore[arg-type]
    cropped = apply_view(volume, ViewDraw((2, 3, 4), (8, 8, 6), **move))  # type: ignore[arg-type]
    torch.testing.assert_close(cropped, whole[:, 2:10, 3:11, 4:10])


def test_both_views_of_a_pair_are_cropped_at_one_place_inside_the_volume() -> None:
    settings = ViewSettings(crop_voxels=(8, 8, 8))
    starts = set()
    for step in range(40):
        first, second = (draw_view(settings, SHAPE, 0, step, 0, view) for view in (0, 1))
        assert first.crop_start == second.crop_start
        assert all(0 <= s <= n - 8 for s, n in zip(first.crop_start, SHAPE, strict=True))
        assert apply_view(torch.rand(1, *SHAPE), second).shape == (1, 8, 8, 8)
        starts.add(first.crop_start)
    assert len(starts) > 20


def test_intensity_changes_are_what_their_numbers_say() -> None:
    volume = torch.rand(1, 20, 20, 20)
    whole = ((0, 0, 0), (20, 20, 20))
    noisy = apply_view(volume, ViewDraw(*whole, noise_std=0.04, field_seed=3))
    assert float((noisy - volume).std()) == pytest.approx(0.04, rel=0.05)
    darker = apply_view(volume, ViewDraw(*whole, gamma=1.5))
    low, high = volume.min(), volume.max()
    torch.testing.assert_close(darker, low + (high - low) * ((volume - low) / (high - low)) ** 1.5)
    blurred = apply_view(volume, ViewDraw(*whole, blur_voxels=1.0))
    assert float(blurred.mean()) == pytest.approx(float(volume.mean()), abs=5e-3)
    assert float(blurred.std()) < 0.4 * float(volume.std())
    swapped = apply_view(volume, ViewDraw(*whole, swaps=1, field_seed=3))
    assert torch.equal(swapped.flatten().sort().values, volume.flatten().sort().values)
    assert not torch.equal(swapped, volume)
    ghosted = apply_view(volume, ViewDraw(*whole, ghost=0.3, ghost_axis=1, ghost_copies=2))
    torch.testing.assert_close(ghosted.mean(dim=2), volume.mean(dim=2), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ghosted, volume, atol=1e-2)
    biased = apply_view(volume, ViewDraw(*whole, bias=0.5, field_seed=3))
    ratio = (biased - low) / (volume - low).clamp_min(1e-3)
    assert 0.05 < float(ratio[volume > 0.1].log().std()) < 2


def test_a_crop_larger_than_the_volume_is_refused() -> None:
    with pytest.raises(BadInput, match="does not fit"):
        draw_view(ViewSettings(crop_voxels=(20, 8, 8)), SHAPE, 0, 0, 0, 0)


def test_every_epoch_takes_distinct_subjects_in_a_new_order() -> None:
    first = [batch_indices(0, step, 9, 4) for step in (1, 2)]
    assert len({index for batch in first for index in batch}) == 8
    later = [batch_indices(0, step, 9, 4) for step in (3, 4)]
    assert len({index for batch in later for index in batch}) == 8
    assert first != later


def test_training_writes_an_encoder_without_its_head_and_logs_what_happened(tmp_path: Path) -> None:
    path = pretrain_encoder(_volumes(), TINY, tmp_path)
    trained, settings = load_encoder(path)
    assert settings == TINY.encoder
    assert set(trained.state_dict()) == set(make_encoder(TINY.encoder).state_dict())
    fresh = make_encoder(TINY.encoder).state_dict()
    assert not torch.equal(trained.state_dict()["stages.stage0.0.weight"], fresh["stages.stage0.0.weight"])
    events = read_events(tmp_path / "events.jsonl")
    assert [event["step"] for event in events] == [1, 2, 3, 4, 5, 6]
    expected = {
        "loss", "chance", "top1", "alignment", "uniformity", "embedding_std", "effective_rank", "lr", "examples_per_s",
        "seconds", "device", "total",
    }  # fmt: skip
    assert expected <= events[0].keys()
    assert events[0]["sample_view"]["crop_shape"] == list(SHAPE)


def test_the_order_of_the_volumes_does_not_matter_and_the_seed_does(tmp_path: Path) -> None:
    one = pretrain_encoder(_volumes(), TINY, tmp_path / "a")
    other = pretrain_encoder(_volumes()[::-1], TINY, tmp_path / "b")
    third = pretrain_encoder(_volumes(), replace(TINY, seed=1), tmp_path / "c")
    assert _bytes(one) == _bytes(other)
    assert _bytes(one) != _bytes(third)


def test_volumes_read_when_needed_train_the_same_encoder_as_volumes_in_memory(tmp_path: Path) -> None:
    kept = pretrain_encoder(_volumes(), TINY, tmp_path / "kept")
    lazy = pretrain_encoder(_volumes(), replace(TINY, memory_gb=0.0), tmp_path / "lazy")
    assert _bytes(kept) == _bytes(lazy)


@pytest.mark.parametrize("kind", ["in-batch", "hard", "dense", "atlas-shift"])
@pytest.mark.parametrize("memory", [(4.0, 0.0), (0.0, 4.0)], ids=["less", "more"])
def test_a_stopped_training_goes_on_with_other_memory_and_ends_with_the_same_bits(
    kind: Any, memory: tuple[float, float], tmp_path: Path
) -> None:
    negatives = NegativesSettings(kind=kind, bank_size=8, hardest=4, positions=8, layer="stage1", apart_mm=2.0)
    settings = replace(TINY, negatives=negatives)
    whole = pretrain_encoder(_volumes(), settings, tmp_path / "whole")

    def stop(step: int, values: Any) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain_encoder(_volumes(), replace(settings, memory_gb=memory[0]), tmp_path / "stopped", stop)
    resumed = replace(settings, memory_gb=memory[1], log_every=2, checkpoint_every=5)
    path = pretrain_encoder(_volumes()[::-1], resumed, tmp_path / "stopped")
    assert checkpoint_step(tmp_path / "stopped") == 6
    assert _bytes(path) == _bytes(whole)


def test_other_volumes_cannot_continue_a_run_that_reads_them_when_needed(tmp_path: Path) -> None:
    settings = replace(TINY, memory_gb=0.0)
    pretrain_encoder(_volumes(), settings, tmp_path)
    with pytest.raises(BadInput, match="voxels_sha256"):
        pretrain_encoder(_volumes(seed=1), settings, tmp_path)


def test_slicewise_encoders_can_be_pretrained(tmp_path: Path) -> None:
    settings = replace(TINY, encoder=EncoderSettings(architecture="resnet10_2d", width=4), steps=2)
    load_encoder(pretrain_encoder(_volumes(), settings, tmp_path))


def test_other_volumes_cannot_continue_a_run(tmp_path: Path) -> None:
    pretrain_encoder(_volumes(), TINY, tmp_path)
    with pytest.raises(BadInput, match="voxels_sha256"):
        pretrain_encoder(_volumes(seed=1), TINY, tmp_path)


def test_unusable_cohorts_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="batch of 9 distinct subjects cannot be drawn from 5"):
        pretrain_encoder(_volumes(), replace(TINY, batch=9), tmp_path)
    with pytest.raises(BadInput, match="contrasts of the encoder"):
        pretrain_encoder(_volumes(), replace(TINY, encoder=replace(TINY.encoder, in_channels=2)), tmp_path)


def test_training_on_distinct_brains_beats_chance(tmp_path: Path) -> None:
    settings = replace(TINY, steps=60, batch=4, checkpoint_every=60, views=ViewSettings(geometric=0.0, photometric=0.5))
    pretrain_encoder(_volumes(), settings, tmp_path)
    events = read_events(tmp_path / "events.jsonl")
    assert np.mean([event["loss"] for event in events[-5:]]) < 0.6 * events[-1]["chance"]
    assert verdict(events).state in ("learning", "too easy")


RUN = """
import sys
from pathlib import Path
from tests.core.pretraining.test_simclr import TINY, _volumes
from core.pretraining.simclr import pretrain_encoder
pretrain_encoder(_volumes(), TINY, Path(sys.argv[1]))
"""


def test_a_run_killed_with_sigkill_and_resumed_has_the_bytes_of_one_that_was_not(tmp_path: Path) -> None:
    lines = 3  # one step after a checkpoint, one before the next
    whole = pretrain_encoder(_volumes(), TINY, tmp_path / "whole")
    killed = tmp_path / "killed"
    slow = "import time, core.pretraining.simclr as s\nd = s.batch_indices\n"
    slow += "s.batch_indices = lambda *given: (time.sleep(0.15), d(*given))[1]\n"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    environment |= {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-c", slow + RUN, str(killed)], env=environment)
    deadline = time.monotonic() + 60
    while len(read_events(killed / "events.jsonl")) < lines and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    resumed = pretrain_encoder(_volumes(), TINY, killed)
    assert _bytes(resumed) == _bytes(whole)
    assert _lasting(killed) == _lasting(tmp_path / "whole")


def test_a_constant_encoder_is_called_collapsed() -> None:
    z = torch.ones(12, 8)
    found = verdict([_event(step, z, z) for step in range(1, 61)])
    assert found.state == "collapsed"
    assert "embedding std is 0.000" in found.reason
    assert "at chance (3.135)" in found.reason


def test_the_verdict_names_the_rank_of_an_embedding_of_one_direction() -> None:
    z = torch.linspace(-1, 1, 12)[:, None] * torch.eye(8)[:1] + 0.01 * torch.randn(12, 8)
    assert "effective rank" in verdict([_event(step, z, z) for step in range(1, 61)]).reason


def test_pairs_that_are_solved_at_once_are_called_too_easy() -> None:
    z = torch.eye(12)
    found = verdict([_event(step, z, z, total=300) for step in range(1, 61)])
    assert found.state == "too easy"
    assert "of 300" in found.reason


def test_a_loss_between_chance_and_nothing_is_called_learning() -> None:
    events = [_event(step, torch.eye(12), torch.eye(12)) for step in range(1, 61)]
    for event in events:
        event |= {"loss": 1.5, "top1": 0.6}
    assert verdict(events).state == "learning"


def test_nothing_is_judged_before_fifty_steps() -> None:
    z = torch.ones(12, 8)
    assert verdict([]).state == "too early"
    assert verdict([_event(step, z, z) for step in range(1, 50)]).state == "too early"


def _event(step: int, z1: torch.Tensor, z2: torch.Tensor, total: int = 60) -> dict[str, Any]:
    loss = float(nt_xent(z1, z2, 0.1))
    return {"step": step, "total": total, "loss": loss, "chance": chance_loss(len(z1)), **diagnostics(z1, z2)}


def _volumes(seed: int = 0) -> list[Volume]:
    generator = np.random.default_rng(seed)
    grid = Grid(SHAPE, np.diag([2.0, 2.0, 2.0, 1.0]))
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    volumes = []
    for number in range(5):
        size = 0.5 + 0.1 * number
        head = (x**2 + y**2 + z**2 < size) * (0.3 + 0.5 * generator.random(SHAPE))
        volumes.append(Volume(head[None].astype(np.float32), grid, head > 0, f"sub-{number}", ("T1",)))
    return volumes


def _bytes(encoder: Path) -> bytes:
    return (encoder / "encoder.safetensors").read_bytes()


def _lasting(directory: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in e.items() if k not in VOLATILE} for e in read_events(directory / "events.jsonl")]
