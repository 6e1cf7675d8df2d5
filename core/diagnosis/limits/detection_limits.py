"""What a detector can find at all: lesions of known size, contrast and site planted into the user's own healthy scans.

No label is needed. Thresholds come from healthy calibration scans, never from the scan that is planted: a calibration
scan that is planted is judged at a threshold of all the others. Everything is on the working grid.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from core.detectors.capabilities import LayerSets, can
from core.diagnosis.limits.bench import (
    METHOD,
    Bench,
    Components,
    LimitSettings,
    Scorer,
    judge_planting,
    make_bench,
    segment_map,
)
from core.diagnosis.limits.interference import GAP_MM, limit_notes, measure_influence_mm, measure_interference
from core.diagnosis.limits.planted_lesions import (
    Planting,
    check_design,
    design,
    host_of,
    share_out,
)
from core.diagnosis.limits.tables import contrast_limits, sensitivity_cells, strength_cells
from core.disk_plan import limits_bytes
from core.metrics.healthy_threshold import QUANTILE, segment
from core.metrics.lesions import MIN_IOU, MIN_OVERLAP, MIN_VOLUME_MM3, healthy_false_positives
from core.progress import Progress
from core.randomness import stream
from core.runs.evaluated import read_metrics
from core.runs.provenance import fingerprint
from core.runs.run_record import Run
from core.runs.stages import record_duration, stage, stage_directory, stage_done, stage_name, stored_json, undamaged
from core.runs.store import lock
from core.study.data_source import PreparedVolumes
from core.study.fitted import load_detector
from core.study.run_scans import prepared_volumes
from core.study.stored_scores import RunScores, open_scores, set_id
from core.types import Detector, LayerSet, ScoreMap
from data.errors import BadInput
from data.files import read_manifest
from data.json_files import write_json
from data.ranges import refuse_out_of_range
from data.room import require_room
from data.volume import Volume

DIRECTORY = "detection-limits"
MOST_CHANGED = 0.1
"""Share of the lesions found alone or among others that may be found but one way; beyond it each is planted alone."""
FEW_HOSTS, MOST_HOSTS = 4, 24
_BATCH_BYTES = 4e8


def run_detection_limits(
    run: Run,
    progress: Progress,
    *,
    layer_set: str | None = None,
    diameters_mm: Sequence[float] = LimitSettings.diameters_mm,
    contrasts_sd: Sequence[float] = LimitSettings.contrasts_sd,
    sites: Sequence[str] = LimitSettings.sites,
    scans: Sequence[str] | None = None,
    per_cell: int = LimitSettings.per_cell,
    fp_ml_per_scan: Sequence[float] = LimitSettings.fp_ml_per_scan,
    seed: int = 0,
) -> dict[str, Any]:
    """Sensitivity of a fitted run over size x contrast x site, at several false-positive levels. No label is read.

    `layer_set`: that of the headline (all layers before an evaluation). `scans`: healthy subjects to plant into, from
    the calibration or test split; by default the healthy test scans, and with fewer than 4 of them the calibration
    scans too. Committed to `run/detection-limits/<layer set>`, and read from there when nothing has changed.
    """
    scores = open_scores(run)
    layers = _layers(scores, layer_set)
    quantile, own_fp_ml = _own_rule(run)
    sizes, levels = tuple(map(float, diameters_mm)), tuple(map(float, fp_ml_per_scan))
    contrasts = tuple(map(float, contrasts_sd))
    settings = LimitSettings(sizes, contrasts, tuple(sites), per_cell, levels, quantile, own_fp_ml, seed)
    check_design(settings.diameters_mm, settings.contrasts_sd, settings.sites, per_cell)
    refuse_out_of_range(settings)
    hosts, why = _hosts(scores, scans, seed)
    made_from = _made_from(run, set_id(layers), settings, hosts)
    stored = undamaged(lambda: stored_detection_limits(run, set_id(layers)), progress.say)
    if stored is not None and stored["made_from"] == made_from:
        progress.say(f"Detection limits of {run.run_id} ({set_id(layers)}) are there already; nothing has changed.")
        return stored
    require_room(run.directory, _planned_bytes(settings), "The measurement of detection limits")
    began = time.perf_counter()
    with lock(run) as run:
        result, lesions = measure_limits(
            scorer_of(load_detector(run), layers),
            _volumes(run, scores.subjects("calibration")),
            _volumes(run, hosts),
            _volumes(run, scores.subjects("train")),
            settings,
            progress,
        )
        result |= {"run_id": run.run_id, "layer_set": set_id(layers), "unit": scores.unit, "made_from": made_from}
        asked = None if scans is None else hosts
        about = {"hosts_rule": why, "scans_asked": asked, "notes": [why, *result["notes"]]}
        with stage(run, stage_name(DIRECTORY, set_id(layers))) as scratch:
            write_json(scratch / "result.json", result | about)
            write_json(scratch / "lesions.json", lesions)
        record_duration(run, stage_name(DIRECTORY, set_id(layers)), began)
    committed = stored_detection_limits(run, set_id(layers))
    assert committed is not None
    return committed


def _planned_bytes(settings: LimitSettings) -> int:
    cells = len(settings.diameters_mm) * len(settings.contrasts_sd) * len(settings.sites)
    return limits_bytes(cells, 1 + len(settings.fp_ml_per_scan), settings.per_cell)


def stored_detection_limits(run: Run, layer_set: str) -> dict[str, Any] | None:
    """The committed result for one layer set, as long as it belongs to the run as it is.

    None when there is none, when the detector, the splits, the scans or the rule of the run's own threshold (quantile
    or mL per healthy scan, as last evaluated) have changed since.
    IntegrityError when its bytes are damaged.
    """
    stored: dict[str, Any] | None = stored_json(run, stage_name(DIRECTORY, layer_set))
    if stored is None or not stage_done(run, "detector"):
        return None
    quantile, own_fp_ml = _own_rule(run)
    asked = stored["settings"] | {"quantile": quantile, "own_fp_ml": own_fp_ml}
    hosts = [scan["subject_id"] for scan in stored["scans"]]
    present = _made_from(run, layer_set, _settings_of(asked), hosts)
    return stored if stored["made_from"] == present else None


def scorer_of(detector: Detector, layers: LayerSet) -> Scorer:
    """The detector under one layer set; one with layers takes several volumes at once."""
    if not can(detector, LayerSets):
        return Scorer(lambda volumes: [detector.score(volume) for volume in volumes])

    def score(volumes: Sequence[Volume]) -> list[ScoreMap]:
        distances = detector.distances(volumes, [layers])[0]
        return [detector.to_map(row, volume) for row, volume in zip(distances, volumes, strict=True)]

    layout = detector.layout_
    per_volume = sum(4 * layout.channels[name] * len(rows) for name, rows in layout.layer_positions.items())
    return Scorer(score, int(np.clip(_BATCH_BYTES // per_volume, 1, 16)))


def measure_limits(
    scorer: Scorer,
    calibration: Sequence[Volume],
    hosts: Sequence[Volume],
    reference: Sequence[Volume],
    settings: LimitSettings,
    progress: Progress,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The result, and one record per planted lesion, from volumes alone.

    `calibration`: healthy scans that set the thresholds; `hosts`: healthy scans to plant into, some of which may be
    among them; `reference`: healthy scans that set the unit of contrast. BadInput when a threshold would have none
    but the planted scan to come from.
    """
    lesions = design(settings.diameters_mm, settings.contrasts_sd, settings.sites, settings.per_cell, settings.seed)
    bench = make_bench(scorer, calibration, hosts, reference, settings, progress)
    places = [host_of(volume, settings.sites, settings.diameters_mm) for volume in hosts]
    influence = measure_influence_mm(bench, places[0])
    gap = float(np.clip(influence, *GAP_MM))
    plantings, homeless = share_out(lesions, places, gap, settings.seed)
    if not plantings:
        raise BadInput(
            f"No lesion of {', '.join(f'{d:g}' for d in settings.diameters_mm)} mm fits into the sites "
            f"{', '.join(settings.sites)} of any scan. Give smaller diameters or other sites."
        )
    check = measure_interference(bench, plantings)
    together = check["verdicts_changed"] <= MOST_CHANGED * check["verdicts"]
    if not together:
        plantings, homeless = share_out(lesions, places, gap, settings.seed, alone=True)
    plantings.sort(key=lambda planting: list(bench.before).index(planting.subject_id))
    records = _planted_and_judged(bench, plantings, progress)
    result = {
        "method": METHOD,
        "settings": asdict(settings),
        "rule": f"found: a component of at least {MIN_VOLUME_MM3:g} mm³ covers {MIN_OVERLAP:.0%} of the lesion, "
        f"or their IoU is at least {MIN_IOU:g}; each lesion is matched as if it were the only one",
        "scans": [{"subject_id": i, "thresholds_from": len(bench.calibration.without(i))} for i in bench.before],
        "n_scans": len(bench.before),
        "n_plantings": len(plantings),
        "n_lesions": len(records),
        "gap_mm": gap,
        "influence_mm": influence,
        "interference": check,
        "together": together,
        "healthy_score_sd": bench.calibration.deviation,
        "levels": [_level(bench, number, records) for number in range(len(bench.calibration.levels))],
        "strength": strength_cells(records),
        "notes": limit_notes(settings, homeless, influence, together, hosts[0]),
    }
    return result, records


