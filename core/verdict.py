"""What a contrastive training run is doing, in words, from its logged steps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

MINIMUM_STEPS = 50
"""Before this step nothing is judged: an untrained encoder embeds all brains nearly alike."""


@dataclass(frozen=True)
class Verdict:
    """The state of a run, the numbers that say so, and what to do."""

    state: Literal["too early", "collapsed", "too easy", "learning"]
    reason: str
    advice: str


def verdict(events: Sequence[Mapping[str, Any]]) -> Verdict:
    """Judge a run by the mean of its last tenth (at least five logged steps).

    too early   fewer than 50 steps.
    collapsed   embedding std < 0.1, or effective rank < 2 (half of N − 1 when the batch is below 5), or loss within
                5 % of chance ln(2N − 1) while top-1 is below twice its own chance 1/(2N − 1).
    too easy    top-1 above 0.98 already within the first third of the run, or loss below 0.05 of chance: the pairs
                can be told apart by a shortcut, and the features learn nothing more.
    learning    otherwise.
    """
    steps = [event for event in events if "loss" in event and "step" in event]
    if not steps or steps[-1]["step"] < MINIMUM_STEPS:
        reached = steps[-1]["step"] if steps else 0
        return Verdict(
            "too early", f"{reached} of the first {MINIMUM_STEPS} steps are done.", "Wait; the first steps say little."
        )
    tail = steps[-max(5, len(steps) // 10) :]
    last = {key: _mean(tail, key) for key in ("loss", "chance", "top1", "embedding_std", "effective_rank")}
    return _collapsed(last) or _too_easy(steps, last) or _learning(last)


def _collapsed(last: Mapping[str, float]) -> Verdict | None:
    candidates = math.exp(last["chance"])
    rank_floor = min(2.0, ((candidates + 1) / 2 - 1) / 2)
    reasons = []
    if last["embedding_std"] < 0.1:
        reasons.append(f"the embedding std is {last['embedding_std']:.3f} (spread 1, alarm below 0.1)")
    if last["effective_rank"] < rank_floor:
        reasons.append(f"the effective rank is {last['effective_rank']:.1f} (alarm below {rank_floor:.1f})")
    if last["loss"] > 0.95 * last["chance"] and last["top1"] < 2 / candidates:
        reasons.append(
            f"the loss {last['loss']:.3f} is at chance ({last['chance']:.3f}) and top-1 is {last['top1']:.2f} "
            f"(chance {1 / candidates:.2f})"
        )
    if not reasons:
        return None
    return Verdict(
        "collapsed",
        "All brains embed alike: " + "; ".join(reasons) + ".",
        "Lower the learning rate, raise the temperature or the batch, or weaken the views; then train anew.",
    )


def _too_easy(steps: Sequence[Mapping[str, Any]], last: Mapping[str, float]) -> Verdict | None:
    total = max(int(steps[-1].get("total", 0)), int(steps[-1]["step"]))
    early = [event for event in steps if event["step"] <= total / 3]
    window = max(5, len(steps) // 20)
    sums = np.concatenate([[0.0], np.cumsum([event["top1"] for event in early], dtype=np.float64)])
    means = (sums[window:] - sums[:-window]) / window  # empty when there are fewer steps than that
    solved = early[int(np.argmax(means > 0.98)) + window - 1]["step"] if (means > 0.98).any() else None
    if solved is None and last["loss"] >= 0.05 * last["chance"]:
        return None
    reason = (
        f"top-1 passed 0.98 at step {solved} of {total}"
        if solved is not None
        else f"the loss {last['loss']:.4f} is below 0.05 of chance ({last['chance']:.3f})"
    )
    return Verdict(
        "too easy",
        f"The pairs are solved: {reason}. A shortcut such as head size may be enough to tell them apart.",
        "Strengthen the views or enlarge the batch. A low loss says nothing about where lesions are.",
    )


def _learning(last: Mapping[str, float]) -> Verdict:
    return Verdict(
        "learning",
        f"Loss {last['loss']:.3f} of chance {last['chance']:.3f}, top-1 {last['top1']:.2f}, embedding std "
        f"{last['embedding_std']:.2f}, effective rank {last['effective_rank']:.1f}.",
        "Let it run.",
    )


def _mean(events: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(np.mean([event[key] for event in events]))
