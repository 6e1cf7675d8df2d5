"""What a partner must be told from: banks, momentum keys, hard negatives, shifted copies; in closed forms."""

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from core.pretraining.checkpoints import VOLATILE
from core.pretraining.contrastive import cosines, difficulty, histograms, in_batch, info_nce, nt_xent
from core.pretraining.minimise import read_events
from core.pretraining.simclr import VARIANTS, NegativesSettings, SimclrSettings, pretrain_encoder
from core.pretraining.simclr.ccd import Ccd, permuted, shift_permutations
from core.pretraining.simclr.key_queue import Bank, follow
from core.pretraining.simclr.variant import Batch, Setup, Variant
from core.pretraining.simclr.whole_brains import Moco, Queue, Slots, hardest
from core.pretraining.simclr_settings import Kind
from core.pretraining.view_settings import ViewSettings
from data.errors import BadInput
from models.encoder import make_encoder
from tests.core.pretraining.test_simclr import TINY, _volumes

KINDS: tuple[Kind, ...] = get_args(Kind)
SMALL = NegativesSettings(bank_size=16, hardest=3, layer="stage1", positions=6, apart_mm=6.0)
SHAPE = (16, 14, 12)


def of(kind: Kind, **changes: Any) -> SimclrSettings:
    return replace(TINY, negatives=replace(SMALL, kind=kind, **changes))


def setup(settings: SimclrSettings) -> Setup:
    return Setup(settings, make_encoder(settings.encoder), torch.device("cpu"), SHAPE, (2.0, 2.0, 2.0), 5)


def batch(step: int, subjects: tuple[int, ...] = (0, 1, 2)) -> Batch:
    volumes = _volumes()
    scans = [torch.tensor(volumes[subject].voxels) for subject in subjects]
    return Batch(step, subjects, scans, [torch.tensor(volumes[subject].brain_mask) for subject in subjects])


def variant(kind: Kind, **changes: Any) -> Variant:
    return VARIANTS[kind](setup(of(kind, **changes)))


def units(count: int, dim: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(count, dim, generator=generator), dim=1)


def test_the_table_has_every_kind_and_no_other() -> None:
    assert set(VARIANTS) == set(KINDS)


def test_a_queue_replaces_its_oldest_entries_first_and_wraps_around() -> None:
    bank, z = Bank(5, 8), units(7)
    bank.put(3 * z[:3], torch.tensor([0, 1, 2]), step=1)
    assert torch.equal(bank.entries(), functional.normalize(3 * z[:3], dim=1))
    assert bank.state(step=3) == {"queue_fill": 0.6, "queue_age": 2.0}
    bank.put(z[3:], torch.tensor([3, 4, 5, 6]), step=2)
    assert bank.subjects.tolist() == [5, 6, 2, 3, 4]
    torch.testing.assert_close(bank.entries(), z[[5, 6, 2, 3, 4]])
    assert bank.born.tolist() == [2, 2, 1, 2, 2]
    assert bank.state(step=2) == {"queue_fill": 1.0, "queue_age": pytest.approx(0.2)}


def test_a_filled_slot_is_mixed_and_an_empty_one_takes_the_embedding_itself() -> None:
    bank, z = Bank(3, 8), units(4)
    bank.blend(z[:2], torch.tensor([0, 1]), step=1, momentum=0.9)
    torch.testing.assert_close(bank.entries(), z[:2])
    bank.blend(z[2:], torch.tensor([2, 3]), step=11, momentum=0.9)
    torch.testing.assert_close(bank.keys[2], z[2])
    torch.testing.assert_close(bank.keys[0], functional.normalize(0.9 * z[0] + 0.1 * z[3], dim=0))
    torch.testing.assert_close(bank.keys[1], z[1])
    assert bank.born.tolist() == pytest.approx([0.9 * 1 + 0.1 * 11, 1, 11])
    assert int(bank.pointer) == 1


def test_a_momentum_network_follows_in_closed_form() -> None:
    fast, slow = nn.Linear(3, 2), nn.Linear(3, 2)
    first = copy.deepcopy(slow)
    for _ in range(4):
        follow(slow, fast, 0.9)
    share = 0.9**4
    torch.testing.assert_close(slow.weight, share * first.weight + (1 - share) * fast.weight)
    torch.testing.assert_close(slow.bias, share * first.bias + (1 - share) * fast.bias)


