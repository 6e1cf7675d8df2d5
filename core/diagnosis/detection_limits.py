"""What a detector can find at all: lesions of known size, contrast and site planted into the user's own healthy scans.

No label is needed. Thresholds come from healthy calibration scans, never from the scan that is planted: a calibration
scan that is planted is judged at a threshold of all the others. Everything is on the working grid.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64
from scipy.ndimage import distance_transform_edt

from core.calibration import QUANTILE, brain_scores, segment, threshold_at_fp_ml, threshold_at_quantile
from core.detectors import LAYERED, AnyDetector, LayerSet
from core.diagnosis.limit_tables import contrast_limits, sensitivity_cells, strength_cells
from core.diagnosis.planted_lesions import (
    NEIGHBOURHOOD_MM,
    Footprint,
    Host,
    Lesion,
    Placed,
    Planting,
    check_design,
    design,
    healthy_deviation,
    host_of,
    plant_lesions,
    share_out,
)
from core.disk_plan import limits_bytes
from core.evaluation import read_metrics
from core.experiment import PreparedVolumes, load_detector, prepared_volumes
from core.lesions import MIN_IOU, MIN_OVERLAP, MIN_VOLUME_MM3, components, healthy_false_positives
from core.progress import Progress
from core.randomness import stream
from core.run_scores import RunScores, open_scores, set_id
from core.store import (
    Run,
    fingerprint,
    lock,
    record_duration,
    stage,
    stage_directory,
    stage_done,
    stage_name,
    stored_json,
    undamaged,
)
from core.types import ScoreMap
from data.errors import BadInput
from data.files import read_manifest, write_json
from data.ranges import refuse_out_of_range
from data.room import require_room
from data.volume import Volume

METHOD = 1
"""Counts up whenever the same run and settings would give other figures."""
DIRECTORY = "detection-limits"
TOLERANCE_SD = 0.1
"""Change of score, in healthy-score SDs, that counts as none when the influence of one lesion on others is measured."""
GAP_MM = (2 * NEIGHBOURHOOD_MM, 40.0)
"""Least and largest distance between the surfaces of two lesions in one scan; the influence is measured in between."""
MOST_CHANGED = 0.1
"""Share of the lesions found alone or among others that may be found but one way; beyond it each is planted alone."""
FEW_HOSTS, MOST_HOSTS = 4, 24
_BATCH_BYTES = 4e8
_CHECKED = 3
_SHELL_MM = 4.0


@dataclass(frozen=True)
class LimitSettings:
    """What is planted, and at which false-positive levels it is looked for."""

    diameters_mm: tuple[float, ...] = (4, 6, 8, 12, 16, 24)
    contrasts_sd: tuple[float, ...] = (-4, -3, -2, -1, 1, 2, 3, 4)
    sites: tuple[str, ...] = ("grey", "white", "deep")
    per_cell: int = 12
    """Lesions of each size x contrast x site."""
    fp_ml_per_scan: tuple[float, ...] = (0.1, 1, 5, 20)
    """False-positive volumes at which thresholds are set, mL per healthy scan."""
    quantile: float = QUANTILE
    """Rule of the run's own threshold: quantile of healthy voxels ..."""
    own_fp_ml: float | None = None
    """... or mL per healthy scan, when the run was evaluated so."""
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Scorer:
    """What is judged: score maps of a few volumes at a time."""

    score: Callable[[Sequence[Volume]], list[ScoreMap]]
    batch: int = 1
    """Volumes that it takes at once."""


