"""The table of post-processings: rows with figures, the best of them, what was optimism, what must be noted."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.detectors.capabilities import LayerSets, can, own_filters
from core.metrics.bootstrap import mean_interval, paired_difference
from core.runs.listing import open_run
from core.study.map_filters import Counts, Filters, PostProcessing
from core.study.stored_scores import RunScores, open_scores, set_id
from core.types import LayerSet

VERSION = 1
"""Counts up whenever the same scores would give other figures."""
PROTOCOLS = ("healthy", "validation")
N_CANDIDATES = 56
"""Thresholds tried per processed map with the component filter, beside the exact optimum without it."""


@dataclass(frozen=True)
class SearchStudy:
    """What every job needs to know; crosses processes."""

    directory: str
    layers: LayerSet
    quantile: float
    fp_ml_per_scan: float | None
    axes: Mapping[str, tuple[float, ...]]

    @property
    def maps(self) -> list[tuple[float, int]]:
        """Every (smoothing, median): what has to be filtered anew."""
        return [(s, int(m)) for s, m in itertools.product(self.axes["smoothing_mm"], self.axes["median_voxels"])]

    def open(self) -> RunScores:
        path = Path(self.directory)
        return open_scores(open_run(path.parent, path.name))


def result_table(
    scores: RunScores, study: SearchStudy, chosen: Mapping[Filters, Any], subjects: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What a search for post-processing found, as it is stored."""
    rows = _rows(study, chosen, subjects)
    shipped = asdict(shipped_settings(scores))
    base = next(row for row in rows if _settings(row) == shipped)
    losses = [c["candidate_loss"] for c in chosen.values() if c["candidate_loss"] is not None]
    protocols = PROTOCOLS if losses else PROTOCOLS[:1]
    for row in rows:
        for protocol in (p for p in protocols if row[p] is not None and base[p] is not None):
            _pair(row[protocol], base[protocol])
    result = {
        "version": VERSION,
        "run_id": scores.run.run_id,
        "layer_set": set_id(study.layers),
        "unit": scores.unit,
        "space": "working",
        "quantile": study.quantile,
        "fp_ml_per_scan": study.fp_ml_per_scan,
        "axes": {name: list(values) for name, values in study.axes.items()},
        "test_subjects": [s["subject_id"] for s in subjects if s["lesion"]],
        "healthy_subjects": [s["subject_id"] for s in subjects if s["healthy"]],
        "n_validation": len(scores.subjects("validation")) if losses else 0,
        "rows": rows,
        "candidates": N_CANDIDATES,
        "candidate_loss": max(losses) if losses else None,
        "shipped": {protocol: _quoted(base, protocol) for protocol in protocols},
        "best_on_validation": {p: _best(rows, p, "validation_dice", shipped) for p in protocols} if losses else None,
        "best_on_test": {p: {**best, "oracle": True} for p in protocols if (best := _best(rows, p, "dice", shipped))},
    }
    return result | {"optimism": _optimism(result), "notes": _notes(scores, result, losses)}


def _rows(
    study: SearchStudy, chosen: Mapping[Filters, Any], subjects: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    axes = study.axes
    rows = []
    for smoothing, median, erosion, (m, smallest) in itertools.product(
        axes["smoothing_mm"], axes["median_voxels"], axes["erosion_voxels"], enumerate(axes["min_component_mm3"])
    ):
        one = (smoothing, int(median), int(erosion))
        choice = chosen[one]
        row: dict[str, Any] = {
            "smoothing_mm": smoothing,
            "median_voxels": int(median),
            "erosion_voxels": int(erosion),
            "min_component_mm3": smallest,
            "healthy": {"threshold": choice["healthy"], "validation_dice": choice["healthy_dice"][m]},
            "validation": None,
        }
        if choice["validation"] is not None:
            best = choice["validation"][m]
            row["validation"] = {"threshold": best["threshold"], "validation_dice": best["dice"]}
        for p, protocol in enumerate(PROTOCOLS):
            if row[protocol] is not None:
                row[protocol] |= _figures([(s, s["rows"][one][m][p]) for s in subjects])
        rows.append(row)
    return rows


def _figures(judged: Sequence[tuple[Mapping[str, Any], Counts]]) -> dict[str, Any]:
    dice = [d for _, counts in judged if (d := counts.dice) is not None]
    healthy = [counts for subject, counts in judged if subject["healthy"]]
    mean = mean_interval(dice, seed=0, purpose="dice")
    return {
        "dice": mean.mean,
        "low": mean.low,
        "high": mean.high,
        "n": mean.n,
        "false_ml": float(np.mean([c.false_ml for c in healthy])) if healthy else None,
        "false_components": float(np.mean([c.components for c in healthy])) if healthy else None,
        "subjects": dice,
    }


def _pair(figures: dict[str, Any], base: Mapping[str, Any]) -> None:
    """Adds the paired gain over the run's own setting, with its interval."""
    gain = paired_difference(figures["subjects"], base["subjects"], seed=0)
    figures |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}


