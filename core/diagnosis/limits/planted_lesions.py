"""Artificial lesions of chosen size, contrast and site: who gets which, where they fit, and how they look.

A lesion is an ellipsoid with axes within about 20 % of its diameter, turned at random, of the same volume as the ball
of that diameter. Inside it every contrast of the scan moves by c healthy standard deviations, times the part of each
voxel that the ellipsoid fills (partial volume); the scan's own texture stays, as the shift is added to it.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64
from scipy.ndimage import distance_transform_edt
from scipy.signal import fftconvolve

from core.diagnosis.limits.lesion_shapes import LONGEST, Lesion, Placed, ball_mask
from core.randomness import number_of, stream
from data.errors import BadInput
from data.template import tissue_probability, working_grid, working_template
from data.volume import Grid, Volume

SITES = ("grey", "white", "deep", "brain")
"""Where the centre lies: cortical or cerebellar grey matter, white matter, deep tissue; or anywhere in the brain."""
DEEP_MM = 30.0
MOST_PLANTED = 0.02
"""Share of a brain that is changed at most, so that what looks at the whole scan (ranks, GroupNorm) hardly notices."""
LEAST_INSIDE = 0.8
_TISSUE = 0.5
_SD_FLOOR = 0.05
_ATTEMPTS = 30


@dataclass(frozen=True)
class Planting:
    """A healthy scan and the lesions that are planted into it together."""

    subject_id: str
    lesions: tuple[Placed, ...]


@dataclass(frozen=True, eq=False)
class Host:
    """Where lesions may be centred in one healthy scan."""

    subject_id: str
    brain_mm3: float
    spacing_mm: float
    centres_mm: dict[str, Float64[np.ndarray, "candidates 3"]]
    """Per site."""
    inside: dict[tuple[str, float], Float32[np.ndarray, " candidates"]]
    """Per site and diameter: part of the ball around each candidate that lies in the scan's own brain mask."""


def design(
    diameters_mm: Sequence[float], contrasts_sd: Sequence[float], sites: Sequence[str], per_cell: int, seed: int
) -> list[Lesion]:
    """`per_cell` lesions of every size x contrast x site, in a seeded order. BadInput when a list makes no sense."""
    check_design(diameters_mm, contrasts_sd, sites, per_cell)
    cells = list(itertools.product(dict.fromkeys(diameters_mm), dict.fromkeys(contrasts_sd), dict.fromkeys(sites)))
    order = stream(seed, "detection limits order").permutation(len(cells) * per_cell)
    chosen = [cells[i % len(cells)] for i in order]
    return [Lesion(number, float(d), float(c), site) for number, (d, c, site) in enumerate(chosen)]


def check_design(
    diameters_mm: Sequence[float], contrasts_sd: Sequence[float], sites: Sequence[str], per_cell: int
) -> None:
    """BadInput when a list of lesions to plant makes no sense."""
    unknown = [site for site in sites if site not in SITES]
    if unknown or not sites or not diameters_mm or not contrasts_sd or per_cell < 1:
        raise BadInput(
            f"{len(diameters_mm)} diameters, {len(contrasts_sd)} contrasts, sites {', '.join(sites) or '(none)'}, "
            f"{per_cell} per cell. Allowed: at least one of each, and sites {', '.join(SITES)}."
        )
    if min(diameters_mm) <= 0 or max(diameters_mm) > 60 or 0 in contrasts_sd:
        raise BadInput(
            f"Diameters {list(diameters_mm)} mm, contrasts {list(contrasts_sd)} SD. Allowed: diameters above 0 up to "
            "60 mm, contrasts other than 0 (what is found without a lesion is measured anyway)."
        )


def host_of(volume: Volume, sites: Sequence[str], diameters_mm: Sequence[float]) -> Host:
    """Candidate centres of every site: voxels of the scan's brain that the MNI152 template gives that tissue.

    deep: more than 30 mm below the template's surface, grey or white there; grey and white: probability at least one
    half, less deep. BadInput when the scan is not on the working grid, unless the one site asked for is "brain".
    """
    masks = _site_masks(volume.grid, sites)
    at = {site: np.argwhere(masks[site] & volume.brain_mask) for site in sites}
    inside: dict[tuple[str, float], Float32[np.ndarray, " candidates"]] = {}
    for diameter in diameters_mm:
        part = fftconvolve(volume.brain_mask.astype(np.float32), ball_mask(volume.grid, diameter), mode="same")
        inside |= {(site, diameter): part[tuple(at[site].T)] for site in sites}
    centres = {site: at[site] @ volume.grid.affine[:3, :3].T + volume.grid.affine[:3, 3] for site in sites}
    brain_mm3 = float(np.count_nonzero(volume.brain_mask)) * volume.grid.voxel_volume_mm3
    return Host(volume.subject_id, brain_mm3, max(volume.grid.spacing_mm), centres, inside)