def test_the_key_networks_take_one_step_towards_the_trained_ones_before_each_loss() -> None:
    given = variant("moco", key_momentum=0.75)
    before = copy.deepcopy(given.modules["key_head"]).state_dict()
    with torch.no_grad():
        for parameter in given.modules["head"].parameters():
            parameter.add_(1.0)
    given.loss_of(batch(1))
    for name, value in given.modules["key_head"].state_dict().items():
        torch.testing.assert_close(value, before[name] + 0.25)


@pytest.mark.parametrize("kind", ["queue", "slots", "moco", "hard"])
def test_no_gradient_enters_a_bank_or_a_key_network(kind: Kind) -> None:
    given = variant(kind)
    for step in (1, 2):
        loss, _ = given.loss_of(batch(step))
        loss.backward()  # type: ignore[no-untyped-call]
    bank = given.modules["bank"]
    assert not list(bank.parameters())
    assert all(not value.requires_grad and value.grad_fn is None for value in bank.buffers())
    for name in ("key_encoder", "key_head"):
        for parameter in given.modules[name].parameters() if name in given.modules else ():
            assert parameter.grad is None
            assert not parameter.requires_grad
    assert all(parameter.grad is not None for parameter in given.modules["head"].parameters())


@pytest.mark.parametrize("kind", ["queue", "moco", "hard"])
def test_entries_of_the_anchors_own_subject_are_never_its_negatives(kind: Kind) -> None:
    z = units(6, 64)
    one, other = variant(kind, hardest=16), variant(kind, hardest=16)
    found = []
    for given, own in ((one, z), (other, -z)):  # what the bank holds of subject 0 does not matter to subject 0
        bank = given.modules["bank"]
        assert isinstance(bank, Bank)
        bank.put(own, torch.zeros(6, dtype=torch.int64), 1)
        bank.put(z[:4], torch.tensor([3, 3, 4, 4]), 1)
        found.append(_negatives(given, torch.tensor([0, 0, 1]), z[:3]))
    assert torch.equal(found[0][:2], found[1][:2])
    assert not torch.equal(found[0][2], found[1][2])
    assert (found[0] > -math.inf).sum(1).tolist() == [4, 4, 10]
    # Subject 0 has 4 others in the batch and 4 in the bank, subjects 1 and 2 have 4 and 10.
    assert one.loss_of(batch(2, (0, 1, 2)))[1]["candidates"] == 1 + (8 + 14 + 14) // 3


def _negatives(given: Variant, subjects: Tensor, z: Tensor) -> Tensor:
    if isinstance(given, Moco):
        return given.negatives(z, subjects).sort(1).values
    assert isinstance(given, Queue)
    return cosines(z, given.bank.entries()).masked_fill(~given.bank.of_others(subjects), -math.inf)


def test_a_bank_of_none_but_the_own_subjects_still_gives_a_loss() -> None:
    settings = replace(of("queue"), batch=2)
    given = Queue(setup(settings))
    given.bank.put(units(4, 64), torch.tensor([0, 0, 0, 0]), 1)
    queries = units(2, 64, seed=1)
    negative = cosines(queries, given.bank.entries()).masked_fill(
        ~given.bank.of_others(torch.tensor([0, 0])), -math.inf
    )
    assert float(info_nce(torch.ones(2), negative, 0.1)) == 0.0
    loss, logs = given.loss_of(batch(2, (0, 0)))
    assert math.isfinite(float(loss.detach()))
    assert logs["candidates"] == 3


def test_the_slot_loss_equals_a_loop_over_its_definition() -> None:
    given = variant("slots")
    assert isinstance(given, Slots)
    bank = units(5, 64, seed=3)
    given.bank.put(bank, torch.tensor([0, 1, 2, 3, 4]), 1)
    seen: list[Tensor] = []
    given.head.register_forward_hook(lambda _, __, out: seen.append(out.detach()))
    loss, logs = given.loss_of(batch(2))
    z = functional.normalize(seen[0].double(), dim=1)
    total = 0.0
    for i in range(6):
        own = math.exp(float(z[i] @ z[(i + 3) % 6]) / 0.1)
        others = sum(math.exp(float(z[i] @ z[k]) / 0.1) for k in range(6) if k not in (i, (i + 3) % 6))
        others += sum(math.exp(float(z[i] @ b) / 0.1) for b in bank.double())
        total -= math.log(own / (own + others))
    assert float(loss.detach()) == pytest.approx(total / 6, rel=1e-4)
    assert logs["candidates"] == 10


