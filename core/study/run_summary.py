"""A run in a few numbers, for tables on a terminal and in the browser."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from core.runs.evaluated import read_metrics
from core.runs.listing import current_status, index_directory, run_names, status_now
from core.runs.provenance import fingerprint, numeric_versions
from core.runs.remembered import identity_of, remembered
from core.runs.run_record import Run, read_run
from core.runs.stages import refuse_lost_manifest, stage_directory, stage_done, stage_file, stage_json
from core.runs.versions import version_notes
from data.errors import BadInput, IntegrityError
from data.files import read_manifest

HEADLINE = "headline.json"
"""Beside the metrics, which are a thousand times as long: what a list of runs tells of them."""
READ = ("run.json", "evaluation/manifest.json", "evaluation/metrics.json", "evaluation/headline.json")
"""What a row says depends on these files of a run, and on whether a run that is not finished is alive."""


def run_rows(runs: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """`run_summary` of every run, newest first, and in words what is wrong with folders that are no runs here.

    A run that is damaged has its "problem" in words in its row, and what is still known of it. Only what has changed
    since it was last asked, in this process or another, is read. "content" changes with every file that a row tells of.
    """
    apart: dict[str, str] = {}
    present = numeric_versions()

    def make(name: str) -> tuple[Any, bool]:
        try:
            row = _row(runs, name, present)
        except BadInput as problem:  # no run, or one of a newer version
            apart[name] = str(problem)
            return None, False
        return row, "problem" not in row

    wanted = {name: identity_of(*(f"{runs}/{name}/{file}" for file in READ)) for name in run_names(runs)}
    found = remembered(index_directory(runs) / "rows.json", _maker(present), wanted, make)
    rows = [_as_now(runs, row, wanted[name].text) for name, row in found.items() if row is not None]
    told = [text for name, text in apart.items() if (runs / name).exists()]  # one deleted just now is no problem
    return sorted(rows, key=lambda row: (row["sequence"], row["run_id"]), reverse=True), told


def run_summary(run: Run) -> dict[str, Any]:
    """Who it is and, once evaluated, its headline numbers under every threshold protocol (native space).

    IntegrityError when its evaluation is damaged; `run_identity` can still be told.
    """
    return _with_numbers(run, run_identity(run))


def _with_numbers(run: Run, identity: Mapping[str, Any]) -> dict[str, Any]:
    if not identity["evaluated"]:
        refuse_lost_manifest(run, "evaluation")
        return dict(identity)
    try:
        numbers = _numbers(run)
    except (*_STRANGE, OSError) as problem:
        raise IntegrityError(
            f"The evaluation of run {run.run_id} cannot be read: it was damaged or edited ({problem!r}). "
            f"Make it again: python cli.py evaluate {run.as_argument}"
        ) from problem
    if wrong := _no_numbers(numbers, calibrated=bool(identity["split"].get("calibration"))):
        raise IntegrityError(
            f"The evaluation of run {run.run_id} was edited: {', '.join(wrong[:3])} is no number. "
            f"Make it again: python cli.py evaluate {run.as_argument}"
        )
    return {**identity, **numbers}


def run_identity(run: Run) -> dict[str, Any]:
    """What a run is, without its numbers."""
    record = run.record
    return {
        "run_id": run.run_id,
        "name": run.name,
        "kind": run.kind,
        "sequence": run.sequence,
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
        "stages": sorted(record["stages"]),
        "evaluated": stage_done(run, "evaluation"),
    }


_STRANGE = (IntegrityError, KeyError, TypeError, AttributeError, ValueError, IndexError, RecursionError)
"""What reading a file raises that was edited into another shape."""


def _row(runs: Path, name: str, present: Mapping[str, str]) -> dict[str, Any]:
    """What can be told of a run; BadInput for a folder that is no run here."""
    try:
        run = read_run(runs / name)
        told = run_identity(run) | {"status": run.status, "version_notes": version_notes(run, present)}
    except BadInput:
        raise
    except (*_STRANGE, OSError) as problem:
        text = str(problem) if isinstance(problem, IntegrityError) else _edited(runs / name, problem)
        return {**_UNKNOWN, "run_id": name, "name": name, "problem": text}
    try:
        return _with_numbers(run, told)
    except IntegrityError as problem:
        return told | {"evaluated": False, "problem": str(problem)}


_UNKNOWN: Mapping[str, Any] = {
    "kind": "unknown",
    "sequence": 0,
    "status": "damaged",
    "created": None,
    "detector": None,
    "cohort": None,
    "fingerprint": None,
    "encoder": None,
    "split": {},
    "set_aside": None,
    "n_used": None,
    "n_total": None,
    "stages": [],
    "version_notes": [],
    "evaluated": False,
}
"""Of a run whose record cannot be read."""


def _edited(directory: Path, problem: Exception) -> str:
    return (
        f"{directory / 'run.json'} is damaged or was edited ({problem!r}). "
        f"Put back a copy of it, or delete {directory} and make the run again."
    )


def _as_now(runs: Path, row: Mapping[str, Any], content: str) -> dict[str, Any]:
    """A remembered row, with what can change without any file of READ: whether its process is alive."""
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    status = status_now(runs / row["run_id"], row["status"]) if row["status"] == "running" else row["status"]
    return {**row, "status": status, "content": digest}


def _maker(present: Mapping[str, str]) -> str:
    """Changes with this module and with the versions that are here, so that no row of others is believed."""
    return fingerprint([hashlib.sha256(Path(__file__).read_bytes()).hexdigest(), present])


def _no_numbers(numbers: Mapping[str, Any], *, calibrated: bool) -> list[str]:
    """Which of a row's figures are neither a finite number nor absent."""
    figures = {name: numbers[name] for name in ("ceil_dice", "auprc", "prevalence", "auroc", "validation_mean_dice")}
    figures |= {name: numbers[name] for name in ("n_lesion_subjects", "n_healthy_subjects")}
    for protocol, dice in numbers["dice"].items():
        figures |= {f"Dice, {protocol}, {name}": dice[name] for name in ("mean", "low", "high", "n", "threshold")}
    figures |= {f"false positives, {protocol}": ml for protocol, ml in numbers["healthy_fp_ml"].items()}
    figures["Dice, healthy"] = None if "healthy" in numbers["dice"] or not calibrated else "missing"
    return [name for name, value in figures.items() if not _is_number(value)]


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and math.isfinite(value))


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


def _numbers(run: Run) -> dict[str, Any]:
    """`headline_of` the evaluation, from its own small file; what it was taken from must be whole too."""
    if HEADLINE not in read_manifest(stage_directory(run, "evaluation"))["files"]:
        return headline_of(read_metrics(run))
    stage_file(run, "evaluation", "metrics.json")
    numbers: dict[str, Any] = stage_json(run, "evaluation", HEADLINE)
    return numbers


def headline_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What lists and tables tell of an evaluation: the figures of its headline layer set in native space."""
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