def share_out(
    lesions: Sequence[Lesion], hosts: Sequence[Host], gap_mm: float, seed: int, *, alone: bool = False
) -> tuple[list[Planting], list[Lesion]]:
    """Give every lesion a scan and a place, several to a scan; also returned: those that fit into no scan at all.

    The hosts take turns. A centre lies in its site with at least LEAST_INSIDE of its ball in the brain, its surface at
    least `gap_mm` from that of every other lesion in the scan; together they fill at most MOST_PLANTED of the brain,
    or are one. `alone`: one lesion to a scan.
    """
    waiting, plantings, homeless = list(lesions), [], []
    refused = {lesion.number: 0 for lesion in waiting}
    for turn in itertools.count():
        if not waiting:
            break
        first, host = waiting[0], hosts[turn % len(hosts)]
        most_mm3 = 0.0 if alone else MOST_PLANTED * host.brain_mm3
        generator = stream(seed, "detection limits place", number_of(host.subject_id), turn // len(hosts))
        placed, waiting = _filled(host, waiting, gap_mm, most_mm3, generator)
        if placed:
            plantings.append(Planting(host.subject_id, tuple(placed)))
        if waiting and waiting[0] is first:  # it was the first to be tried, and the scan was empty
            refused[first.number] += 1
            if refused[first.number] >= len(hosts):
                homeless += [x for x in waiting if (x.diameter_mm, x.site) == (first.diameter_mm, first.site)]
                waiting = [x for x in waiting if (x.diameter_mm, x.site) != (first.diameter_mm, first.site)]
    return plantings, homeless


def healthy_deviation(volumes: Sequence[Volume]) -> Float32[np.ndarray, "contrasts x y z"]:
    """Standard deviation of intensity over healthy scans at each voxel: the unit of contrast.

    Over the scans whose brain covers the voxel (Welford, float64); at least 5 % of its median over the brain, and
    that median where fewer than two scans reach.
    """
    if len(volumes) < 2:
        raise BadInput(f"{len(volumes)} healthy scan(s) have no standard deviation. Give at least two.")
    mean = np.zeros(volumes[0].voxels.shape)
    square, count = np.zeros_like(mean), np.zeros(volumes[0].grid.shape)
    for volume in volumes:
        count += volume.brain_mask
        step = np.where(volume.brain_mask, volume.voxels - mean, 0.0)
        mean += step / np.maximum(count, 1)
        square += step * np.where(volume.brain_mask, volume.voxels - mean, 0.0)
    deviation = np.sqrt(square / np.maximum(count - 1, 1))
    for contrast in deviation:
        covered = contrast[count >= max(2, len(volumes) // 2)]
        usual = float(np.median(covered)) if covered.size else 0.0
        contrast[count < 2] = usual
        np.maximum(contrast, max(_SD_FLOOR * usual, 1e-6), out=contrast)
    return np.asarray(deviation, dtype=np.float32)


def _filled(
    host: Host, waiting: Sequence[Lesion], gap_mm: float, most_mm3: float, generator: np.random.Generator
) -> tuple[list[Placed], list[Lesion]]:
    placed: list[Placed] = []
    left: list[Lesion] = []
    clear = {site: np.full(len(at), np.inf) for site, at in host.centres_mm.items()}  # mm to the nearest lesion
    filled_mm3, misses = 0.0, 0
    for place, lesion in enumerate(waiting):
        if misses >= _ATTEMPTS:
            return placed, left + list(waiting[place:])
        radius = lesion.diameter_mm / 2
        volume_mm3 = 4 / 3 * np.pi * radius**3
        fits = clear[lesion.site] >= gap_mm + LONGEST * radius
        fits &= host.inside[lesion.site, lesion.diameter_mm] >= LEAST_INSIDE
        room = not placed or filled_mm3 + volume_mm3 <= most_mm3
        candidates = np.flatnonzero(fits) if room else np.zeros(0, dtype=int)
        if not len(candidates):
            left.append(lesion)
            misses += 1
            continue
        at = host.centres_mm[lesion.site][generator.choice(candidates)]
        centre = at + host.spacing_mm * (generator.random(3) - 0.5)
        placed.append(Placed(lesion, (float(centre[0]), float(centre[1]), float(centre[2]))))
        filled_mm3 += volume_mm3
        for site, points in host.centres_mm.items():
            # Whoever comes next is moved by up to half a voxel along each axis.
            away = np.linalg.norm(points - centre, axis=1) - LONGEST * radius - host.spacing_mm * np.sqrt(3) / 2
            np.minimum(clear[site], away, out=clear[site])
    return placed, left


def _site_masks(grid: Grid, sites: Sequence[str]) -> dict[str, Bool[np.ndarray, "x y z"]]:
    everywhere = {"brain": np.ones(grid.shape, dtype=bool)}
    if set(sites) == {"brain"}:
        return everywhere
    spacing = grid.spacing_mm[0]
    if not 0.5 <= spacing <= 8.0 or not grid.matches(working_grid(spacing)):
        raise BadInput("The scan is not on the working grid, where MNI152 tells the sites. Ask for the site 'brain'.")
    below = distance_transform_edt(working_template(spacing).brain_mask, sampling=grid.spacing_mm)
    grey, white = (tissue_probability(tissue, spacing) >= _TISSUE for tissue in ("grey", "white"))
    deep = below > DEEP_MM
    return everywhere | {"deep": deep & (grey | white), "grey": grey & ~deep, "white": white & ~deep & ~grey}