def test_the_momentum_loss_equals_a_loop_over_its_definition() -> None:
    given = variant("moco", key_momentum=0.5)
    assert isinstance(given, Moco)
    earlier = units(5, 64, seed=3)
    given.bank.put(earlier, torch.tensor([0, 1, 2, 3, 4]), 1)
    q, k = units(6, 64, seed=1), units(6, 64, seed=2)
    given.head.register_forward_hook(lambda *_: q)
    given.key_head.register_forward_hook(lambda *_: k)
    loss, logs = given.loss_of(batch(2))
    q, k = q.double(), k.double()
    total = 0.0
    for i in range(6):
        own = math.exp(float(q[i] @ k[(i + 3) % 6]) / 0.1)
        others = sum(math.exp(float(q[i] @ k[j]) / 0.1) for j in range(6) if j % 3 != i % 3)
        others += sum(math.exp(float(q[i] @ b) / 0.1) for s, b in enumerate(earlier.double()) if s != i % 3)
        total -= math.log(own / (own + others))
    assert float(loss.detach()) == pytest.approx(total / 6, rel=1e-4)
    assert logs["candidates"] == 9


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_embedding_has_the_loss_that_the_log_calls_chance(kind: Kind) -> None:
    given = variant(kind, positive_prior=0.1)
    with torch.no_grad():
        for name, module in given.modules.items():
            if name.endswith("head"):
                last = list(module.modules())[-1]
                assert isinstance(last, nn.Linear)
                last.weight.zero_()
                last.bias.fill_(0.5)
    for step, subjects in ((1, (0, 1, 2)), (2, (2, 3, 4)), (3, (1, 0, 4)), (4, (0, 1, 2))):
        loss, logs = given.loss_of(batch(step, subjects))
        assert float(loss.detach()) == pytest.approx(logs["chance"], abs=2e-5)
        assert loss.dtype == torch.float32


def test_chance_grows_with_the_bank_in_closed_form() -> None:
    queue, moco, hard = variant("queue"), variant("moco"), variant("hard")
    steps = [batch(1, (0, 1, 2)), batch(2, (3, 4, 0)), batch(3, (1, 2, 3))]
    logs = [[given.loss_of(step)[1] for step in steps] for given in (queue, moco, hard)]
    assert logs[0][0]["chance"] == pytest.approx(math.log(5))  # an empty queue: 2N − 1
    assert logs[0][1]["chance"] == pytest.approx((2 * math.log(11) + math.log(9)) / 3)  # six entries, two of them own
    assert logs[1][0]["chance"] == pytest.approx(math.log(5))  # the other keys of the step itself
    assert logs[1][1]["chance"] == pytest.approx((2 * math.log(11) + math.log(9)) / 3)
    assert [entry["chance"] for entry in logs[2]] == pytest.approx([math.log(4)] * 3)  # the hardest three
    assert [entry["queue_fill"] for entry in logs[0]] == [0, 6 / 16, 12 / 16]
    assert [entry["queue_age"] for entry in logs[0]] == [0, 1, 1.5]


def test_ccd_has_its_own_chance_level() -> None:
    _, logs = variant("ccd", shifts=3, class_weight=0.5).loss_of(batch(1))
    assert logs["chance"] == pytest.approx(math.log(2 * 3 * 3 - 1) + 0.5 * math.log(3))
    assert logs["candidates"] == 2 * 3 * 3 - 1


def test_hard_negatives_are_the_nearest_allowed_entries() -> None:
    queries, keys = units(6, seed=1), units(40, seed=2)
    generator = torch.Generator().manual_seed(3)
    allowed = torch.rand(6, 40, generator=generator) > 0.4
    allowed[5, 4:] = False
    allowed[5, :4] = torch.tensor([True, False, True, False])
    found = hardest(queries, keys, allowed, 7)
    for row in range(6):
        brute = sorted((float(queries[row] @ keys[k]) for k in range(40) if allowed[row, k]), reverse=True)[:7]
        assert found[row, : len(brute)].tolist() == pytest.approx(brute, abs=1e-6)
        assert (found[row, len(brute) :] == -math.inf).all()


def test_a_gradient_reaches_the_queries_of_hard_negatives_and_not_the_keys() -> None:
    queries, keys = units(3).requires_grad_(), units(9, seed=1).requires_grad_()
    keys_detached = keys.detach()
    hardest(queries, keys_detached, torch.ones(3, 9, dtype=torch.bool), 2).sum().backward()  # type: ignore[no-untyped-call]
    assert queries.grad is not None
    assert queries.grad.abs().sum() > 0
    assert keys.grad is None


