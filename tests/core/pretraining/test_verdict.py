"""The verdict on a contrastive training: five states from synthetic journals, and advice that fits the negatives."""

import math
from collections.abc import Sequence
from typing import Any, get_args

import pytest

from core.pretraining.simclr_settings import Kind
from core.pretraining.training_advice import when_too_easy, when_too_hard
from core.pretraining.training_verdict import PATIENCE_STEPS, verdict

KINDS: tuple[str, ...] = get_args(Kind)
SETTINGS: dict[str, Any] = {
    "batch": 12,
    "temperature": 0.1,
    "views": {"geometric": 1.0, "photometric": 1.0, "first_view_clean": False},
}


def journal(steps: int = 300, total: int = 300, candidates: int = 23, **other: Any) -> list[dict[str, Any]]:
    """A run in the middle of learning, with `other` values; a callable value is asked at every step."""
    usual = {
        "loss": 0.5 * math.log(candidates), "chance": math.log(candidates), "candidates": candidates, "top1": 0.5,
        "embedding_std": 0.7, "effective_rank": 6.0,
    }  # fmt: skip
    given = usual | other
    return [
        {"step": step, "total": total, **{k: v(step) if callable(v) else v for k, v in given.items()}}
        for step in range(1, steps + 1)
    ]


def at_chance(candidates: int = 23, **other: Any) -> list[dict[str, Any]]:
    return journal(candidates=candidates, **{"loss": math.log(candidates), "top1": 1 / candidates, **other})


def with_kind(kind: str, **views: Any) -> dict[str, Any]:
    return SETTINGS | {"negatives": {"kind": kind}, "views": SETTINGS["views"] | views}


def test_chance_with_a_spread_embedding_is_too_hard_and_with_none_it_is_collapsed() -> None:
    assert verdict(at_chance()).state == "too hard"
    assert verdict(at_chance(embedding_std=0.05)).state == "collapsed"
    assert verdict(at_chance(effective_rank=1.2)).state == "collapsed"
    reason = verdict(at_chance()).reason
    assert f"loss {math.log(23):.3f} is at chance ({math.log(23):.3f})" in reason
    assert "std 0.70" in reason


@pytest.mark.parametrize(("share", "state"), [(0.951, "too hard"), (0.949, "learning")])
def test_five_percent_below_chance_is_the_border_of_too_hard(share: float, state: str) -> None:
    assert verdict(at_chance(loss=share * math.log(23))).state == state


@pytest.mark.parametrize(("candidates", "border"), [(23, 2 / 23), (1024, 0.02)])
def test_top1_is_near_chance_below_twice_guessing_or_one_in_fifty(candidates: int, border: float) -> None:
    assert verdict(at_chance(candidates, top1=0.99 * border)).state == "too hard"
    assert verdict(at_chance(candidates, top1=1.01 * border)).state == "learning"


def test_chance_is_no_finding_before_a_hundred_steps() -> None:
    early = verdict(at_chance()[: PATIENCE_STEPS - 1])
    assert early.state == "too early"
    assert "99 steps are done" in early.reason
    assert verdict(at_chance()[:PATIENCE_STEPS]).state == "too hard"


def test_the_chance_of_a_run_is_its_own_and_not_that_of_its_batch() -> None:
    found = verdict(at_chance(1024, loss=math.log(23)), with_kind("moco"))
    assert found.state == "learning"
    assert "among 1,024" in found.reason


def test_a_journal_without_candidates_is_judged_by_its_chance() -> None:
    old = journal()
    for event in old:
        del event["candidates"]
    assert verdict(old) == verdict(journal())


def test_top1_of_one_is_too_easy_only_once_the_bank_holds_half_of_its_candidates() -> None:
    filling = journal(candidates=1000, top1=lambda step: 1.0 if step < 80 else 0.6)
    for event in filling:
        event["candidates"] = min(1000, 10 * event["step"])
    assert verdict(filling).state == "too easy"
    slower = [event | {"candidates": min(1000, 5 * event["step"])} for event in filling]
    assert verdict(slower).state == "learning"


def test_a_loss_under_a_twentieth_of_chance_is_too_easy_however_late() -> None:
    late = journal(loss=lambda step: math.log(23) * (0.5 if step < 200 else 0.049))
    assert verdict(late).state == "too easy"
    assert "0.05 of chance" in verdict(late).reason


def test_a_class_head_that_knows_its_classes_does_not_hide_pairs_at_chance() -> None:
    classes = {"class_loss": 0.0, "class_accuracy": 1.0, "chance": math.log(95) + math.log(4)}
    run = at_chance(95, contrastive_loss=math.log(95), **classes)
    assert verdict(run).state == "too hard"
    assert verdict([event | {"contrastive_loss": 2.0} for event in run]).state == "learning"


