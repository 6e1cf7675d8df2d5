"""The ceiling ladder: how much Dice each limit costs, from a perfect reference down to the headline.

Every rung but the last two is an oracle: it sees the labels of the subjects that it judges. Rungs are ordered, so
their costs add up, but they depend on that order. A subject's rung stands at least as high as the one below it: what
is measured below was reached, whatever the rung's own oracle says (design, 5.3; both figures are kept). The mean of a
ceiling is that of these values; the mean of a rung that was measured on scores is that of the plain values, so that
"one best threshold" is the Dice that this threshold has, and is only raised where a mean below is higher.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from core.metrics.bootstrap import Interval, mean_interval, paired_difference
from core.metrics.exact_curve import dice_from_rates, fpr_for_dice_half
from data.errors import BadInput

REFERENCE_PREVALENCE = 0.03
"""Share of lesion voxels at which the cost of class imbalance is counted as zero (design, 5.2)."""


@dataclass(frozen=True)
class Rung:
    """What one step of the ladder stands for."""

    id: str
    title: str
    definition: str
    needs_labels: bool
    """Whether it sees the labels of the subjects that it judges."""


RUNGS: tuple[Rung, ...] = (
    Rung("reference", "Perfect", "The reference mask itself: Dice 1 by definition.", True),
    Rung(
        "reachable",
        "Reachable voxels",
        "Every lesion voxel inside the scored brain is found and nothing else; voxels outside it are lost.",
        True,
    ),
    Rung(
        "feature_grid",
        "Feature grid",
        "The lesion drawn as well as the cells of the chosen layers allow, with the pipeline's own upsampling.",
        True,
    ),
    Rung(
        "subject_threshold",
        "Own best threshold",
        "The run's scores, each subject cut at the threshold that is best for it.",
        True,
    ),
    Rung(
        "set_threshold",
        "One best threshold",
        "The run's scores, all test subjects cut at the one threshold with the highest mean Dice over them.",
        True,
    ),
    Rung(
        "deployed_threshold",
        "Deployed threshold",
        "The run's scores, cut at the threshold that was fixed before looking at the test labels.",
        False,
    ),
    Rung(
        "native_space",
        "Native space",
        "The headline: scores brought to the scan's own grid, the deployed threshold of that space, the native mask.",
        False,
    ),
)
_ROUNDING = 1e-12
_CEILINGS = ("reference", "reachable", "feature_grid")
_ROUNDING = 1e-12
_WORKING = ("subject_threshold", "set_threshold", "deployed_threshold")
_PROTOCOLS = {"subject_threshold": "oracle_subject", "set_threshold": "oracle_set"}


def ladder(
    metrics: Mapping[str, Any],
    layer_set: str,
    protocol: str,
    ceilings: Mapping[str, float],
    reachable: Mapping[str, float],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Rungs of one layer set, mean and per subject, ready for JSON.

    `metrics` is what core.runs.evaluated.read_metrics gives, `protocol` the deployed one (healthy or validation),
    `ceilings` and `reachable` the figures of core.diagnosis.ceiling by subject. `lifted` counts the subjects whose
    value is that of the rung below. The cost of a rung is the drop of the mean from the rung above, with a paired
    interval over subjects; it is hollow when that interval holds 0, or the rung's mean is that of the rung below.
    """
    working, native = _figures(metrics, layer_set)
    deployed = _rows(native, protocol, layer_set, "native")
    ids, notes = list(deployed), []
    rows = {name: _rows(working, _PROTOCOLS.get(name, protocol), layer_set, "working") for name in _WORKING}
    vanished = [i for i in ids if i not in rows["deployed_threshold"]]
    if vanished:
        notes.append(f"No lesion voxel is left on the working grid: {', '.join(vanished)}. Counted as unreachable.")
    judged = [i for i in ids if i not in vanished]
    measured = {
        "reference": dict.fromkeys(ids, 1.0),
        "reachable": _given(reachable, judged, "reachable Dice"),
        "feature_grid": _given(ceilings, judged, "ceiling"),
        **{name: {i: float(row["dice"]) for i, row in found.items()} for name, found in rows.items()},
        "native_space": {i: float(row["dice"]) for i, row in deployed.items()},
    }
    plain = np.array([[measured[rung.id].get(i, 0.0) for i in ids] for rung in RUNGS])
    value = np.maximum.accumulate(plain[::-1], axis=0)[::-1]
    counted = np.where(np.array([rung.id in _CEILINGS for rung in RUNGS])[:, None], value, plain)
    means = np.maximum.accumulate(counted.mean(axis=1)[::-1])[::-1]
    return {
        "layer_set": layer_set,
        "protocol": protocol,
        "n": len(ids),
        "rungs": [_rung(number, counted, means, plain, value, seed) for number in range(len(RUNGS))],
        "subjects": [
            {
                "subject_id": i,
                "ladder": {rung.id: float(v) for rung, v in zip(RUNGS, value[:, column], strict=True)},
                "measured": {rung.id: float(v) for rung, v in zip(RUNGS, plain[:, column], strict=True)},
            }
            for column, i in enumerate(ids)
        ],
        "notes": notes,
    }


