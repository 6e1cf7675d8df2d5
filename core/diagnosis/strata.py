"""Groups of lesions and subjects: what is found by size, contrast and region, and Dice by site, age and sex."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.metrics.bootstrap import mean_interval
from core.metrics.lesions import SIZE_BINS_ML
from core.randomness import stream

CONTRAST_BINS_SD: tuple[tuple[str, float, float], ...] = (
    ("darker, ≤ −1", -np.inf, -1.0),
    ("like healthy, −1 to 1", -1.0, 1.0),
    ("1 to 2", 1.0, 2.0),
    ("2 to 4", 2.0, 4.0),
    ("≥ 4", 4.0, np.inf),
)
"""Mean lesion intensity minus the healthy mean at its place, in healthy standard deviations."""
AGE_BINS: tuple[tuple[str, float, float], ...] = (
    ("< 40 years", -np.inf, 40.0),
    ("40 to 60", 40.0, 60.0),
    ("60 to 75", 60.0, 75.0),
    ("≥ 75", 75.0, np.inf),
)
_RESAMPLES = 2000


def strata(lesions: Sequence[Mapping[str, Any]], subjects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Lesion recall by size, contrast and region; mean Dice by site, age and sex. What nobody knows is left out.

    Each row has bin, n and `recall` or `dice` with its 95 % interval from whole subjects resampled.
    """
    found = {
        "size": _recall_by(lesions, _binned(lesions, "volume_ml", SIZE_BINS_ML)),
        "contrast": _recall_by(lesions, _binned(lesions, "contrast_sd", CONTRAST_BINS_SD)),
        "region": _recall_by(lesions, _named(lesions, "region")),
        "site": _dice_by(subjects, _named(subjects, "site")),
        "age": _dice_by(subjects, _binned(subjects, "age", AGE_BINS)),
        "sex": _dice_by(subjects, _named(subjects, "sex")),
    }
    return {name: rows for name, rows in found.items() if rows}


def _binned(
    rows: Sequence[Mapping[str, Any]], key: str, bins: Sequence[tuple[str, float, float]]
) -> list[tuple[str, list[int]]]:
    return [
        (name, [k for k, row in enumerate(rows) if row.get(key) is not None and low <= row[key] < high])
        for name, low, high in bins
    ]


def _named(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[str, list[int]]]:
    names = {str(row[key]) for row in rows if row.get(key) not in (None, "")}
    groups = [(name, [k for k, row in enumerate(rows) if str(row.get(key)) == name]) for name in sorted(names)]
    return sorted(groups, key=lambda group: -len(group[1]))


def _recall_by(lesions: Sequence[Mapping[str, Any]], groups: list[tuple[str, list[int]]]) -> list[dict[str, Any]]:
    rows = []
    for name, members in groups:
        if not members:
            continue
        counts: dict[str, list[int]] = {}
        for k in members:
            pair = counts.setdefault(str(lesions[k]["subject_id"]), [0, 0])
            pair[0] += bool(lesions[k]["found"])
            pair[1] += 1
        table = np.array(list(counts.values()), dtype=np.float64)
        low, high = _ratio_interval(table, name)
        rows.append(
            {
                "bin": name,
                "n": len(members),
                "recall": float(table[:, 0].sum() / len(members)),
                "low": low,
                "high": high,
            }
        )
    return rows


def _dice_by(subjects: Sequence[Mapping[str, Any]], groups: list[tuple[str, list[int]]]) -> list[dict[str, Any]]:
    rows = []
    for name, members in groups:
        if not members:
            continue
        dice = [float(subjects[k]["dice"]) for k in members]
        found = mean_interval(dice, seed=0, n_resamples=_RESAMPLES, purpose=name)
        rows.append({"bin": name, "n": len(members), "dice": found.mean, "low": found.low, "high": found.high})
    return rows


def _ratio_interval(table: np.ndarray, purpose: str) -> tuple[float | None, float | None]:
    """Percentile interval of Σ found / Σ lesions when subjects, one per line, are resampled."""
    if len(table) < 2:
        return None, None
    draws = stream(0, f"recall, {purpose}").integers(0, len(table), size=(_RESAMPLES, len(table)))
    sums = table[draws].sum(axis=1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
    return float(low), float(high)