def test_the_debiased_loss_equals_the_plain_one_at_prior_zero() -> None:
    positive, negative = torch.tensor([0.8, 0.1, 0.5]), cosines(units(3), units(6, seed=1))
    negative[0, 2:] = -math.inf
    plain = float(info_nce(positive, negative, 0.1))
    assert float(info_nce(positive, negative, 0.1, 1e-12)) == pytest.approx(plain, rel=1e-5)


def test_the_debiased_loss_equals_a_loop_over_its_definition() -> None:
    positive, negative = torch.tensor([0.8, -0.9, 0.3]), cosines(units(3), units(6, seed=1))
    temperature, prior, total = 0.2, 0.15, 0.0
    for p, row in zip(positive.tolist(), negative.tolist(), strict=True):
        mean = sum(math.exp(n / temperature) for n in row) / 6
        g = max((mean - prior * math.exp(p / temperature)) / (1 - prior), math.exp(-1 / temperature))
        total -= math.log(math.exp(p / temperature) / (math.exp(p / temperature) + 6 * g))
    assert float(info_nce(positive, negative, temperature, prior)) == pytest.approx(total / 3, rel=1e-5)
    assert total / 3 < float(info_nce(positive, negative, temperature))


def test_the_general_loss_of_a_batch_is_nt_xent() -> None:
    z1, z2 = units(4), units(4, seed=1)
    assert float(info_nce(*in_batch(z1, z2), 0.1)) == pytest.approx(float(nt_xent(z1, z2, 0.1)), rel=1e-6)


def test_difficulty_and_histograms_count_what_is_there() -> None:
    positive = torch.tensor([0.9, 0.2])
    negative = torch.tensor([[0.5, -1.0, -math.inf], [0.6, 0.2, 1.0]])
    found = difficulty(positive, negative)
    assert found["candidates"] == round((3 + 4) / 2)
    assert found["top1"] == 0.5
    assert found["hardness"] == pytest.approx(0.75)
    assert found["positive_similarity"] == pytest.approx(0.55)
    assert found["negative_similarity"] == pytest.approx((0.5 - 1 + 0.6 + 0.2 + 1) / 5)
    assert found["chance"] == pytest.approx((math.log(3) + math.log(4)) / 2)
    counts = histograms(10, positive, negative)
    assert sum(counts["positive_histogram"]) == 2
    assert sum(counts["negative_histogram"]) == 5
    assert counts["negative_histogram"][0] == counts["negative_histogram"][39] == 1
    assert histograms(1, positive, negative)
    assert histograms(11, positive, negative) == {}


def test_a_collapsed_embedding_finds_no_partner() -> None:
    assert difficulty(torch.ones(3), torch.ones(3, 4))["top1"] == 0.0


def test_shift_classes_are_different_permutations_and_the_first_is_none() -> None:
    found = shift_permutations(12, seed=0)
    assert found[0] == tuple(range(8))
    assert len(set(found)) == 12
    assert all(sorted(blocks) == list(range(8)) for blocks in found)
    assert found[:4] == shift_permutations(4, seed=0)
    assert found != shift_permutations(12, seed=1)


def test_a_shifted_copy_holds_the_same_voxels_at_other_places() -> None:
    scan = torch.arange(2 * 7 * 6 * 4.0).reshape(2, 7, 6, 4)
    assert permuted(scan, tuple(range(8))) is scan
    moved = permuted(scan, (7, 1, 2, 3, 4, 5, 6, 0))
    assert torch.equal(moved[:, :3, :3, :2], scan[:, 3:6, 3:6, 2:])
    assert torch.equal(moved[:, 3:6, 3:6, 2:], scan[:, :3, :3, :2])
    assert torch.equal(moved[:, 6], scan[:, 6])
    assert torch.equal(moved.flatten().sort().values, scan.flatten())