def test_the_rank_alarm_of_a_small_batch_with_a_bank_follows_its_batch() -> None:
    few = journal(candidates=1024, effective_rank=1.6, positive_histogram=lambda step: [0] * 39 + [6])
    assert verdict(few).state == "learning"  # 3 pairs span at most 2 directions: the alarm is at 1
    many = journal(candidates=1024, effective_rank=1.6, positive_histogram=lambda step: [0] * 39 + [24])
    assert "rank is 1.6 (alarm below 2.0)" in verdict(many).reason
    fallen = [event | {"effective_rank": 6.0 if event["step"] < 100 else 1.6} for event in many]
    assert verdict(fallen).state == "collapsed"
    assert "rank is 1.6, fallen from 6.0" in verdict(fallen).reason


def test_an_embedding_that_spreads_slowly_is_not_spread_yet_and_not_collapsed() -> None:
    slow = journal(
        60, 60, 63, loss=3.907, top1=0.10, embedding_std=lambda step: 0.05 + 0.0003 * step, effective_rank=3.0
    )
    found = verdict(slow, with_kind("moco"))
    assert found.state == "too early"
    assert "Not spread yet" in found.reason
    assert "top-1 is 10 % (chance 2 %)" in found.reason
    assert "more steps" in found.advice
    assert "learning rate" not in found.advice


def test_a_std_that_fell_is_collapsed_at_once_and_a_wobble_is_no_fall() -> None:
    def std(low: float, high: float) -> Any:
        return lambda step: high if step < 40 else low

    fell = verdict(journal(60, 60, embedding_std=std(0.05, 0.6)))
    assert fell.state == "collapsed"
    assert "std is 0.050, fallen from 0.600" in fell.reason
    assert verdict(journal(60, 60, embedding_std=std(0.05, 0.06))).state == "too early"


@pytest.mark.parametrize(("steps", "top1", "state"), [(99, 0.04, "too early"), (100, 0.04, "collapsed"),
                                                      (100, 0.3, "too early")])  # fmt: skip
def test_a_narrow_embedding_that_never_fell_is_collapsed_after_patience_at_chance(
    steps: int, top1: float, state: str
) -> None:
    assert verdict(journal(steps, 300, loss=3.0, top1=top1, embedding_std=0.06)).state == state


def test_solved_pairs_are_too_easy_though_the_embedding_is_narrow() -> None:
    assert verdict(journal(top1=1.0, embedding_std=0.06)).state == "too easy"


def test_the_verdict_says_loss_and_top1_as_the_tiles_do() -> None:
    assert verdict(journal(loss=1.533)).reason.startswith("Loss 1.533 (chance 3.135), top-1 50 % among 23 (chance 4 %)")


@pytest.mark.parametrize(
    ("kind", "age", "stale"),
    [("queue", 21.0, True), ("queue", 7.0, False), ("slots", 21.0, True), ("moco", 21.0, False)],
)
def test_a_queue_older_than_an_epoch_is_stale_and_moco_is_the_way_out(kind: str, age: float, stale: bool) -> None:
    found = verdict(journal(queue_age=age, queue_fill=1.0), with_kind(kind), subjects=96)  # an epoch is 8 steps
    assert found.state == "learning"
    assert ("stale" in found.reason) is stale
    if stale:
        assert "21 steps old on average, an epoch is 8. Try moco" in found.reason


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_advice_of_its_own_and_never_itself(kind: str) -> None:
    settings = with_kind(kind)
    for advice in (when_too_easy(settings), when_too_hard(settings), verdict(at_chance(), settings).advice):
        assert "other negatives" not in advice
        assert "fewer negatives" not in advice
        assert f"take {kind}," not in advice
    assert verdict(at_chance(embedding_std=0.0), settings).state == "collapsed"
    assert "learning rate" in verdict(at_chance(embedding_std=0.0), settings).advice


@pytest.mark.parametrize(
    ("views", "said"),
    [
        ({"first_view_clean": True}, "change both views"),
        ({"geometric": 0.0}, "Geometric views are off"),
        ({"geometric": 0.0, "photometric": 0.0}, "same picture"),
    ],
)
def test_views_that_make_it_easy_are_named(views: dict[str, Any], said: str) -> None:
    assert said in when_too_easy(with_kind("in-batch", **views))
    assert said not in when_too_easy(with_kind("in-batch"))


def test_advice_on_a_hard_task_says_the_temperature_and_what_to_shrink() -> None:
    advice = when_too_hard(with_kind("moco"))
    assert "0.1 now" in advice
    assert "shrink the bank" in advice
    assert "leave the first view as it is" in advice
    assert "leave the first view" not in when_too_hard(with_kind("moco", first_view_clean=True))


@pytest.mark.parametrize("events", [[], journal(49), journal(), at_chance()])
def test_settings_change_the_advice_and_never_the_state(events: Sequence[dict[str, Any]]) -> None:
    assert {verdict(events, with_kind(kind)).state for kind in KINDS} == {verdict(events).state}
