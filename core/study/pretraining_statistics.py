"""Figures of a pretraining: its verdict over seeds, how the contrastive task ended, rank correlation with Dice."""

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy.stats import rankdata

from core.metrics.two_level import said, span_text
from core.pretraining.minimise import read_events
from core.pretraining.training_verdict import verdict
from core.runs.run_record import Run
from data.errors import BadInput

MINIMUM_RUNS = 4
"""A rank correlation of fewer ways of training is not told."""
EXACT_RUNS, DRAWN_PERMUTATIONS = 7, 20_000
CORRELATION_CAVEAT = (
    "Read with care: the ways of training solve different tasks, so their loss shares and top-1 are not on one scale, "
    "and the p values of these {tests} tests are not corrected for their number."
)


def judge_pretraining(rows: Sequence[Mapping[str, Any]], controls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The row with the best mean Dice on validation labels, quoted on test; and in words whether it won anything.

    "won": on test its interval lies above the untrained encoder and above |z|. Without labelled validation subjects
    nothing is chosen, because choosing on test would make every number an oracle's.
    """
    by_key = {row["key"]: row for row in controls}
    untrained, zscore = by_key["untrained"], by_key["zscore"]
    rated = [row for row in rows if row["validation_dice"] is not None]
    if not rated:
        text = (
            "No labelled validation subject, so no variant can be chosen. Choosing on test labels would be an oracle."
        )
        return {"winner": None, "won": False, "text": text}
    best = max(rated, key=lambda row: float(row["validation_dice"]))
    protocol = "validation"
    own = best["choices"]["headline"]
    gains = {"the untrained encoder": own["minus_untrained"][protocol], "|z|": own["minus_zscore"][protocol]}
    won = all(said(gain) == "better" for gain in gains.values())
    quoted = own["figures"][protocol]
    seeds = f"{quoted['seeds']} seed{'s' if quoted['seeds'] > 1 else ''}"
    parts = [
        f"Chosen on validation: {best['title']} (mean validation Dice {_three(best['validation_dice'])}; "
        f"untrained {_three(untrained['validation_dice'])}, |z| {_three(zscore['validation_dice'])}).",
        f"On test, at the validation threshold, it has Dice {span_text(quoted)} ({quoted['n']} subjects, {seeds}).",
        *(f"Minus {name}: {span_text(gain, signed=True)}: {said(gain)}." for name, gain in gains.items()),
        "It beat both." if won else "No pretraining that validation would choose beat both on test.",
    ]
    return {"winner": best["key"], "won": won, "protocol": protocol, "text": " ".join(parts)}


def contrastive_end(run: Run) -> dict[str, Any]:
    """Means over the last tenth of the logged steps (at least five): loss, its share of chance, top-1, candidates.

    A training with a class head (ccd) is told by its contrastive part alone, whose chance is ln(candidates).
    """
    events = [e for e in read_events(run.directory / "events.jsonl") if "loss" in e and "chance" in e]
    tail = events[-max(5, len(events) // 10) :]
    if not tail:
        raise BadInput(f"Encoder run {run.run_id} has no logged steps.")
    candidates = _mean(tail, "candidates") if "candidates" in tail[-1] else float(np.exp(_mean(tail, "chance")))
    if "contrastive_loss" in tail[-1]:
        loss, chance = _mean(tail, "contrastive_loss"), float(np.log(candidates))
    else:
        loss, chance = _mean(tail, "loss"), _mean(tail, "chance")
    return {
        "steps": tail[-1]["step"],
        "loss": loss,
        "chance": chance,
        "loss_share": loss / chance,
        "top1": _mean(tail, "top1"),
        "candidates": round(candidates),
        "state": verdict(events).state,
    }


def spearman(
    first: Float64[np.ndarray, " runs"], second: Float64[np.ndarray, " runs"]
) -> tuple[float | None, float | None]:
    """Rank correlation, and the share of permutations that reach it in size; None when there is nothing to rank.

    All permutations of up to 7 runs, 20,000 drawn ones beyond that (then counted with the observed one).
    """
    n = len(first)
    if n < MINIMUM_RUNS or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None, None
    a, b = (ranks - ranks.mean() for ranks in (rankdata(first), rankdata(second)))
    size = float(np.sqrt((a @ a) * (b @ b)))
    rho = float(a @ b) / size
    rng = np.random.Generator(np.random.Philox(n))
    if n <= EXACT_RUNS:
        orders = np.array(list(permutations(range(n))))
    else:
        orders = np.stack([np.arange(n), *(rng.permutation(n) for _ in range(DRAWN_PERMUTATIONS))])
    return rho, float(np.mean(np.abs(b[orders] @ a) / size >= abs(rho) - 1e-9))


def _mean(events: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(np.mean([event[key] for event in events]))


def _three(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
