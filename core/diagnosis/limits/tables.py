"""From lesions that were found or missed to sensitivities with intervals, and the contrast at which half is found."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

SENSITIVITIES = (0.5, 0.8)
ALL_SITES = "all"
Record = Mapping[str, Any]


def sensitivity_cells(records: Sequence[Record], level: int) -> list[dict[str, Any]]:
    """One row per size x contrast x site and per size x contrast over all sites, at one false-positive level.

    `found_without` counts the places at which the rule was met before anything was planted: false positives there.
    """
    rows = []
    for (diameter, contrast, site), here in _cells(records):
        found = sum(r["found"][level] for r in here)
        low, high = wilson(found, len(here))
        rows.append(
            {
                "diameter_mm": diameter,
                "contrast_sd": contrast,
                "site": site,
                "n": len(here),
                "found": found,
                "sensitivity": found / len(here),
                "low": low,
                "high": high,
                "found_without": sum(r["found_without"][level] for r in here),
                "dice": float(np.mean([r["dice"][level] for r in here])),
                "covered": float(np.mean([r["covered"][level] for r in here])),
            }
        )
    return rows


def contrast_limits(cells: Sequence[Record]) -> list[dict[str, Any]]:
    """Per size, site and sign: the contrast at which sensitivity reaches 50 % and 80 %, None (and why) if never."""
    rows = []
    groups = sorted({(c["diameter_mm"], c["site"], c["contrast_sd"] > 0) for c in cells}, key=_in_order)
    for diameter, site, brighter in groups:
        here = [c for c in cells if (c["diameter_mm"], c["site"], c["contrast_sd"] > 0) == (diameter, site, brighter)]
        here.sort(key=lambda c: abs(c["contrast_sd"]))
        without = sum(c["found_without"] for c in here) / sum(c["n"] for c in here)
        row: dict[str, Any] = {"diameter_mm": diameter, "site": site, "sign": "brighter" if brighter else "darker"}
        row["found_without_lesion"] = without
        for wanted in SENSITIVITIES:
            reached, why = contrast_reaching(
                wanted, [c["contrast_sd"] for c in here], [c["found"] for c in here], [c["n"] for c in here], without
            )
            name = f"{100 * wanted:.0f}"
            row[f"contrast_sd_{name}"] = reached if reached is None or brighter else -reached
            row[f"why_{name}"] = why
        rows.append(row)
    return rows


def limit_lines(result: Mapping[str, Any]) -> list[list[str]]:
    """The limits as rows of text, headings first: per false-positive level and diameter, over all sites.

    Darker and brighter lesions each have the contrast (healthy SD) at which half and 80 % of them are found, or why
    there is none, and the number planted.
    """
    rows = [["false positives", "diameter", "sign", "50 % found at", "80 % found at", "planted"]]
    for level in result["levels"]:
        for limit in level["limits"]:
            if limit["site"] != ALL_SITES:
                continue
            planted = [c["n"] for c in level["cells"] if _same_limit(c, limit)]
            reached = [_reached_text(limit, f"{100 * wanted:.0f}") for wanted in SENSITIVITIES]
            rows.append(
                [_level_text(level), f"{limit['diameter_mm']:g} mm", limit["sign"], *reached, str(sum(planted))]
            )
    return rows


def strength_cells(records: Sequence[Record]) -> list[dict[str, Any]]:
    """What was planted in each cell, and how much the score rose: means over its lesions."""
    means = ("contrast_realised_sd", "score_rise_sd", "volume_ml")
    return [
        {
            "diameter_mm": diameter,
            "contrast_sd": contrast,
            "site": site,
            "n": len(here),
            **{name: float(np.mean([r[name] for r in here])) for name in means},
        }
        for (diameter, contrast, site), here in _cells(records)
    ]


def wilson(found: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a proportion. Wilson 1927, "Probable inference, the law of succession"."""
    share, spread = found / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * float(np.sqrt(share * (1 - share) / n + spread / (4 * n)))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def contrast_reaching(
    sensitivity: float, contrasts_sd: Sequence[float], found: Sequence[int], n: Sequence[int], without: float
) -> tuple[float | None, str | None]:
    """|Contrast| at which the monotone sensitivity reaches a value, linear in between; else None, and why.

    Contrasts are of one sign, weakest first; at 0 stands `without`, the share that is found where no lesion is.
    """
    if without >= sensitivity:
        return None, "reached without any lesion, by false positives"
    rates = monotone([f / m for f, m in zip(found, n, strict=True)], n)
    x = [0.0, *map(abs, contrasts_sd)]
    y = [without, *np.maximum(rates, without)]
    for left in range(len(x) - 1):
        if y[left + 1] >= sensitivity - 1e-12:
            part = (sensitivity - y[left]) / (y[left + 1] - y[left])
            return float(x[left] + part * (x[left + 1] - x[left])), None
    return None, "never, up to the strongest contrast"


def monotone(values: Sequence[float], weights: Sequence[float]) -> Float64[np.ndarray, " values"]:
    """The non-decreasing sequence of least weighted squares: max over starts of min over ends of the mean between.

    Barlow et al. 1972, "Statistical Inference under Order Restrictions", the min-max formula.
    """
    total = np.concatenate([[0.0], np.cumsum(np.multiply(values, weights))])
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    n = len(values)
    fitted = [
        max(min((total[k + 1] - total[j]) / (mass[k + 1] - mass[j]) for k in range(i, n)) for j in range(i + 1))
        for i in range(n)
    ]
    return np.array(fitted)


def _cells(records: Sequence[Record]) -> Iterator[tuple[tuple[float, float, str], list[Record]]]:
    grouped: dict[tuple[float, float, str], list[Record]] = {}
    for record in records:
        for site in (ALL_SITES, record["site"]):
            grouped.setdefault((record["diameter_mm"], record["contrast_sd"], site), []).append(record)
    for key in sorted(grouped, key=_in_order):
        yield key, grouped[key]


def _in_order(key: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple((part != ALL_SITES, part) if isinstance(part, str) else part for part in key)


def _same_limit(cell: Mapping[str, Any], limit: Mapping[str, Any]) -> bool:
    """Whether a cell of the sensitivity map is one of those that a limit is drawn through."""
    sign = "brighter" if cell["contrast_sd"] > 0 else "darker"
    return (cell["diameter_mm"], cell["site"], sign) == (limit["diameter_mm"], limit["site"], limit["sign"])


def _reached_text(limit: Mapping[str, Any], share: str) -> str:
    contrast = limit[f"contrast_sd_{share}"]
    return str(limit[f"why_{share}"]) if contrast is None else f"{contrast:+.1f} SD"


def _level_text(level: Mapping[str, Any]) -> str:
    own = "own threshold" if level["id"] == "own" else f"{level['asked_ml_per_scan']:g} mL asked"
    return f"{own} ({level['false_positive_ml_per_scan']:.2g} mL per healthy scan)"