@dataclass(frozen=True)
class Level:
    """A threshold rule."""

    id: str
    title: str
    fp_ml: float | None
    """None: quantile."""


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
    settings = LimitSettings(
        tuple(map(float, diameters_mm)),
        tuple(map(float, contrasts_sd)),
        tuple(sites),
        per_cell,
        tuple(map(float, fp_ml_per_scan)),
        quantile,
        own_fp_ml,
        seed,
    )
    check_design(settings.diameters_mm, settings.contrasts_sd, settings.sites, per_cell)
    refuse_out_of_range(settings)
    hosts, why = _hosts(scores, scans, seed)
    made_from = _made_from(run, set_id(layers), settings, hosts)
    stored = undamaged(lambda: stored_detection_limits(run, set_id(layers)), progress.say)
    if stored is not None and stored["made_from"] == made_from:
        progress.say(f"Detection limits of {run.run_id} ({set_id(layers)}) are there already; nothing has changed.")
        return stored
    cells = len(settings.diameters_mm) * len(settings.contrasts_sd) * len(settings.sites)
    planned = limits_bytes(cells, 1 + len(settings.fp_ml_per_scan), settings.per_cell)
    require_room(run.directory, planned, "The measurement of detection limits")
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
        result |= {
            "run_id": run.run_id,
            "layer_set": set_id(layers),
            "unit": scores.unit,
            "made_from": made_from,
            "hosts_rule": why,
            "scans_asked": None if scans is None else hosts,
            "notes": [why, *result["notes"]],
        }
        with stage(run, stage_name(DIRECTORY, set_id(layers))) as scratch:
            write_json(scratch / "result.json", result)
            write_json(scratch / "lesions.json", lesions)
        record_duration(run, stage_name(DIRECTORY, set_id(layers)), began)
    committed = stored_detection_limits(run, set_id(layers))
    assert committed is not None
    return committed


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


def scorer_of(detector: AnyDetector, layers: LayerSet) -> Scorer:
    """The detector under one layer set; one with layers takes several volumes at once."""
    if not isinstance(detector, LAYERED):
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
    bench = _bench(scorer, calibration, hosts, reference, settings, progress)
    places = [host_of(volume, settings.sites, settings.diameters_mm) for volume in hosts]
    influence = _influence_mm(bench, places[0])
    gap = float(np.clip(influence, *GAP_MM))
    plantings, homeless = share_out(lesions, places, gap, settings.seed)
    if not plantings:
        raise BadInput(
            f"No lesion of {', '.join(f'{d:g}' for d in settings.diameters_mm)} mm fits into the sites "
            f"{', '.join(settings.sites)} of any scan. Give smaller diameters or other sites."
        )
    check = _interference(bench, plantings)
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
        "notes": _notes(settings, homeless, influence, together, hosts[0]),
    }
    return result, records


def lone_match(
    inside: Int64[np.ndarray, " lesion"], labels: Int32[np.ndarray, " voxels"], sizes: Int64[np.ndarray, " labels"]
) -> tuple[bool, float]:
    """Whether one of the segmented components matches a lesion by the rule of core.lesions, and the covered share.

    `inside` are the lesion's voxels, `labels` the component of each voxel, `sizes` the voxels of each component.
    Judged as in a scan with this lesion only: one-to-one matching of several would let a component that reaches two
    of them find just one.
    """
    common = np.bincount(labels[inside], minlength=len(sizes))[1:]
    allowed = (common / len(inside) >= MIN_OVERLAP) | (common / (len(inside) + sizes[1:] - common) >= MIN_IOU)
    return bool(allowed[common > 0].any()), float(common.sum() / len(inside))


@dataclass(frozen=True, eq=False)
class _Bench:
    """All that one measurement shares."""

    scorer: Scorer
    settings: LimitSettings
    calibration: "_Calibration"
    hosts: Mapping[str, int]
    """Place of each host in `volumes`."""
    volumes: Sequence[Volume]
    before: Mapping[str, ScoreMap]
    """Scores of the hosts as they are."""
    deviation: Float32[np.ndarray, "contrasts x y z"]

    def planted(self, planting: Planting) -> tuple[Volume, list[Footprint]]:
        """The host with its lesions."""
        volume = self.volumes[self.hosts[planting.subject_id]]
        return plant_lesions(volume, planting.lesions, self.deviation, self.settings.seed)


