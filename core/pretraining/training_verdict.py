"""What a contrastive training run is doing, in words, from its logged steps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from core.pretraining.training_advice import when_collapsed, when_stale, when_too_easy, when_too_hard

MINIMUM_STEPS = 50
"""Before this step nothing is judged: an untrained encoder embeds all brains nearly alike."""
PATIENCE_STEPS = 100
"""Before this step neither a loss at chance nor a narrow embedding is a finding: an untrained network embeds all brains
nearly alike (std about 0.05), spreads within some dozens of steps, and finds partners after that."""
NO_SPREAD = 0.1
"""Embedding std × √dim of a spread embedding is 1; below a tenth of that, cosines differ by less than about 0.01."""
DEAD = 1e-3
"""Embedding std × √dim of a constant: an untrained network is far above it, so no step has to be waited for."""
FALLEN = 0.7
"""Share of its highest earlier mean below which std or rank has fallen; batches alone move such means by less."""
LEAST_RANK = 2.0
"""Fewer effective directions than two lie on a line: the embedding orders brains, it does not tell them apart."""
AT_CHANCE = 0.95
"""Loss as a share of chance: within 5 %, what random embeddings of one batch reach by themselves."""
FOUND_BY_LUCK = 2.0
"""Top-1 in multiples of guessing."""
ALMOST_NEVER = 0.02
"""Top-1 below one in fifty is near chance whatever the number of candidates: among 1000, two lucky hits are noise."""
SOLVED = 0.98
"""Top-1: the rest may be errors of single scans."""
SOLVED_LOSS = 0.05
"""Loss as a share of chance at which the gradient has all but vanished."""
SAME_TASK = 0.5
"""A bank that fills makes the task harder: steps with fewer than this share of today's candidates do not count."""

State = Literal["too early", "collapsed", "too easy", "learning", "too hard"]


@dataclass(frozen=True)
class Verdict:
    """The state of a run, the numbers that say so, and what to do."""

    state: State
    reason: str
    advice: str


@dataclass(frozen=True)
class _Recent:
    """Means over the last tenth of the logged steps."""

    loss: float
    chance: float
    top1: float
    candidates: float
    embedding_std: float
    effective_rank: float
    anchors: float
    queue_age: float
    what: str
    """The loss in words."""


def verdict(
    events: Sequence[Mapping[str, Any]], settings: Mapping[str, Any] | None = None, subjects: int | None = None
) -> Verdict:
    """Judge a run by the mean of its last tenth (at least five logged steps); the first rule that holds is the state.

    too early   fewer than 50 steps.
    collapsed   the embedding is narrow: std < 0.1, or effective rank < 2 (half of N − 1 when that is less, N pairs per
                step); and what is narrow has fallen, below 0.7 of the highest mean over as many earlier steps, or
                100 steps are done and top-1 is near chance, or the std is below 0.001, a constant.
    too easy    top-1 above 0.98 over a twentieth of the steps (at least five) within the first third of the run and
                with at least half of today's candidates, or loss below 0.05 of chance: the pairs can be told apart by
                a shortcut, and the features learn nothing more.
    too early   the embedding is narrow, yet none of that holds: it has not spread yet, and needs more steps.
    too hard    loss above 0.95 of chance and top-1 near chance, below twice guessing 1/K (or below 0.02, when K is
                large), though the embedding is spread: nothing it spreads by is shared by the two views. Before 100
                steps that is too early.
    learning    otherwise.

    K is the logged number of candidates, e^chance in older journals; chance is the variant's own. With a class head
    (ccd) loss and chance are those of the contrastive part, ln K: a head that knows its classes solves no pair. The
    reason for each threshold stands at its constant.

    `settings`, a run's recipe, makes the advice one for its negatives and views; with `subjects`, the number that
    trains, a queue that outlives an epoch is called stale.
    """
    steps = [event for event in events if "loss" in event and "step" in event]
    if not steps or steps[-1]["step"] < MINIMUM_STEPS:
        reached = steps[-1]["step"] if steps else 0
        return Verdict(
            "too early", f"{reached} of the first {MINIMUM_STEPS} steps are done.", "Wait; the first steps say little."
        )
    last = _recent(steps)
    found = (
        _collapsed(steps, last, settings)
        or _too_easy(steps, last, settings)
        or _not_spread(steps, last)
        or _too_hard(steps, last, settings)
        or _learning(last)
    )
    stale = "" if found.state in ("too early", "collapsed") else when_stale(last.queue_age, settings, subjects)
    if not stale:
        return found
    return Verdict(found.state, f"{found.reason} {stale}", found.advice)


