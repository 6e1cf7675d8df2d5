"""Which errors cost how much Dice: a record of counts per subject, kept with the run, and the map they merge into."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float64

from core.diagnosis.errors.categories import DEFAULTS, VERSION, CategorySettings, label_errors
from core.diagnosis.errors.category_table import CATEGORIES, FALSE_POSITIVES, MISSED, Category
from core.diagnosis.errors.reference import HealthyReference
from core.diagnosis.errors.shapley import ShapleyCosts, shapley_costs
from core.metrics.bootstrap import Interval, mean_interval
from core.progress import Progress
from core.runs.provenance import fingerprint
from core.runs.stages import keep_json, kept_json, stage_name
from core.study.cases import case_of, made_from
from core.study.stored_scores import RunScores, set_id
from core.types import LayerSet
from data.errors import BadInput

Record = dict[str, Any]
"""Counts of one subject, for JSON: subject_id, key, threshold, cell_mm, healthy, hits, fp, fn, n_lesion, voxel_ml."""
DIRECTORY = "diagnosis-errors"
KEPT = 8
"""Records kept per subject and layer set: one for each threshold that was looked at last."""
SPACE = Category(
    "native_space",
    "space",
    "Working grid to native space",
    "Dice on the working grid less Dice in the scan's own space, at the deployed thresholds; below 0 when it gains.",
    "Use a finer working grid, or evaluate where you segment.",
)


def error_records(
    scores: RunScores,
    subject_ids: Sequence[str],
    layers: LayerSet,
    threshold: float,
    reference: HealthyReference,
    *,
    settings: CategorySettings = DEFAULTS,
    progress: Progress | None = None,
    workers: int = 2,
) -> list[Record]:
    """One record per subject, in order: read from the run where nothing it depends on has changed, else counted now.

    So a new subject never makes the others be scanned again. Counting takes about 20 ms per subject of 190,000 brain
    voxels, so threads do; a process would take longer to start.
    """
    cell = cell_mm(scores, layers)

    def one(subject_id: str) -> Record:
        return _record(scores, subject_id, layers, threshold, reference, cell, settings)

    if progress is None:
        return list(_mapped(one, subject_ids, workers))
    records = []
    with progress.task("Counting errors by category", len(subject_ids)) as advance:
        for record in _mapped(one, subject_ids, workers):
            records.append(record)
            advance(1, record["subject_id"])
    return records


def cell_mm(scores: RunScores, layers: LayerSet) -> float:
    """Edge of a feature cell, mm: that of the finest layer in the set, as no set resolves less than its finest layer.

    The cube root of the cell's volume; a voxel of the working grid for detectors without features.
    """
    if scores.layout is None:
        spacing = scores.run.record["preprocessing"]["spacing_mm"]
        return float(spacing)
    return float(min(scores.layout.layer_grids[layer].voxel_volume_mm3 for layer in layers) ** (1 / 3))


def error_map(
    records: Sequence[Record], native_dice: Mapping[str, float] | None = None, *, seed: int = 0
) -> dict[str, Any]:
    """What every category costs, over the subjects with a lesion: Dice + Σ costs = 1 for each and for the mean.

    `native_dice` by subject adds one more entry, what the way from the working grid to native space costs; Dice is
    then the native one. `only` and `all_but` are means of `ShapleyCosts` and do not add up. Intervals: 95 % percentile
    bootstrap over subjects. `hollow`: the interval holds 0. `n_subjects`: those with such an error. BadInput without a
    subject that has a lesion.
    """
    bearing = [r for r in records if r["n_lesion"]]
    if not bearing:
        raise BadInput("No subject with a lesion: Dice is undefined, so nothing costs it any. Look at healthy scans.")
    costs = costs_of(bearing)
    space = _space_costs(bearing, costs, native_dice)
    dice = costs.dice if space is None else costs.dice - space
    entries = [_entry(category, k, bearing, costs, seed) for k, category in enumerate(CATEGORIES)]
    if space is not None:
        entries.append(_space_entry(space, seed))
    each = costs.cost if space is None else np.column_stack([costs.cost, space])
    ids = [entry["id"] for entry in entries]
    return {
        "space": "working" if space is None else "native",
        "dice": _interval(mean_interval(dice, seed=seed, purpose="dice")),
        "error_map": entries,
        "subjects": [
            {
                "subject_id": r["subject_id"],
                "dice": float(dice[n]),
                "error_map": dict(zip(ids, each[n].tolist(), strict=True)),
                "counts": {"hits": r["hits"], "fp": dict(r["fp"]), "fn": dict(r["fn"])},
            }
            for n, r in enumerate(bearing)
        ],
    }


def costs_of(bearing: Sequence[Record]) -> ShapleyCosts:
    """Shapley costs of records of subjects with a lesion; categories in the order of the table."""
    return shapley_costs(
        np.array([r["hits"] for r in bearing], dtype=np.int64),
        np.array([[r["fp"][name] for name in FALSE_POSITIVES] for r in bearing], dtype=np.int64),
        np.array([[r["fn"][name] for name in MISSED] for r in bearing], dtype=np.int64),
    )


def _mapped(one: Callable[[str], Record], subject_ids: Sequence[str], workers: int) -> Iterator[Record]:
    if workers < 2 or len(subject_ids) < 2:
        yield from map(one, subject_ids)
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(one, subject_ids)


def _record(
    scores: RunScores,
    subject_id: str,
    layers: LayerSet,
    threshold: float,
    reference: HealthyReference,
    cell: float,
    settings: CategorySettings,
) -> Record:
    name = stage_name(DIRECTORY, set_id(layers), subject_id)
    key = _key(scores, subject_id, layers, threshold, reference, cell, settings)
    kept: list[Record] = (kept_json(scores.run, name) or {}).get("records", [])
    for record in kept:
        if record["key"] == key:
            return record
    case = case_of(scores, subject_id, layers)
    found = label_errors(case, threshold, reference, cell, settings)
    record = {
        "subject_id": subject_id,
        "key": key,
        "threshold": float(threshold),
        "cell_mm": cell,
        "healthy": case.healthy,
        "hits": found.hits,
        "fp": dict(found.fp),
        "fn": dict(found.fn),
        "n_lesion": found.hits + sum(found.fn.values()),
        "voxel_ml": case.voxel_ml,
    }
    keep_json(scores.run, name, {"records": [*kept, record][-KEPT:]})
    return record


def _key(
    scores: RunScores,
    subject_id: str,
    layers: LayerSet,
    threshold: float,
    reference: HealthyReference,
    cell: float,
    settings: CategorySettings,
) -> str:
    """Fingerprint of all that the counts depend on."""
    return fingerprint(
        {
            "version": VERSION,
            "settings": asdict(settings),
            **made_from(scores, subject_id),
            "layers": list(layers),
            "threshold": float(threshold),
            "cell_mm": cell,
            "reference": reference.key,
        }
    )


def _space_costs(
    bearing: Sequence[Record], costs: ShapleyCosts, native_dice: Mapping[str, float] | None
) -> Float64[np.ndarray, " subjects"] | None:
    if native_dice is None:
        return None
    missing = [r["subject_id"] for r in bearing if r["subject_id"] not in native_dice]
    if missing:
        raise BadInput(f"No native Dice for {len(missing)} subject(s): {', '.join(missing[:3])}. Give one for each.")
    return costs.dice - np.array([native_dice[r["subject_id"]] for r in bearing], dtype=np.float64)


def _entry(category: Category, k: int, bearing: Sequence[Record], costs: ShapleyCosts, seed: int) -> dict[str, Any]:
    voxels = np.array([r[category.kind][category.id] for r in bearing])
    return {
        **asdict(category),
        **_cost(costs.cost[:, k], seed),
        "only": float(costs.only[:, k].mean()),
        "all_but": float(costs.all_but[:, k].mean()),
        "voxels": int(voxels.sum()),
        "ml": float(sum(n * r["voxel_ml"] for n, r in zip(voxels.tolist(), bearing, strict=True))),
        "n_subjects": int(np.count_nonzero(voxels)),
    }


def _space_entry(space: Float64[np.ndarray, " subjects"], seed: int) -> dict[str, Any]:
    """No voxels of its own; what all others leave is not known, since their repair would change the native map too."""
    return {
        **asdict(SPACE),
        **_cost(space, seed),
        "only": float(space.mean()),
        "all_but": None,
        "voxels": 0,
        "ml": 0.0,
        "n_subjects": int(np.count_nonzero(space)),
    }


def _cost(values: Float64[np.ndarray, " subjects"], seed: int) -> dict[str, Any]:
    if values.any():
        found = mean_interval(values, seed=seed, purpose="error map")
    else:
        found = Interval(0.0, 0.0, 0.0, len(values))
    hollow = found.low is None or found.high is None or found.low <= 0 <= found.high
    return {"cost": found.mean, "low": found.low, "high": found.high, "hollow": hollow}


def _interval(found: Interval) -> dict[str, Any]:
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n}