def _settings(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in asdict(PostProcessing())}


def _quoted(row: Mapping[str, Any], protocol: str) -> dict[str, Any]:
    figures = {key: value for key, value in row[protocol].items() if key != "subjects"}
    return {"settings": _settings(row), "protocol": protocol, **figures}


def _best(
    rows: Sequence[Mapping[str, Any]], protocol: str, figure: str, shipped: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The row with the highest figure; among equals the one that changes least, then the first."""
    rated = [row for row in rows if row[protocol] is not None and row[protocol][figure] is not None]
    if not rated:
        return None

    def rank(row: Mapping[str, Any]) -> tuple[float, int]:
        return float(row[protocol][figure]), -sum(row[name] != value for name, value in shipped.items())

    return _quoted(max(rated, key=rank), protocol)


def _optimism(result: Mapping[str, Any]) -> dict[str, float | None]:
    """What choosing the combination on the test labels would add over choosing it on validation."""
    chosen, oracle = result["best_on_validation"] or {}, result["best_on_test"]
    return {p: oracle[p]["dice"] - chosen[p]["dice"] for p in oracle if chosen.get(p)}


def _notes(scores: RunScores, result: Mapping[str, Any], losses: Sequence[float]) -> list[str]:
    notes = []
    if not losses:
        notes.append(
            "Missing: lesion masks of validation subjects. Nothing can be chosen honestly; the figures at the healthy "
            "threshold stand, and the best on test is an oracle."
        )
    else:
        notes.append(
            f"With the component filter {N_CANDIDATES} thresholds are tried; without it, where the exact optimum is "
            f"known, these alone lose at most {max(losses):.4f} mean validation Dice."
        )
        notes.append(
            f"The best of {len(result['rows'])} combinations on validation is optimistic there; only its test figures "
            "are quoted as a gain."
        )
    if not result["test_subjects"]:
        notes.append("There is no test subject with a lesion: no Dice and no gain, only false positives.")
    if edges := _at_the_edge(result):
        notes.append(f"The best on validation is the largest value tried of {', '.join(edges)}: more may be better.")
    notes.append(
        "Erosion is counted in layers of 6-neighbours (taxicab); the what-if erode-mask counts Euclidean mm, so "
        "the two do not leave out the same voxels."
    )
    notes.append("Healthy thresholds are taken before the component filter, so filtered maps lie below their target.")
    if not can(scores.detector, LayerSets) and any(filters_of(scores).values()):
        notes.append("This detector stores maps that it has filtered itself; the settings come on top of that.")
    return notes


def _at_the_edge(result: Mapping[str, Any]) -> list[str]:
    """Settings of which the best on validation, under any protocol, is the largest that was tried."""
    best = [b["settings"] for b in (result["best_on_validation"] or {}).values()]
    return [name for name, values in result["axes"].items() if any(s[name] == values[-1] for s in best)]


def shipped_settings(scores: RunScores) -> PostProcessing:
    """What the run itself does. Detectors that store finished maps are taken as they are: all zeros."""
    if not can(scores.detector, LayerSets):
        return PostProcessing()
    own = filters_of(scores)
    return PostProcessing(float(own["smoothing_mm"]), int(own["median_voxels"]))


def filters_of(scores: RunScores) -> dict[str, float]:
    """The filters that the run's detector has of its own."""
    smoothing_mm, median_voxels = own_filters(scores.detector)
    return {"smoothing_mm": float(smoothing_mm), "median_voxels": int(median_voxels)}


def recipe_text(fields: Mapping[str, float], missing: Mapping[str, float]) -> str:
    """What of a post-processing a recipe can say, and what it has no field for, in words."""
    said = ", ".join(f"{name} = {value:g}" for name, value in fields.items())
    unsaid = ", ".join(f"{name} = {value:g}" for name, value in missing.items())
    parts = [f"In the recipe: {said}." if said else "Nothing to change in the recipe."]
    if unsaid:
        parts.append(f"No recipe field yet for {unsaid}: only this exploration applies it.")
    return " ".join(parts)
