"""Where planted lesions are scored and judged: scans, thresholds, and whether a segmented component is a lesion."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from core.diagnosis.limits.lesion_shapes import Footprint, plant_lesions
from core.diagnosis.limits.planted_lesions import Planting, healthy_deviation
from core.metrics.healthy_threshold import QUANTILE, brain_scores, segment, threshold_at_fp_ml, threshold_at_quantile
from core.metrics.lesions import MIN_IOU, MIN_OVERLAP, components
from core.progress import Progress
from core.types import ScoreMap
from data.errors import BadInput
from data.volume import Volume

METHOD = 1
"""Counts up whenever the same run and settings would give other figures."""


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


def lone_match(
    inside: Int64[np.ndarray, " lesion"], labels: Int32[np.ndarray, " voxels"], sizes: Int64[np.ndarray, " labels"]
) -> tuple[bool, float]:
    """Whether a segmented component matches a lesion by the rule of core.metrics.lesions, and how much is covered.

    `inside` are the lesion's voxels, `labels` the component of each voxel, `sizes` the voxels of each component.
    Judged as in a scan with this lesion only: one-to-one matching of several would let a component that reaches two
    of them find just one.
    """
    common = np.bincount(labels[inside], minlength=len(sizes))[1:]
    allowed = (common / len(inside) >= MIN_OVERLAP) | (common / (len(inside) + sizes[1:] - common) >= MIN_IOU)
    return bool(allowed[common > 0].any()), float(common.sum() / len(inside))


@dataclass(frozen=True, eq=False)
class Bench:
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


def make_bench(
    scorer: Scorer,
    calibration: Sequence[Volume],
    hosts: Sequence[Volume],
    reference: Sequence[Volume],
    settings: LimitSettings,
    progress: Progress,
) -> Bench:
    """Score the hosts as they are, and find the thresholds that are judged at."""
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
        for score_map in score_volumes(scorer, calibration):
            inside[score_map.subject_id] = brain_scores(score_map)
            advance(1, score_map.subject_id)
        for score_map in score_volumes(scorer, hosts):
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
    return Bench(scorer, settings, healthy, places, hosts, before, deviation)


def score_volumes(scorer: Scorer, volumes: Sequence[Volume]) -> Iterator[ScoreMap]:
    """Score maps of volumes, as many at a time as the scorer takes."""
    for start in range(0, len(volumes), scorer.batch):
        yield from scorer.score(volumes[start : start + scorer.batch])


Components = tuple[Bool[np.ndarray, "x y z"], np.ndarray, np.ndarray]
"""At one threshold: the segmentation, its components as labels, and the voxels of each (of the background first)."""


def segment_map(bench: Bench, host: str, score_map: ScoreMap) -> list[Components]:
    """A host's map at each of its thresholds: segmentation, components, their sizes."""
    result = []
    for threshold in bench.calibration.thresholds(host):
        mask = segment(score_map, threshold)
        labels = components(mask).reshape(-1)
        result.append((mask.voxels.reshape(-1), labels, np.bincount(labels)))
    return result


def judge_planting(
    bench: Bench,
    planting: Planting,
    footprints: Sequence[Footprint],
    after: ScoreMap,
    healthy: Sequence[Components],
) -> list[dict[str, Any]]:
    """One record per lesion of one planted scan; lists run over the levels."""
    host = planting.subject_id
    segmented = segment_map(bench, host, after)
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