@dataclass(frozen=True, eq=False)
class _Calibration:
    """Scores of the healthy calibration scans, and the thresholds that they give to each host."""

    scores: Mapping[str, Float32[np.ndarray, " voxels"]]
    voxel_ml: float
    levels: tuple[Level, ...]
    quantile: float
    _known: dict[tuple[str, ...], tuple[float, ...]] = field(default_factory=dict)

    @functools.cached_property
    def deviation(self) -> float:
        """SD of the pooled scores; 1 when they are all alike."""
        return float(np.concatenate(list(self.scores.values())).std(dtype=np.float64)) or 1.0

    def without(self, host: str) -> tuple[str, ...]:
        """The scans that may set a threshold for this host."""
        return tuple(i for i in self.scores if i != host)

    def thresholds(self, host: str) -> tuple[float, ...]:
        """One per level, from every calibration scan but the host itself."""
        subjects = self.without(host)
        if subjects not in self._known:
            scores = [self.scores[i] for i in subjects]
            self._known[subjects] = tuple(
                threshold_at_quantile(scores, self.quantile)
                if level.fp_ml is None
                else threshold_at_fp_ml(scores, [self.voxel_ml] * len(scores), level.fp_ml)
                for level in self.levels
            )
        return self._known[subjects]


def _bench(
    scorer: Scorer,
    calibration: Sequence[Volume],
    hosts: Sequence[Volume],
    reference: Sequence[Volume],
    settings: LimitSettings,
    progress: Progress,
) -> _Bench:
    deviation = healthy_deviation(reference)
    own = (
        f"quantile {settings.quantile:g} of healthy calibration voxels"
        if settings.own_fp_ml is None
        else f"at most {settings.own_fp_ml:g} mL above it per healthy calibration scan"
    )
    levels = [Level("own", f"the run's own label-free threshold: {own}", settings.own_fp_ml)]
    levels += [Level(f"fp_{ml:g}", f"{ml:g} mL per healthy calibration scan", ml) for ml in settings.fp_ml_per_scan]
    inside, before = {}, {}
    with progress.task("Scoring healthy scans", len(calibration) + len(hosts)) as advance:
        for score_map in _scored(scorer, calibration):
            inside[score_map.subject_id] = brain_scores(score_map)
            advance(1, score_map.subject_id)
        for score_map in _scored(scorer, hosts):
            before[score_map.subject_id] = score_map
            advance(1, score_map.subject_id)
    for host in before:
        if not set(inside) - {host}:
            raise BadInput(
                f"Only {len(inside)} healthy calibration scan(s), and {host!r} cannot set the threshold that it is "
                "judged at. Give at least two calibration scans, or plant into healthy test scans."
            )
    voxel_ml = hosts[0].grid.voxel_volume_mm3 / 1000
    places = {subject_id: place for place, subject_id in enumerate(before)}
    healthy = _Calibration(inside, voxel_ml, tuple(levels), settings.quantile)
    return _Bench(scorer, settings, healthy, places, hosts, before, deviation)


def _scored(scorer: Scorer, volumes: Sequence[Volume]) -> Iterator[ScoreMap]:
    for start in range(0, len(volumes), scorer.batch):
        yield from scorer.score(volumes[start : start + scorer.batch])


def _planted_and_judged(bench: _Bench, plantings: Sequence[Planting], progress: Progress) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    healthy: tuple[str, list[_Components]] = ("", [])  # of the host at hand; its plantings follow one another
    with progress.task("Planting and scoring", len(plantings)) as advance:
        for start in range(0, len(plantings), bench.scorer.batch):
            some = plantings[start : start + bench.scorer.batch]
            planted = [bench.planted(planting) for planting in some]
            maps = bench.scorer.score([volume for volume, _ in planted])
            for planting, (_, footprints), after in zip(some, planted, maps, strict=True):
                host = planting.subject_id
                if host != healthy[0]:
                    healthy = (host, _segmented(bench, host, bench.before[host]))
                records += _judged(bench, planting, footprints, after, healthy[1])
            advance(len(some), some[-1].subject_id)
    return records


_Components = tuple[Bool[np.ndarray, "x y z"], np.ndarray, np.ndarray]
"""At one threshold: the segmentation, its components as labels, and the voxels of each (of the background first)."""


def _segmented(bench: _Bench, host: str, score_map: ScoreMap) -> list[_Components]:
    result = []
    for threshold in bench.calibration.thresholds(host):
        mask = segment(score_map, threshold)
        labels = components(mask).reshape(-1)
        result.append((mask.voxels.reshape(-1), labels, np.bincount(labels)))
    return result


