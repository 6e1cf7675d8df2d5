"""A plausible diagnosis in the shape of `diagnose`, made of random numbers that add up: Dice + Σ costs = 1."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.diagnosis.limits.tables import contrast_limits, sensitivity_cells
from core.metrics.bootstrap import mean_interval
from core.randomness import stream

RUNGS: tuple[tuple[str, str, str, bool, float], ...] = (
    ("reference", "The reference itself", "D = 1", True, 0.0),
    ("reachable", "Reachable: inside the scored brain", "2|G∩V| / (|G∩V| + |G|)", True, 0.004),
    ("feature_grid", "On the feature grid", "max over unions of feature cells", True, 0.16),
    ("subject_threshold", "Best threshold per subject", "max over τ of D_i(τ)", True, 0.42),
    ("set_threshold", "Best one threshold for all", "max over τ of mean_i D_i(τ)", True, 0.10),
    ("deployed_threshold", "The threshold you can deploy", "mean_i D_i(τ_healthy)", False, 0.15),
    ("native_space", "In native space", "D on the scan's own grid", False, 0.004),
)
CATEGORIES: tuple[tuple[str, str, str, float], ...] = (
    ("outside_brain", "fp", "Outside the brain, skull remnant", 0.4),
    ("brain_edge", "fp", "Brain edge, within 3 mm", 6.0),
    ("csf_border", "fp", "Border to fluid", 2.5),
    ("halo", "fp", "Halo around the lesion", 3.0),
    ("hyperintense", "fp", "Bright healthy tissue", 1.2),
    ("registration", "fp", "Badly aligned place", 0.5),
    ("small_component", "fp", "Specks", 0.9),
    ("other_fp", "fp", "Other false positives", 2.0),
    ("unreachable", "fn", "Unreachable", 0.1),
    ("sub_cell", "fn", "Smaller than a feature cell", 0.7),
    ("low_contrast", "fn", "Low contrast", 1.6),
    ("hypo_intense", "fn", "Darker than healthy", 0.2),
    ("boundary_shell", "fn", "Boundary of the lesion", 0.8),
    ("other_fn", "fn", "Other misses", 0.6),
)
CAUSES: tuple[tuple[str, str, float | None, bool, str | None, str | None], ...] = (
    ("R0", "Class imbalance", 0.21, True, None, None),
    ("R1", "Lesion outside the scored brain", 0.004, True, None, None),
    ("R2", "Resolution of the feature map", 0.16, True, None, None),
    ("R3", "Evaluated on another grid", 0.004, False, None, None),
    ("R4", "Edges and partial volume", None, False, "dont-care", None),
    ("R5", "Domain shift of intensities", None, False, "calibrate-subject", None),
    ("R6", "Registration", None, True, "shift", None),
    ("R7", "Thresholding", 0.25, True, None, None),
    ("R8", "Fewer scans than features", None, False, "covariance", None),
    ("R9", "Skull-strip remnants", None, False, "erode-mask", None),
    ("R10", "Bias to bright voxels", 0.03, False, None, None),
    ("R11", "Smoothing and post-processing", None, False, None, "A stored post-processing grid: start it below."),
    ("R12", "Heterogeneous training scans", None, False, None, "Age is not in the cohort's table."),
    ("R13", "Label quality", None, True, None, "A second rater's lesion masks."),
    ("R14", "Leakage", 0.0, False, None, None),
    ("R15", "Choice of layers", 0.02, False, None, None),
    ("R16", "Aggregation: pooled against mean", 0.05, True, None, None),
    ("R17", "Sampling noise", 0.06, False, None, None),
)
REGIONS = ("frontal lobe", "parietal lobe", "white matter", "occipital lobe", "cerebellum")


def example(
    subject_ids: Sequence[str] | None = None,
    *,
    run_id: str = "tiny",
    layer_set: str = "stage1",
    protocol: str = "healthy",
    shape: tuple[int, int, int] = (45, 54, 45),
    seed: int = 0,
) -> dict[str, Any]:
    """A diagnosis of the given subjects (twelve unless told); the same arguments give the same numbers."""
    ids = list(subject_ids) if subject_ids is not None else [f"sub-{k:03d}" for k in range(1, 13)]
    subjects = [_subject(i, stream(seed, "example subject", k)) for k, i in enumerate(ids)]
    lesions = [row for k, s in enumerate(subjects) for row in _lesions(s, shape, stream(seed, "lesions", k))]
    dice = _mean([s["dice"] for s in subjects])
    error_map = [_category(c, subjects) for c in [*CATEGORIES, ("native_space", "space", "Native space", 0.0)]]
    return {
        "run_id": run_id,
        "name": f"Gaussian of {run_id}",
        "layer_set": layer_set,
        "unit": "Mahalanobis distance",
        "protocol": protocol,
        "threshold": 4.2,
        "space": "native",
        "n": len(ids),
        "n_healthy": 6,
        "prevalence": 0.0072,
        "dice": dice,
        "rungs": _rungs(subjects),
        "layers": [_layer(k, name) for k, name in enumerate(("input", "stage1", "stage2"))],
        "error_map": error_map,
        "causes": [_cause(c, len(ids)) for c in CAUSES],
        "decisions": _decisions(dice),
        "what_ifs": [_what_if(layer_set, ids)],
        "post_processing": None,
        "detection_limits": None,
        "lesions": lesions,
        "strata": {},
        "verdict": {
            "sentence": "Eroding the brain mask by 2 mm is the biggest gain that needs no test label: "
            "+0.081 [0.012, 0.173] Dice on test.",
            "gain": 0.081,
            "low": 0.012,
            "high": 0.173,
            "what_if": "erode-mask",
            "variant": "2mm",
            "chosen_on": "validation",
        },
        "notes": ["Intervals are wide: 12 subjects."],
        "subjects": subjects,
    }


def post_processing_example(n: int = 12) -> dict[str, Any]:
    """A stored post-processing grid: three smoothings, medians and erosions, five smallest components."""
    axes = {
        "smoothing_mm": [0.0, 2.0, 4.0], "median_voxels": [0, 3, 5], "erosion_voxels": [0, 1, 2],
        "min_component_mm3": [0.0, 27.0, 100.0, 300.0, 1000.0],
    }  # fmt: skip
    rows = []
    for place, values in enumerate(itertools.product(*axes.values())):
        smoothing, median, erosion, smallest = values
        dice = 0.2 + 0.03 * smoothing - 0.006 * smoothing**2 + 0.008 * median + 0.05 * erosion - 0.02 * erosion**2
        dice += 0.02 * np.log10(1 + smallest) - 0.00005 * smallest
        row: dict[str, Any] = dict(zip(axes, values, strict=True))
        for shift, protocol in enumerate(("healthy", "validation")):
            here = float(dice + 0.03 * shift)
            row[protocol] = {
                "threshold": 4.0 + 0.1 * shift, "validation_dice": here + 0.02 + 0.004 * np.sin(place), "dice": here,
                "low": here - 0.07, "high": here + 0.08, "n": n, "false_ml": 9.0 - 4 * erosion - 0.003 * smallest,
                "false_components": 40.0 - smallest / 40, "gain": here - 0.2 - 0.03 * shift, "gain_low": here - 0.27,
                "gain_high": here - 0.15,
            }  # fmt: skip
        rows.append(row)

    def quoted(protocol: str, figure: str | None) -> dict[str, Any]:
        row = rows[0] if figure is None else max(rows, key=lambda r: r[protocol][figure])
        return {"settings": {name: row[name] for name in axes}, "protocol": protocol, **row[protocol]}

    protocols = ("healthy", "validation")
    return {
        "axes": axes, "rows": rows, "notes": ["The best of 135 combinations on validation is optimistic there."],
        "shipped": {p: quoted(p, None) for p in protocols},
        "best_on_validation": {p: quoted(p, "validation_dice") for p in protocols},
        "best_on_test": {p: quoted(p, "dice") | {"oracle": True} for p in protocols},
    }  # fmt: skip


def limits_example() -> dict[str, Any]:
    """Stored detection limits: what is larger and stands out more is found more often."""
    records = []
    for diameter in (4.0, 8.0, 16.0):
        for contrast in (-4.0, -2.0, 2.0, 4.0):
            for site in ("grey", "white"):
                for k in range(6):
                    seen = diameter * max(contrast, 0.3 * -contrast) / 8 > k
                    records.append(
                        {
                            "diameter_mm": diameter, "contrast_sd": contrast, "site": site, "found": [seen, k == 0],
                            "found_without": [False, False], "dice": [0.4 * seen, 0.1], "covered": [0.6 * seen, 0.1],
                        }
                    )  # fmt: skip
    levels = []
    for number, (name, ml) in enumerate((("own", 9.1), ("fp_1", 1.0))):
        cells = sensitivity_cells(records, number)
        levels.append(
            {
                "id": name, "title": f"{ml:g} mL per healthy calibration scan", "false_positive_ml_per_scan": ml,
                "false_positive_components_per_scan": 4 * ml, "cells": cells, "limits": contrast_limits(cells),
            }
        )  # fmt: skip
    return {"levels": levels, "n_lesions": len(records), "n_scans": 6, "notes": ["Lesions are ellipsoids."]}


def _subject(subject_id: str, rng: np.random.Generator) -> dict[str, Any]:
    value, measured = 1.0, {"reference": 1.0}
    for name, _, _, _, cost in RUNGS[1:]:
        value *= 1 - min(cost * rng.gamma(4.0, 0.25), 0.9)
        measured[name] = value
    working = measured["deployed_threshold"]
    ladder = dict(measured)
    weights = rng.gamma([c[3] for c in CATEGORIES], 1.0) * (rng.random(len(CATEGORIES)) > 0.1)
    costs = (1 - working) * weights / weights.sum()
    error_map = {c[0]: float(cost) for c, cost in zip(CATEGORIES, costs, strict=True)}
    error_map["native_space"] = working - measured["native_space"]
    voxels = {c[0]: int(4000 * cost) for c, cost in zip(CATEGORIES, costs, strict=True)}
    lesion_ml = float(np.exp(rng.normal(1.0, 1.4)))
    return {
        "subject_id": subject_id,
        "dice": 1.0 - sum(error_map.values()),
        "ladder": ladder,
        "error_map": error_map,
        "lesion_ml": lesion_ml,
        "site": str(rng.choice(["Guys", "HH", "IOP"])),
        "age": float(rng.integers(22, 85)),
        "sex": str(rng.choice(["F", "M"])),
        "counts": {
            "hits": int(lesion_ml * 60),
            "fp": {c[0]: voxels[c[0]] for c in CATEGORIES if c[1] == "fp"},
            "fn": {c[0]: voxels[c[0]] for c in CATEGORIES if c[1] == "fn"},
        },
    }


def _rungs(subjects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    above: list[float] | None = None
    for name, title, definition, needs_labels, _ in RUNGS:
        values = [s["ladder"][name] for s in subjects]
        drop = _mean([a - v for a, v in zip(above or values, values, strict=True)])
        rows.append(
            {
                "id": name, "title": title, "definition": definition, "needs_labels": needs_labels,
                **{k: v for k, v in _mean(values).items() if k != "n"},
                "measured": float(np.mean(values)), "lifted": 0,
                "cost": drop["mean"], "cost_low": drop["low"], "cost_high": drop["high"],
                "hollow": above is not None and bool(drop["low"] is None or drop["low"] <= 0.002),
            }
        )  # fmt: skip
        above = values
    return rows


def _category(category: tuple[str, str, str, float], subjects: list[dict[str, Any]]) -> dict[str, Any]:
    name, kind, title, _ = category
    costs = [s["error_map"][name] for s in subjects]
    found = _mean(costs)
    voxels = sum(s["counts"][kind].get(name, 0) for s in subjects) if kind in ("fp", "fn") else 0
    return {
        "id": name, "kind": kind, "title": title, "definition": f"What counts as: {title.lower()}.",
        "advice": "Erode the brain mask, or fit more healthy scans.", "cost": found["mean"], "low": found["low"],
        "high": found["high"], "only": 0.6 * (found["mean"] or 0.0), "all_but": 1.3 * (found["mean"] or 0.0),
        "voxels": voxels, "ml": voxels * 0.008, "hollow": (found["low"] or 0.0) <= 0.004,
        "n_subjects": sum(c > 0 for c in costs),
    }  # fmt: skip


def _cause(cause: tuple[str, str, float | None, bool, str | None, str | None], n: int) -> dict[str, Any]:
    name, title, cost, needs_labels, what_if, missing = cause
    return {
        "id": name, "title": title, "cost": cost, "low": None if cost is None else 0.6 * cost - 0.01,
        "high": None if cost is None else 1.5 * cost + 0.01, "n": n, "formula": "D(τ*) − D(τ_healthy)",
        "text": "Not computed yet." if cost is None else f"{title} takes {cost:.3f} of Dice.",
        "needs_labels": needs_labels, "deployable": not needs_labels,
        "kind": "what-if" if what_if else "computed", "what_if": what_if, "missing": missing,
    }  # fmt: skip


def _decisions(dice: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for over in ("score", "layers"):
        for k, kind in enumerate(("gaussian", "mixture", "kde")):
            mean = (dice["mean"] or 0.0) + 0.02 * k + (0.03 if over == "layers" else 0.0)
            found.append(
                {
                    "name": f"{kind} over {over}, validation share", "over": over, "kind": kind,
                    "threshold": 3.9 if over == "score" and k == 0 else None, "mean_dice": mean, "low": mean - 0.05,
                    "high": mean + 0.06, "n": dice["n"],
                    "explain": "The ratio rises with the score: this equals one threshold." if k == 0 else
                    "Two crossings: not a threshold.",
                }
            )  # fmt: skip
    return found


def _what_if(layer_set: str, ids: list[str]) -> dict[str, Any]:
    variants = []
    for k, mm in enumerate((1, 2, 3)):
        gain = (0.03, 0.081, 0.05)[k]
        pair = {"baseline": 0.21, "variant": 0.21 + gain, "gain": gain, "low": gain - 0.06, "high": gain + 0.09}
        test = {
            **pair, "n": len(ids), "false_ml_before": 9.1, "false_ml_after": 5.2,
            "subjects": [{"subject_id": i, "before": 0.2, "after": 0.2 + gain} for i in ids],
        }  # fmt: skip
        variants.append(
            {
                "id": f"{mm}mm", "title": f"mask eroded by {mm} mm", "deployable": True, "needs_labels": False,
                "settings": {"mm": mm}, "validation": {**pair, "n": 8},
                "validation_by_protocol": {"healthy": {**pair, "n": 8}, "validation": {**pair, "n": 8}},
                "test": {"healthy": test, "validation": None},
            }
        )  # fmt: skip
    return {
        "name": "erode-mask", "title": "Score less of the brain's rim", "layer_set": layer_set,
        "formula": "D(mask eroded by k mm) − D(mask)", "needs_labels": False, "deployable": True, "seconds": 41.0,
        "argv": ["what-if", "tiny", "erode-mask"], "variants": variants, "notes": [],
    }  # fmt: skip


def _lesions(subject: dict[str, Any], shape: tuple[int, int, int], rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    parts = rng.dirichlet(np.ones(int(rng.integers(1, 4)))) * subject["lesion_ml"]
    for k, volume in enumerate(parts):
        contrast, found = float(rng.normal(2.5, 1.5)), bool(rng.random() < min(0.9, 0.3 + 0.2 * volume))
        rows.append(
            {
                "subject_id": subject["subject_id"], "lesion": k + 1,
                "voxel": [int(size * rng.uniform(0.3, 0.7)) for size in shape],
                "volume_ml": float(volume), "contrast_sd": contrast, "region": str(rng.choice(REGIONS)),
                "ceiling": float(min(0.97, 0.5 + 0.2 * np.log1p(volume))), "ceiling_layer": "input",
                "best_layer": str(rng.choice(["input", "stage1"])), "found": found,
                "why": "found" if found else "low contrast" if contrast < 2 else "smaller than a feature cell",
                "overlap": float(rng.random()) if found else 0.0,
            }
        )  # fmt: skip
    return rows


def _layer(k: int, name: str) -> dict[str, Any]:
    ceiling = 0.9 - 0.15 * k
    bins = ("< 0.1 mL", "0.1 to 1 mL", "1 to 10 mL", "≥ 10 mL")
    return {
        "layer": name, "spacing_mm": 4.0 * 2**k, "union": ceiling - 0.03, "band_limited": ceiling - 0.01,
        "ceiling": ceiling, "low": ceiling - 0.05, "high": ceiling + 0.04,
        "by_size": [{"bin": b, "n": 3, "ceiling": min(0.98, ceiling - 0.3 + 0.12 * j)} for j, b in enumerate(bins)],
    }  # fmt: skip


def _mean(values: list[float]) -> dict[str, Any]:
    found = mean_interval(values, seed=0, n_resamples=500)
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n}