def _planted_and_judged(bench: Bench, plantings: Sequence[Planting], progress: Progress) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    healthy: tuple[str, list[Components]] = ("", [])  # of the host at hand; its plantings follow one another
    with progress.task("Planting and scoring", len(plantings)) as advance:
        for start in range(0, len(plantings), bench.scorer.batch):
            some = plantings[start : start + bench.scorer.batch]
            planted = [bench.planted(planting) for planting in some]
            maps = bench.scorer.score([volume for volume, _ in planted])
            for planting, (_, footprints), after in zip(some, planted, maps, strict=True):
                host = planting.subject_id
                if host != healthy[0]:
                    healthy = (host, segment_map(bench, host, bench.before[host]))
                records += judge_planting(bench, planting, footprints, after, healthy[1])
            advance(len(some), some[-1].subject_id)
    return records


def _level(bench: Bench, number: int, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Threshold, what it costs on the hosts as they are, and what it finds."""
    level = bench.calibration.levels[number]
    thresholds = {host: bench.calibration.thresholds(host)[number] for host in bench.before}
    masks = {host: segment(bench.before[host], threshold) for host, threshold in thresholds.items()}
    alarms = healthy_false_positives(masks)
    values = list(thresholds.values())
    cells = sensitivity_cells(records, number)
    return {
        "id": level.id,
        "title": level.title,
        "asked_ml_per_scan": level.fp_ml,
        "threshold": {"mean": float(np.mean(values)), "low": min(values), "high": max(values), "by_scan": thresholds},
        "false_positive_ml_per_scan": alarms["ml_per_scan"],
        "false_positive_components_per_scan": alarms["components_per_scan"],
        "false_positive_ml_by_scan": {i: row["ml"] for i, row in alarms["scans"].items()},
        "cells": cells,
        "limits": contrast_limits(cells),
    }


def _hosts(scores: RunScores, asked: Sequence[str] | None, seed: int) -> tuple[list[str], str]:
    """Healthy subjects to plant into, and why these."""
    calibration = scores.subjects("calibration")
    test = [i for i in scores.subjects("test") if scores.is_healthy(i)]
    if not calibration or (len(calibration) < 2 and not test):
        raise BadInput(
            f"Run {scores.run.run_id} has {len(calibration)} calibration scan(s) and {len(test)} healthy test scan(s): "
            "no threshold that is independent of the planted scan. Give at least two calibration scans, or one and a "
            "healthy test scan."
        )
    leave_one_out = "a planted calibration scan is judged at the threshold of all the other calibration scans"
    if asked is not None:
        unknown = [i for i in asked if i not in (*calibration, *test)]
        if unknown or not asked:
            raise BadInput(
                f"Scans {', '.join(unknown) or '(none)'} cannot be planted. Allowed: healthy subjects of the "
                f"calibration or test split: {', '.join([*calibration, *test][:8])} ..."
            )
        return list(
            dict.fromkeys(asked)
        ), f"Planted into the {len(set(asked))} scans that were asked for; {leave_one_out}."
    if len(test) >= FEW_HOSTS or len(calibration) < 2:
        chosen = _some(test, seed)
        return chosen, (
            f"Planted into {len(chosen)} healthy test scans, which set no threshold: thresholds come from all "
            f"{len(calibration)} calibration scans, as when deployed."
        )
    chosen = _some([*test, *calibration], seed)
    return chosen, (
        f"Only {len(test)} healthy test scan(s), so calibration scans are planted too ({len(chosen)} scans in all); "
        f"{leave_one_out}."
    )


def _some(subjects: Sequence[str], seed: int) -> list[str]:
    order = stream(seed, "detection limits scans").permutation(len(subjects))[:MOST_HOSTS]
    return [subjects[i] for i in sorted(order)]


def _layers(scores: RunScores, asked: str | None) -> LayerSet:
    if asked is not None:
        return scores.layer_set(asked)
    if stage_done(scores.run, "evaluation"):
        return scores.layer_set(read_metrics(scores.run)["headline"])
    return scores.layer_sets[-1]


def _own_rule(run: Run) -> tuple[float, float | None]:
    """Quantile and false-positive volume by which the run was evaluated."""
    if not stage_done(run, "evaluation"):
        return QUANTILE, None
    metrics = read_metrics(run)
    return metrics["quantile"], metrics["fp_ml_per_scan"]


def _volumes(run: Run, subjects: Sequence[str]) -> PreparedVolumes:
    return prepared_volumes(run, subjects)


def _settings_of(stored: Mapping[str, Any]) -> LimitSettings:
    """Settings as they were written to JSON."""
    return LimitSettings(
        tuple(stored["diameters_mm"]),
        tuple(stored["contrasts_sd"]),
        tuple(stored["sites"]),
        stored["per_cell"],
        tuple(stored["fp_ml_per_scan"]),
        stored["quantile"],
        stored["own_fp_ml"],
        stored["seed"],
    )


def _made_from(run: Run, layer_set: str, settings: LimitSettings, hosts: Sequence[str]) -> str:
    detector = read_manifest(stage_directory(run, "detector"))["files"]
    split = {role: run.record["split"][role] for role in ("train", "calibration")}
    return fingerprint(
        [METHOD, settings, layer_set.split("+"), list(hosts), detector, split, run.record["cohort"]["fingerprint"]]
    )