def _judged(
    bench: _Bench,
    planting: Planting,
    footprints: Sequence[Footprint],
    after: ScoreMap,
    healthy: Sequence[_Components],
) -> list[dict[str, Any]]:
    """One record per lesion of one planted scan; lists run over the levels."""
    host = planting.subject_id
    segmented = _segmented(bench, host, after)
    was, now = bench.before[host].scores.reshape(-1), after.scores.reshape(-1)
    records = []
    for placed, print_ in zip(planting.lesions, footprints, strict=True):
        lesion, inside = placed.lesion, print_.inside
        matches = [lone_match(inside, labels, sizes) for _, labels, sizes in segmented]
        rise = float(np.median(now[inside]) - np.median(was[inside])) / bench.calibration.deviation
        records.append(
            {
                "number": lesion.number,
                "subject_id": host,
                "diameter_mm": lesion.diameter_mm,
                "contrast_sd": lesion.contrast_sd,
                "site": lesion.site,
                "centre_mm": [round(value, 2) for value in placed.centre_mm],
                "volume_ml": len(inside) * bench.calibration.voxel_ml,
                "contrast_realised_sd": print_.contrast_sd,
                "score_rise_sd": rise,
                "found": [found for found, _ in matches],
                "covered": [covered for _, covered in matches],
                "dice": [_dice(mask, print_) for mask, _, _ in segmented],
                "found_without": [lone_match(inside, labels, sizes)[0] for _, labels, sizes in healthy],
            }
        )
    return records


def _dice(mask: Bool[np.ndarray, " voxels"], print_: Footprint) -> float:
    """Dice of segmentation and lesion within the lesion's neighbourhood."""
    return 2 * int(mask[print_.inside].sum()) / (int(mask[print_.around].sum()) + len(print_.inside))