def candidates_of(event: Mapping[str, Any]) -> float:
    """Among how many a partner was to be found at a logged step; older journals tell it by their chance loss."""
    return float(event["candidates"]) if event.get("candidates") else math.exp(event["chance"])


def share_text(value: float) -> str:
    """A share in percent, as the tiles of a training and its verdict both say it; small ones keep a digit."""
    return f"{100 * value:.0f} %" if value >= 0.01 or value <= 0 else f"{100 * value:.1g} %"


def _collapsed(steps: Sequence[Mapping[str, Any]], last: _Recent, settings: Mapping[str, Any] | None) -> Verdict | None:
    narrow = _narrow(steps, last)
    waited = int(steps[-1]["step"]) >= PATIENCE_STEPS and last.top1 < _luck(last)
    if not narrow or not (waited or last.embedding_std < DEAD or any(one.fell for one in narrow)):
        return None
    reasons = [one.words for one in narrow]
    if _at_chance(last):
        reasons.append(_chance_words(last))
    elif waited:
        reasons.append(_top1_words(last))
    return Verdict("collapsed", "Everything embeds alike: " + "; ".join(reasons) + ".", when_collapsed(settings))


def _not_spread(steps: Sequence[Mapping[str, Any]], last: _Recent) -> Verdict | None:
    narrow = _narrow(steps, last)
    if not narrow:
        return None
    said = "; ".join(one.words for one in narrow)
    return Verdict(
        "too early",
        f"Not spread yet: after {int(steps[-1]['step']):,} steps {said}. It has not fallen, so nothing has collapsed; "
        f"{_top1_words(last)}.",
        "Give it more steps: an embedding spreads before it tells brains apart.",
    )


@dataclass(frozen=True)
class _Narrow:
    """A measure of spread that is below its alarm."""

    words: str
    fell: bool


def _narrow(steps: Sequence[Mapping[str, Any]], last: _Recent) -> list[_Narrow]:
    rank_floor = min(LEAST_RANK, (last.anchors / 2 - 1) / 2)
    found = []
    if last.embedding_std < NO_SPREAD:
        best = _highest_before(steps, "embedding_std")
        fell = last.embedding_std < FALLEN * best
        since = f", fallen from {best:.3f}" if fell else ""
        words = f"the embedding std is {last.embedding_std:.3f}{since} (spread 1, alarm below {NO_SPREAD:g})"
        found.append(_Narrow(words, fell))
    if last.effective_rank < rank_floor:
        best = _highest_before(steps, "effective_rank")
        fell = last.effective_rank < FALLEN * best
        since = f", fallen from {best:.1f}" if fell else ""
        words = f"the effective rank is {last.effective_rank:.1f}{since} (alarm below {rank_floor:.1f})"
        found.append(_Narrow(words, fell))
    return found


def _highest_before(steps: Sequence[Mapping[str, Any]], name: str) -> float:
    """The highest mean over as many steps as are judged, before those; 0 when there are too few."""
    window = len(_tail(steps))
    column = np.array([event[name] for event in steps[:-window]], dtype=np.float64)
    if len(column) < window:
        return 0.0
    sums = np.concatenate([[0.0], np.cumsum(column)])
    return float(((sums[window:] - sums[:-window]) / window).max())