def imbalance(
    figures: Mapping[str, Any],
    protocol: str,
    *,
    reference_prevalence: float = REFERENCE_PREVALENCE,
    seed: int = 0,
) -> dict[str, Any]:
    """What class imbalance costs at the observed rates: D(π_ref, T, F) − D(π, T, F), per subject and in the mean.

    D = 2πT / (π(1+T) + (1−π)F) with π the subject's share of lesion voxels, T and F its true- and false-positive
    rates at the protocol's threshold. `fpr_for_dice_half` = π(3T−1)/(1−π) is the rate at which Dice would be one
    half; None where T < 1/3 rules it out. `figures` is one layer set in one space. Negative above π_ref.
    """
    if not 0 < reference_prevalence < 1:
        raise BadInput(f"Reference prevalence is {reference_prevalence}. Allowed: between 0 and 1; 0.03 is usual.")
    curves = figures["per_subject_auprc"]["subjects"]
    rows = _rows(figures, protocol, "this layer set", "this")
    subjects = [_imbalance_row(i, row, curves[i], reference_prevalence) for i, row in rows.items()]
    cost = mean_interval([s["cost"] for s in subjects], seed=seed, purpose="imbalance")
    wanted = [s["fpr_for_dice_half"] for s in subjects if s["fpr_for_dice_half"] is not None]
    return {
        "reference_prevalence": reference_prevalence,
        "cost": asdict(cost),
        "prevalence": float(np.mean([s["prevalence"] for s in subjects])),
        "tpr": float(np.mean([s["tpr"] for s in subjects])),
        "fpr": float(np.mean([s["fpr"] for s in subjects])),
        "fpr_for_dice_half": float(np.mean(wanted)) if wanted else None,
        "n_half_possible": len(wanted),
        "n": len(subjects),
        "formula": "D(π) = 2πT / (π(1+T) + (1−π)F); cost = D(π_ref) − D(π)",
        "subjects": subjects,
    }


