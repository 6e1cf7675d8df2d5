"""A run in a few numbers, for tables on a terminal and in the browser."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from core.evaluated import read_metrics
from core.store import Run, current_status, stage_done
from data.errors import IntegrityError


def run_summary(run: Run) -> dict[str, Any]:
    """Who it is and, once evaluated, its headline numbers under every threshold protocol (native space).

    IntegrityError when its evaluation is damaged; `run_identity` can still be told.
    """
    summary = run_identity(run)
    if not summary["evaluated"]:
        return summary
    try:
        return summary | _headline(read_metrics(run))
    except (IntegrityError, OSError, KeyError, TypeError, AttributeError) as problem:
        raise IntegrityError(
            f"The evaluation of run {run.run_id} cannot be read: it was damaged or edited ({problem!r}). "
            f"Make it again: python cli.py evaluate {run.run_id}"
        ) from problem


def run_identity(run: Run) -> dict[str, Any]:
    """What a run is, without its numbers."""
    record = run.record
    return {
        "run_id": run.run_id,
        "name": run.name,
        "kind": run.kind,
        "status": current_status(run),
        "created": record["created"],
        "detector": record["recipe"].get("kind"),
        "cohort": cohort_title(record["cohort"]),
        "fingerprint": record["cohort"].get("fingerprint"),
        "encoder": record.get("parents", {}).get("encoder"),
        "split": {role: len(ids) for role, ids in record["split"].items()},
        "set_aside": len(record["cohort"].get("set_aside", [])),
        "n_used": len(record["cohort"].get("subjects", [])),
        "n_total": record["cohort"].get("n_total"),
        "evaluated": stage_done(run, "evaluation"),
    }


def of_comparison(run_id: str) -> bool:
    """Whether a run was made by compare-pretraining, which names every run of a comparison so."""
    return run_id.startswith("cmp-")


def leading(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The summary to open with: best mean Dice on *validation* labels, else the newest. Test labels choose nothing.

    Runs of a comparison of trainings lead only where there is no other.
    """
    own = [row for row in rows if not of_comparison(str(row.get("run_id", "")))] or list(rows)
    rated = [row for row in own if row.get("validation_mean_dice") is not None]
    return max(rated, key=lambda row: float(row["validation_mean_dice"])) if rated else own[0]


def cohort_title(cohort: Mapping[str, Any]) -> str | None:
    """The cohort's name; a table called cohort.csv says nothing, so then the name of its folder."""
    name = cohort.get("name")
    if name != "cohort" or not cohort.get("path"):
        return name
    return PurePath(cohort["path"]).parent.name.lstrip(".") or name


def headline_numbers(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Dice under every protocol with intervals, ⌈Dice⌉, AUPRC with prevalence, false positives of healthy scans."""
    pooled = figures["pooled"] or {}
    protocols = figures["protocols"]
    return {
        "dice": {name: _dice(protocol) for name, protocol in protocols.items()},
        "ceil_dice": (figures["ceil_dice"] or {}).get("dice"),
        "auprc": pooled.get("auprc"),
        "prevalence": pooled.get("prevalence"),
        "auroc": pooled.get("auroc"),
        "healthy_fp_ml": {n: p.get("false_positive_ml_per_healthy_scan") for n, p in protocols.items()},
    }


def layer_table(metrics: Mapping[str, Any], space: str = "working") -> list[dict[str, Any]]:
    """One row per layer set: AUPRC, ⌈Dice⌉, Dice at the deployable thresholds with intervals."""
    rows = []
    for name, spaces in metrics["sets"].items():
        figures = spaces[space]
        if figures is None:
            continue
        numbers = headline_numbers(figures)
        rows.append(
            {
                "layers": name,
                "n_layers": name.count("+") + 1,
                "auprc": numbers["auprc"],
                "mean_auprc": (figures["per_subject_auprc"] or {}).get("mean"),
                "auroc": numbers["auroc"],
                "ceil_dice": numbers["ceil_dice"],
                "healthy": numbers["dice"].get("healthy"),
                "validation": numbers["dice"].get("validation"),
                "oracle_set": numbers["dice"].get("oracle_set"),
                "validation_mean_dice": figures.get("validation_mean_dice"),
                "headline": name == metrics["headline"],
            }
        )
    return rows


def _headline(metrics: Mapping[str, Any]) -> dict[str, Any]:
    figures = metrics["sets"][metrics["headline"]]["native"]
    return {
        "space": metrics["space"],
        "headline": metrics["headline"],
        "headline_rule": metrics["headline_rule"],
        "n_layer_sets": len(metrics["sets"]),
        "unit": metrics["unit"],
        "n_lesion_subjects": figures["n_lesion_subjects"],
        "n_healthy_subjects": figures["n_healthy_subjects"],
        "validation_mean_dice": figures.get("validation_mean_dice"),
        "subject_level": _without_scores(metrics.get("subject_level")),
        **headline_numbers(figures),
    }


def _without_scores(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Healthy against ill test scans by each rule; None for an evaluation from before there was such a figure."""
    if found is None:
        return None
    return {
        rule: None if one is None else {key: value for key, value in one.items() if key != "scores"}
        for rule, one in found.items()
    }


def _dice(protocol: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "mean": protocol["mean_dice"],
        "low": protocol["ci_low"],
        "high": protocol["ci_high"],
        "n": protocol["n"],
        "threshold": protocol["threshold"],
        "oracle": protocol["oracle"],
        "needs_labels": protocol["needs_labels"],
    }


def layer_contributions(
    rows: Sequence[Mapping[str, Any]], layers: Sequence[str]
) -> list[tuple[str, float, float | None]]:
    """Per layer: pooled AUPRC alone, and AUPRC of all layers minus AUPRC without it (None for the only layer)."""
    auprc = {frozenset(row["layers"].split("+")): row["auprc"] or 0.0 for row in rows}
    everything = frozenset(layers)
    result: list[tuple[str, float, float | None]] = []
    for layer in layers:
        rest = everything - {layer}
        added = auprc[everything] - auprc[rest] if rest else None
        result.append((layer, auprc[frozenset({layer})], added))
    return result
