"""How far a planted lesion is felt, and whether planted lesions disturb one another."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt

from core.diagnosis.limits.bench import (
    Bench,
    LimitSettings,
    judge_planting,
    score_volumes,
    segment_map,
)
from core.diagnosis.limits.lesion_shapes import NEIGHBOURHOOD_MM, Lesion, Placed
from core.diagnosis.limits.planted_lesions import Host, Planting
from data.errors import BadInput
from data.volume import Volume

TOLERANCE_SD = 0.1
"""Change of score, in healthy-score SDs, that counts as none when the influence of one lesion on others is measured."""
GAP_MM = (2 * NEIGHBOURHOOD_MM, 40.0)
"""Least and largest distance between the surfaces of two lesions in one scan; the influence is measured in between."""
_CHECKED = 3
_SHELL_MM = 4.0


def measure_influence_mm(bench: Bench, place: Host) -> float:
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
    for after in score_volumes(bench.scorer, [volume for volume, _ in planted]):
        change = np.abs(after.scores - before) / bench.calibration.deviation
        for number in range(int(shell.max()), -1, -1):
            here = change[(shell == number) & np.isfinite(change)]
            if here.size and np.quantile(here, 0.999) > TOLERANCE_SD:
                reach = max(reach, (number + 1) * _SHELL_MM)
                break
    return reach


def measure_interference(bench: Bench, plantings: Sequence[Planting]) -> dict[str, Any]:
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
        healthy = segment_map(bench, planting.subject_id, bench.before[planting.subject_id])
        maps = list(score_volumes(bench.scorer, [volume for volume, _ in planted]))
        among = {r["number"]: r for r in judge_planting(bench, planting, planted[0][1], maps[0], healthy)}
        for one, (_, footprints), after in zip(alone, planted[1:], maps[1:], strict=True):
            (record,) = judge_planting(bench, one, footprints, after, healthy)
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


def limit_notes(
    settings: LimitSettings,
    homeless: Sequence[Lesion],
    influence: float,
    together: bool,
    volume: Volume,
) -> list[str]:
    """What must be said beside detection limits."""
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