def _figures(metrics: Mapping[str, Any], layer_set: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    sets = metrics["sets"]
    if layer_set not in sets:
        raise BadInput(f"Layer set {layer_set!r} was not evaluated. Evaluated: {', '.join(sets)}.")
    working, native = sets[layer_set]["working"], sets[layer_set].get("native")
    if native is None:
        there = [name for name, spaces in sets.items() if spaces.get("native")]
        raise BadInput(
            f"Layer set {layer_set!r} has no figures in native space, and the last rung is the native Dice. "
            f"Compute them: core.study.evaluation.evaluate_layer_set(scores, layers, 'native'); or take one that has "
            f"them: {', '.join(there)}."
        )
    return working, native


def _rows(figures: Mapping[str, Any], protocol: str, layer_set: str, space: str) -> dict[str, Mapping[str, Any]]:
    protocols = figures["protocols"]
    if protocol not in protocols:
        raise BadInput(
            f"There is no threshold {protocol!r} for {layer_set} in {space} space. There is: {', '.join(protocols)}. "
            "A validation threshold needs labelled validation subjects."
        )
    rows = {row["subject_id"]: row for row in protocols[protocol]["subjects"]}
    if not rows:
        raise BadInput("No test subject has a lesion: Dice is undefined. Add labelled subjects to the test split.")
    return rows


def _given(values: Mapping[str, float], ids: Sequence[str], what: str) -> dict[str, float]:
    missing = [i for i in ids if i not in values]
    if missing:
        raise BadInput(
            f"No {what} given for {len(missing)} test subject(s): {', '.join(missing[:3])}. "
            "Compute it for every test subject with a lesion: core.diagnosis.ceiling.subject_ceilings."
        )
    return {i: float(values[i]) for i in ids}


def _rung(
    number: int,
    counted: Float64[np.ndarray, "rungs subjects"],
    means: Float64[np.ndarray, " rungs"],
    plain: Float64[np.ndarray, "rungs subjects"],
    value: Float64[np.ndarray, "rungs subjects"],
    seed: int,
) -> dict[str, Any]:
    interval = mean_interval(counted[number], seed=seed, purpose="dice")
    raised = float(means[number]) - float(counted[number].mean())
    row = {
        **asdict(RUNGS[number]),
        "mean": interval.mean if raised <= _ROUNDING else float(means[number]),
        "low": interval.low,
        "high": interval.high,
        "n": interval.n,
        "measured": float(plain[number].mean()),
        "lifted": int(np.count_nonzero(value[number] > plain[number])),
    }
    if number == 0:
        return {**row, "cost": 0.0, "cost_low": 0.0, "cost_high": 0.0, "measured_cost": 0.0, "hollow": False}
    found = paired_difference(counted[number - 1].tolist(), counted[number].tolist(), seed=seed)
    own = paired_difference(plain[number - 1].tolist(), plain[number].tolist(), seed=seed)
    cost = float(means[number - 1] - means[number])
    return {
        **row,
        "cost": cost,
        "cost_low": None if found.low is None else min(found.low, cost),
        "cost_high": None if found.high is None else max(found.high, cost),
        "measured_cost": own.mean,
        "hollow": _holds_zero(found) or _holds_zero(own) or cost <= _ROUNDING,
    }


def _holds_zero(interval: Interval) -> bool:
    """Whether 0 is inside, rounding aside; without an interval nothing can be told apart from 0."""
    return interval.low is None or interval.high is None or interval.low <= _ROUNDING <= interval.high + 2 * _ROUNDING


def _imbalance_row(
    subject_id: str, row: Mapping[str, Any], curve: Mapping[str, Any], reference: float
) -> dict[str, Any]:
    n_positive, n_negative = curve["n_positive"], curve["n_negative"]
    prevalence = n_positive / (n_positive + n_negative)
    tpr = row["true_positive_voxels"] / n_positive
    fpr = row["false_positive_voxels"] / n_negative if n_negative else 0.0
    half = fpr_for_dice_half(prevalence, tpr) if n_negative else None
    return {
        "subject_id": subject_id,
        "prevalence": prevalence,
        "tpr": tpr,
        "fpr": fpr,
        "dice": dice_from_rates(prevalence, tpr, fpr),
        "dice_at_reference": dice_from_rates(reference, tpr, fpr),
        "cost": dice_from_rates(reference, tpr, fpr) - dice_from_rates(prevalence, tpr, fpr),
        "fpr_for_dice_half": half if half is not None and half >= 0 else None,
    }