def test_the_class_head_is_asked_for_the_shift_of_every_view() -> None:
    given = variant("ccd", shifts=3)
    assert isinstance(given, Ccd)
    shown: list[Tensor] = []
    given.setup.encoder.register_forward_hook(lambda _, args, __: shown.append(args[0]))
    with torch.no_grad():
        given.class_head.weight.zero_()
        given.class_head.bias.copy_(torch.tensor([0.0, 50.0, 0.0]))
    _, logs = given.loss_of(batch(1))
    assert logs["class_accuracy"] == pytest.approx(1 / 3)
    assert logs["class_loss"] == pytest.approx(50 * 2 / 3, rel=1e-3)
    asked = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2]).repeat(2)
    given.class_head.register_forward_hook(lambda *_: 9.0 * functional.one_hot(asked, 3))
    assert given.loss_of(batch(1))[1]["class_accuracy"] == 1.0
    assert shown[0].shape == (18, 1, *SHAPE)
    for number, blocks in enumerate(given.permutations):  # first views are clean: the copies themselves
        for place, scan in enumerate(batch(1).scans):
            assert torch.equal(shown[0][3 * number + place], permuted(scan, blocks))


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_ends_with_the_bits_of_one_that_was_not(kind: Kind, tmp_path: Path) -> None:
    settings = replace(of(kind), views=ViewSettings(first_view_clean=False))
    whole = pretrain_encoder(_volumes(), settings, tmp_path / "whole")

    def stop(step: int, values: Mapping[str, float]) -> None:
        if step == 5:  # one step after the checkpoint of step 4
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain_encoder(_volumes(), settings, tmp_path / "broken", stop)
    resumed = pretrain_encoder(_volumes(), settings, tmp_path / "broken")
    assert (resumed / "encoder.safetensors").read_bytes() == (whole / "encoder.safetensors").read_bytes()
    last = "checkpoints/step-00000006/state.safetensors"
    assert (tmp_path / "broken" / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()
    lines = [
        [{k: v for k, v in e.items() if k not in VOLATILE} for e in read_events(tmp_path / name / "events.jsonl")]
        for name in ("whole", "broken")
    ]
    assert lines[0] == lines[1]
    expected = {"loss", "chance", "candidates", "hardness", "top1", "effective_rank", "embedding_std"}
    if kind in ("queue", "slots", "moco", "hard"):
        expected |= {"queue_fill", "queue_age"}
    if kind == "ccd":
        expected |= {"class_accuracy", "contrastive_loss", "class_loss"}
    assert all(expected <= event.keys() for event in lines[0])
    assert len(lines[0][0]["positive_histogram"]) == len(lines[0][0]["negative_histogram"]) == 40
    assert "positive_histogram" not in lines[0][1]
    assert isinstance(lines[0][5]["candidates"], int)


@pytest.mark.parametrize("kind", KINDS)
def test_every_variant_trains_in_bfloat16_with_a_float32_loss(kind: Kind, tmp_path: Path) -> None:
    settings = replace(of(kind), precision="bfloat16", steps=4, views=ViewSettings(first_view_clean=False))
    pretrain_encoder(_volumes(), settings, tmp_path / "half")
    pretrain_encoder(_volumes(), replace(settings, precision="float32"), tmp_path / "full")
    half, full = (read_events(tmp_path / name / "events.jsonl")[0] for name in ("half", "full"))
    assert half["loss"] == pytest.approx(full["loss"], rel=0.03)
    assert half["chance"] == full["chance"]
    assert half["hardness"] == pytest.approx(full["hardness"], abs=0.02)


def test_what_a_variant_does_not_read_changes_nothing_but_its_kind_does(tmp_path: Path) -> None:
    made = [
        pretrain_encoder(_volumes(), settings, tmp_path / str(number))
        for number, settings in enumerate([TINY, of("in-batch"), of("queue"), of("slots"), of("moco"), of("ccd")])
    ]
    found = [(path / "encoder.safetensors").read_bytes() for path in made]
    assert found[0] == found[1]
    assert len(set(found)) == 5


def test_a_run_begun_before_there_were_variants_goes_on(tmp_path: Path) -> None:
    pretrain_encoder(_volumes(), TINY, tmp_path)
    path = tmp_path / "training.json"
    described = json.loads(path.read_text())
    del described["settings"]["negatives"], described["settings"]["views"]["tone"]
    path.write_text(json.dumps(described))
    pretrain_encoder(_volumes(), TINY, tmp_path)
    with pytest.raises(BadInput, match="kind: 'in-batch' there, 'queue' now"):
        pretrain_encoder(_volumes(), of("queue"), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "memory"}, "Unknown negatives 'memory'"),
        ({"kind": "moco", "bank_size": 5}, "cannot hold the 6 views"),
        ({"kind": "slots", "slot_momentum": 1.0}, "slot_momentum is 1.0"),
        ({"kind": "hard", "hardest": 0}, "hardest is 0"),
        ({"kind": "ccd", "shifts": 1}, "shifts is 1"),
        ({"kind": "dense", "layer": "stage9"}, "It has: stage0"),
        ({"kind": "dense-shift", "blob_mm": (4.0, 2.0)}, "blob_mm is"),
    ],
)
def test_unusable_settings_are_refused_in_words(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        pretrain_encoder(_volumes(), replace(TINY, negatives=replace(SMALL, **changes)), tmp_path)
