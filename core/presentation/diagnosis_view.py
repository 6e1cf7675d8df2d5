"""A diagnosis as the page asks for it: bars and who drives them, tables, groups of subjects and lesions, links.

Everything here reads the JSON of `diagnose`; nothing is rescored.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np

from core.diagnosis.cause_evidence import chosen_variant
from core.diagnosis.verdict import settings_text

CEILINGS = ("reference", "reachable", "feature_grid")
"""Rungs that are bounds; those below were measured on scores."""
NO_COSTS = ("R16", "R17")
"""Causes that say how to read Dice: what another mean would give, and chance. Nothing is lost to them."""
SETTING_NAMES = {
    "smoothing_mm": ("Smoothing", "SD, mm"),
    "median_voxels": ("Median", "voxels"),
    "erosion_voxels": ("Brain eroded by", "voxels"),
    "min_component_mm3": ("Smallest component", "mm³"),
}
"""Post-processing settings and their units, in the order in which they are applied."""


@dataclass(frozen=True)
class Bar:
    """One bar of the ladder or of the error map."""

    key: str
    """`ladder.ID` or `errors.ID`: the two views share names."""
    title: str
    cost: float
    low: float | None
    high: float | None
    hollow: bool
    definition: str
    advice: str
    only: float | None = None
    """Dice gained if nothing else were put right."""
    all_but: float | None = None
    """Dice still missing if everything else were put right."""


def bars(diagnosis: Mapping[str, Any]) -> list[Bar]:
    """Every cost of the ladder from top to bottom, then of the error map, largest first."""
    ladder = [
        Bar(
            f"ladder.{r['id']}", str(r["title"]), r["cost"] or 0.0, r["cost_low"], r["cost_high"], r["hollow"],
            r["definition"], "",
        )
        for r in diagnosis["rungs"][1:]
    ]  # fmt: skip
    errors = [
        Bar(
            f"errors.{c['id']}", category_title(c), c["cost"] or 0.0, c["low"], c["high"], c["hollow"],
            c["definition"], c.get("advice") or "", c["only"], c["all_but"],
        )
        for c in sorted(diagnosis["error_map"], key=lambda c: -(c["cost"] or 0.0))
    ]  # fmt: skip
    return ladder + errors


def category_title(category: Mapping[str, Any]) -> str:
    """FP or FN in front of the title, so that colour is not the only sign."""
    prefix = {"fp": "FP · ", "fn": "FN · "}.get(category["kind"], "")
    return prefix + str(category["title"])


def largest(found: Sequence[Bar]) -> Bar | None:
    """The costliest bar whose interval is clear of zero; of the hollow ones when there is no other."""
    clear = [bar for bar in found if not bar.hollow] or list(found)
    return max(clear, key=lambda bar: bar.cost, default=None)


def drivers(diagnosis: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The subjects behind a bar, the costliest first: what it costs each of them, and who they are."""
    view, _, name = key.partition(".")
    rungs = [r["id"] for r in diagnosis["rungs"]]
    rows = []
    for subject in diagnosis["subjects"]:
        if view == "ladder":
            above = rungs[max(rungs.index(name) - 1, 0)]
            cost = _reached(subject, above) - _reached(subject, name)
        else:
            cost = subject["error_map"].get(name, 0.0)
        rows.append(
            {
                "subject": subject["subject_id"],
                "cost": float(cost),
                "dice": subject["dice"],
                "lesion_ml": subject.get("lesion_ml"),
                "voxels": _voxels(subject, name) if view == "errors" else None,
                "site": subject.get("site"),
                "age": subject.get("age"),
                "sex": subject.get("sex"),
            }
        )
    return sorted(rows, key=lambda row: -row["cost"])