def _level(bench: _Bench, number: int, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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


def _influence_mm(bench: _Bench, place: Host) -> float:
    """How far the largest and strongest lesion changes scores by more than TOLERANCE_SD, mm from its surface.

    It stands alone where the brain surrounds it best in one scan, darker and brighter; of each shell of 4 mm the 99.9th
    percentile of |after - before| counts. Covers receptive field, interpolation, smoothing, median and ranks.
    """
    largest = max(bench.settings.diameters_mm)
    site = max(bench.settings.sites, key=lambda s: place.inside[s, largest].max(initial=0.0))
    if not len(place.centres_mm[site]):
        raise BadInput(
            f"No voxel of {place.subject_id!r} lies in {', '.join(bench.settings.sites)}. Try the site 'brain'."
        )
    x, y, z = place.centres_mm[site][place.inside[site, largest].argmax()]
    strongest = {max(same, key=abs) for same in _signs(bench.settings.contrasts_sd)}
    before = bench.before[place.subject_id].scores
    reach = 0.0
    alone = [Placed(Lesion(0, largest, c, site), (float(x), float(y), float(z))) for c in sorted(strongest)]
    planted = [bench.planted(Planting(place.subject_id, (one,))) for one in alone]
    outside = np.ones(before.shape, dtype=bool)
    outside.reshape(-1)[planted[0][1][0].inside] = False
    shell = (distance_transform_edt(outside, sampling=planted[0][0].grid.spacing_mm) // _SHELL_MM).astype(int)
    for after in _scored(bench.scorer, [volume for volume, _ in planted]):
        change = np.abs(after.scores - before) / bench.calibration.deviation
        for number in range(int(shell.max()), -1, -1):
            here = change[(shell == number) & np.isfinite(change)]
            if here.size and np.quantile(here, 0.999) > TOLERANCE_SD:
                reach = max(reach, (number + 1) * _SHELL_MM)
                break
    return reach


def _interference(bench: _Bench, plantings: Sequence[Planting]) -> dict[str, Any]:
    """What lesions that are planted together do to one another: the strongest of full scans, planted alone as well.

    Two scans: the one with most lesions, and the one with most of its brain changed. A detector that compares a
    voxel with the whole scan (ranks) shows here, however far the lesions are apart.
    """
    by_volume = max(plantings, key=lambda planting: sum(p.lesion.diameter_mm**3 for p in planting.lesions))
    full = [max(plantings, key=lambda planting: len(planting.lesions))]
    full += [by_volume] if by_volume is not full[0] else []
    change, changed, verdicts = [], 0, 0
    for planting in full:
        alone = [Planting(planting.subject_id, (placed,)) for placed in _strongest(planting.lesions)]
        planted = [bench.planted(one) for one in (planting, *alone)]
        healthy = _segmented(bench, planting.subject_id, bench.before[planting.subject_id])
        maps = list(_scored(bench.scorer, [volume for volume, _ in planted]))
        among = {r["number"]: r for r in _judged(bench, planting, planted[0][1], maps[0], healthy)}
        for one, (_, footprints), after in zip(alone, planted[1:], maps[1:], strict=True):
            (record,) = _judged(bench, one, footprints, after, healthy)
            other = among[record["number"]]
            change.append(abs(record["score_rise_sd"] - other["score_rise_sd"]))
            changed += sum(a != b for a, b in zip(record["found"], other["found"], strict=True))
            verdicts += sum(a or b for a, b in zip(record["found"], other["found"], strict=True))
    return {
        "lesions": len(change),
        "in_scans_of": [len(planting.lesions) for planting in full],
        "largest_change_sd": max(change),
        "mean_change_sd": float(np.mean(change)),
        "verdicts_changed": changed,
        "verdicts": verdicts,
    }


def _strongest(lesions: Sequence[Placed]) -> list[Placed]:
    """A few of the strongest of either sign."""
    ordered = sorted(lesions, key=lambda placed: -abs(placed.lesion.contrast_sd))
    darker = [p for p in ordered if p.lesion.contrast_sd < 0]
    return darker[:_CHECKED] + [p for p in ordered if p.lesion.contrast_sd > 0][:_CHECKED]


def _notes(
    settings: LimitSettings,
    homeless: Sequence[Lesion],
    influence: float,
    together: bool,
    volume: Volume,
) -> list[str]:
    notes = [
        "Planted lesions are ellipsoids of even contrast with a partial-volume edge. Real lesions have other shapes, "
        "soft borders, mixed intensities and displace tissue: read the figures as what the detector can find at best "
        "at that size and contrast, not as its sensitivity to a disease.",
        "One SD of contrast is the spread of healthy training scans at the same place after preparation. Intensities "
        "are clipped to 0..1 as the preparation does, so a strong contrast may fall short: see `strength`.",
        "Lesions are planted after preparation, so brain extraction, registration and normalisation never see them.",
        "The intervals treat lesions as independent; those of one scan share its anatomy.",
        "`found_without` counts places at which the rule was met before planting: false positives, not sensitivity.",
    ]
    small = [d for d in settings.diameters_mm if np.pi / 6 * d**3 < 4 * volume.grid.voxel_volume_mm3]
    if small:
        notes.append(
            f"Lesions of {', '.join(f'{d:g}' for d in small)} mm fill fewer than 4 voxels of the working grid "
            f"({volume.grid.spacing_mm[0]:g} mm): partial volume weakens them."
        )
    if not together:
        notes.append(
            "Lesions that were planted together changed one another's verdict: this detector compares a voxel with the "
            "whole scan. So every lesion was planted alone, which takes longer."
        )
    elif influence > GAP_MM[1]:
        notes.append(
            f"A lesion changes scores by more than {TOLERANCE_SD:g} SD as far as {influence:g} mm away, further than "
            f"the {GAP_MM[1]:g} mm that lesions of one scan were kept apart; `interference` says how little it matters."
        )
    gone = sorted({(lesion.diameter_mm, lesion.site) for lesion in homeless})
    notes += [f"No scan has room for a lesion of {d:g} mm in site '{site}': these cells are empty." for d, site in gone]
    return notes


def _signs(contrasts_sd: Sequence[float]) -> list[list[float]]:
    sides = [[c for c in contrasts_sd if c < 0], [c for c in contrasts_sd if c > 0]]
    return [side for side in sides if side]


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