def _too_easy(steps: Sequence[Mapping[str, Any]], last: _Recent, settings: Mapping[str, Any] | None) -> Verdict | None:
    total = max(int(steps[-1].get("total", 0)), int(steps[-1]["step"]))
    early = [e for e in steps if e["step"] <= total / 3 and candidates_of(e) >= SAME_TASK * last.candidates]
    window = max(5, len(steps) // 20)
    sums = np.concatenate([[0.0], np.cumsum([event["top1"] for event in early], dtype=np.float64)])
    means = (sums[window:] - sums[:-window]) / window  # empty when there are fewer steps than that
    solved = early[int(np.argmax(means > SOLVED)) + window - 1]["step"] if (means > SOLVED).any() else None
    if solved is None and last.loss >= SOLVED_LOSS * last.chance:
        return None
    reason = (
        f"top-1 among {last.candidates:,.0f} passed {share_text(SOLVED)} at step {solved} of {total}"
        if solved is not None
        else f"the {last.what} {last.loss:.4f} is below {SOLVED_LOSS:g} of chance ({last.chance:.3f})"
    )
    narrow = "; ".join(one.words for one in _narrow(steps, last))
    return Verdict(
        "too easy",
        f"The pairs are solved: {reason}. A shortcut such as head size may be enough to tell them apart."
        + (f" And {narrow}." if narrow else ""),
        when_too_easy(settings),
    )


def _too_hard(steps: Sequence[Mapping[str, Any]], last: _Recent, settings: Mapping[str, Any] | None) -> Verdict | None:
    if not _at_chance(last):
        return None
    reached = int(steps[-1]["step"])
    if reached < PATIENCE_STEPS:
        return Verdict(
            "too early",
            f"{reached} steps are done and {_chance_words(last)}; up to {PATIENCE_STEPS} steps that is usual.",
            "Wait; an embedding spreads before it finds partners.",
        )
    return Verdict(
        "too hard",
        f"Partners are not found: after {reached:,} steps {_chance_words(last)}, though the embedding is spread "
        f"(std {last.embedding_std:.2f}, effective rank {last.effective_rank:.1f}).",
        when_too_hard(settings),
    )


def _learning(last: _Recent) -> Verdict:
    return Verdict(
        "learning",
        f"{last.what.capitalize()} {last.loss:.3f} (chance {last.chance:.3f}), top-1 {share_text(last.top1)} among "
        f"{last.candidates:,.0f} (chance {share_text(1 / last.candidates)}), "
        f"embedding std {last.embedding_std:.2f}, effective rank {last.effective_rank:.1f}.",
        "Let it run.",
    )


def _at_chance(last: _Recent) -> bool:
    return last.loss > AT_CHANCE * last.chance and last.top1 < _luck(last)


def _luck(last: _Recent) -> float:
    """Top-1 below this is near chance."""
    return max(FOUND_BY_LUCK / last.candidates, ALMOST_NEVER)


def _chance_words(last: _Recent) -> str:
    return f"the {last.what} {last.loss:.3f} is at chance ({last.chance:.3f}) and {_top1_words(last)}"


def _top1_words(last: _Recent) -> str:
    return f"top-1 is {share_text(last.top1)} (chance {share_text(1 / last.candidates)})"


def _tail(steps: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    return steps[-max(5, len(steps) // 10) :]


def _recent(steps: Sequence[Mapping[str, Any]]) -> _Recent:
    tail = _tail(steps)
    candidates = float(np.mean([candidates_of(event) for event in tail]))
    classes = all("contrastive_loss" in event for event in tail)
    counted = [sum(event["positive_histogram"]) for event in steps if event.get("positive_histogram")]
    return _Recent(
        loss=_mean(tail, "contrastive_loss" if classes else "loss"),
        chance=math.log(candidates) if classes else _mean(tail, "chance"),
        top1=_mean(tail, "top1"),
        candidates=candidates,
        embedding_std=_mean(tail, "embedding_std"),
        effective_rank=_mean(tail, "effective_rank"),
        anchors=float(counted[-1]) if counted else candidates + 1,  # 2N views, of which 2N − 1 are candidates
        what="loss of the pairs" if classes else "loss",
        queue_age=float(np.mean([event.get("queue_age", 0.0) for event in tail])),
    )


def _mean(events: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(np.mean([event[key] for event in events]))