def concentration(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """How few of the subjects, the costliest first, make up half of a cost; None when it costs nothing."""
    costs = np.array([max(row["cost"], 0.0) for row in rows])
    if costs.sum() <= 0:
        return None
    return int(np.searchsorted(np.cumsum(costs), costs.sum() / 2) + 1)


def slices_query(
    diagnosis: Mapping[str, Any],
    subject_id: str,
    *,
    voxel: Sequence[int] | None = None,
    bar: str | None = None,
) -> dict[str, str | list[str]]:
    """What the address of Slices has to say to stand there: run, subject, layers, cross-hair.

    With a bar of the error map, its voxels are shown by category, and that category is the one to look at.
    """
    query: dict[str, str | list[str]] = {
        "run": str(diagnosis["run_id"]),
        "subject": subject_id,
        "layers": str(diagnosis["layer_set"]).split("+"),
        "threshold": str(diagnosis["protocol"]),
    }
    if voxel is not None:
        query |= {axis: str(int(value)) for axis, value in zip("xyz", voxel, strict=True)}
    if bar is not None and bar.startswith("errors."):
        query["categories"] = "1"
        if (name := bar.partition(".")[2]) != "native_space":
            query["category"] = name
    return query


def slices_address(query: Mapping[str, str | list[str]]) -> str:
    """The same as a relative address."""
    return "slices?" + urlencode(query, doseq=True)


def best_variant(what_if: Mapping[str, Any], protocol: str) -> Mapping[str, Any] | None:
    """The variant to deploy: the chosen one, when it can be deployed and gains on validation; else None."""
    picked = chosen_variant(what_if, protocol)
    if picked is None or not picked[0]["deployable"]:
        return None
    gain = validation_of(picked[0], protocol).get("gain")
    return picked[0] if gain is not None and gain > 0 else None


def gain_words(what_if: Mapping[str, Any], protocol: str, plain: Callable[[str], str] = str) -> str:
    """What a finished what-if found, in a line: its chosen variant, else what it measured and why none is chosen.

    `plain` turns the title of a variant into text that is shown as it stands.
    """
    best = best_variant(what_if, protocol)
    measured = {v["title"]: test for v in what_if["variants"] if (test := _judged(v, protocol))}
    if best is not None:
        test = measured[best["title"]]
        return (
            f"{plain(best['title'])}: test Dice **{test['baseline']:.3f} → {test['variant']:.3f}**, "
            f"{_gain_text(_as_gain(test))} (validation {_signed(validation_of(best, protocol)['gain'])})"
        )
    if not measured:
        return "Done: – (n = 0, no test subject is left to judge it on)"
    shown = "; ".join(f"{plain(title)} {_gain_text(_as_gain(test))}" for title, test in list(measured.items())[:3])
    more = f"; {len(measured) - 3} more below" if len(measured) > 3 else ""
    able = [v for v in what_if["variants"] if v["deployable"]]
    if not able:
        return f"Measures only: {shown}{more}"
    if all(validation_of(v, protocol).get("gain") is None for v in able):
        return f"No validation labels to choose on. On test: {shown}{more}"
    return f"Nothing gains on validation. On test: {shown}{more}"


def validation_of(variant: Mapping[str, Any], protocol: str) -> dict[str, Any]:
    """What a variant gains on validation under a protocol; empty when nothing was labelled there."""
    return (variant.get("validation_by_protocol") or {}).get(protocol) or variant.get("validation") or {}


def variant_rows(what_if: Mapping[str, Any], protocol: str) -> list[dict[str, Any]]:
    """One line per variant: its gain on validation and on test at the protocol's threshold, re-derived for it."""
    best = best_variant(what_if, protocol)
    rows = []
    for variant in what_if["variants"]:
        chosen, test = validation_of(variant, protocol), (variant["test"] or {}).get(protocol) or {}
        rows.append(
            {
                "variant": variant["title"],
                "best on validation": variant is best,
                "can be deployed": variant["deployable"],
                "needs test labels": variant["needs_labels"],
                "validation gain": chosen.get("gain"),
                "test gain": test.get("gain"),
                "low": test.get("low"),
                "high": test.get("high"),
                "n": test.get("n"),
                "Dice before": test.get("baseline"),
                "Dice after": test.get("variant"),
                "FP mL before": test.get("false_ml_before"),
                "FP mL after": test.get("false_ml_after"),
            }
        )
    return rows


def job_argv(verb: str, runs: Path, run_id: str, layer_set: str, name: str | None = None) -> list[str]:
    """`what-if`, `post-processing` or `detection-limits` of one layer set, as words of cli.py."""
    named = [name] if name is not None else []
    return [verb, run_id, *named, "--runs", str(runs.absolute()), "--layers", layer_set]


def row_of(result: Mapping[str, Any], settings: Mapping[str, float]) -> Mapping[str, Any]:
    """The row of a stored post-processing grid that holds these settings."""
    return next(row for row in result["rows"] if all(row[name] == value for name, value in settings.items()))


def start_settings(result: Mapping[str, Any], protocol: str) -> dict[str, float]:
    """Where the explorer begins: the best on validation, else what the run does itself."""
    best = (result["best_on_validation"] or {}).get(protocol) or result["shipped"][protocol]
    return dict(best["settings"])


def post_processing_rows(result: Mapping[str, Any], protocol: str) -> list[dict[str, Any]]:
    """The run's own setting, the best on validation and what it gives on test, the best on test (an oracle)."""
    quoted = [
        ("the run's own", result["shipped"].get(protocol)),
        ("best on validation", (result["best_on_validation"] or {}).get(protocol)),
        ("oracle: best on test", (result["best_on_test"] or {}).get(protocol)),
    ]
    return [
        {
            "which": which,
            "Dice on validation": found["validation_dice"],
            "Dice on test": found["dice"],
            "paired gain on test": _gain_text(found),
            "setting": settings_text(found["settings"]),
        }
        for which, found in quoted
        if found is not None and found["dice"] is not None
    ]


def limit_rows(level: Mapping[str, Any], site: str) -> list[dict[str, Any]]:
    """Per diameter: the contrast at which 50 % and 80 % of planted lesions are found, darker and brighter."""
    rows: dict[float, dict[str, Any]] = {}
    for limit in level["limits"]:
        if limit["site"] != site:
            continue
        row = rows.setdefault(limit["diameter_mm"], {"diameter, mm": f"{limit['diameter_mm']:g}"})
        for share in ("50", "80"):
            reached = limit[f"contrast_sd_{share}"]
            text = _why_not(limit[f"why_{share}"]) if reached is None else f"{reached:+.1f} SD".replace("-", "−")
            row[f"{limit['sign']}, {share} % found"] = text
    return list(rows.values())


def _why_not(why: str) -> str:
    """In two words what `limit_tables` says when a sensitivity has no contrast."""
    return "never" if why.startswith("never") else "false positives"


def _judged(variant: Mapping[str, Any], protocol: str) -> Mapping[str, Any]:
    found = (variant.get("test") or {}).get(protocol) or {}
    return found if found.get("gain") is not None else {}


def _as_gain(test: Mapping[str, Any]) -> dict[str, Any]:
    return {"gain": test["gain"], "gain_low": test["low"], "gain_high": test["high"]}


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _gain_text(found: Mapping[str, Any]) -> str:
    if found.get("gain") is None:
        return "–"
    span = f" [{_signed(found['gain_low'])}, {_signed(found['gain_high'])}]" if found["gain_low"] is not None else ""
    return f"{_signed(found['gain'])}{span}"


def _reached(subject: Mapping[str, Any], rung: str) -> float:
    """What a rung's mean is made of: a ceiling lifted to what was reached below it, else the plain measured Dice."""
    lifted = rung in CEILINGS or "measured" not in subject
    return float(subject["ladder" if lifted else "measured"][rung])


def _voxels(subject: Mapping[str, Any], name: str) -> int | None:
    counts = subject.get("counts") or {}
    for kind in ("fp", "fn"):
        if name in counts.get(kind, {}):
            return int(counts[kind][name])
    return None
