"""Lesions of known place, size and contrast, put into healthy scans."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from scipy import ndimage

from data.synthetic_anatomy import Anatomy, generator, smooth_noise

SITES = ("white matter", "periventricular", "cortex")
DIAMETER_MM = (3.0, 30.0)
CONTRAST_SD = (2.0, 14.0)
_RING_VOXELS = 4


@dataclass(frozen=True)
class SyntheticLesion:
    """What is known of one lesion."""

    label: int
    """Its value in `lesion_labels`."""
    centre_mm: tuple[float, float, float]
    """Centre of mass in the world, RAS+ mm."""
    diameter_mm: float
    """Of the sphere of the same volume."""
    volume_ml: float
    polarity: str
    """"hyper" when bright on FLAIR and dark on T1 (most), "hypo" when the other way round."""
    contrast: Mapping[str, float]
    """Mean change over the lesion, per contrast, in SD of the healthy tissue within 8 mm."""
    site: str
    """One of `SITES`."""


def add_lesions(
    images: Mapping[str, Float32[np.ndarray, "x y z"]], anatomy: Anatomy, index: int, seed: int
) -> tuple[dict[str, Float32[np.ndarray, "x y z"]], UInt8[np.ndarray, "x y z"], tuple[SyntheticLesion, ...]]:
    """One to four lesions in copies of the scans: the changed scans, the label map, and the records.

    Shapes are ellipsoids whose level sets are bent by smooth noise; the edge is soft over about a voxel.
    A lesion is added to the healthy signal, so the scan without it is its exact counterfactual.
    """
    rng = generator(seed, "lesions", index)
    labels = np.zeros(anatomy.grid.shape, dtype=np.uint8)
    changed = {name: image.copy() for name, image in images.items()}
    records: list[SyntheticLesion] = []
    for label in range(1, int(rng.integers(1, 5)) + 1):
        site = SITES[int(rng.choice(3, p=(0.45, 0.25, 0.3)))]
        diameter = float(np.exp(rng.uniform(*np.log(DIAMETER_MM))))
        free = (anatomy.csf < 0.5) & anatomy.brain & ~ndimage.binary_dilation(labels > 0, iterations=2)
        mask, soft = _blob(rng, anatomy, _centre(rng, anatomy, site, free), diameter, free)
        hyper = bool(rng.random() < 0.85)
        strength = float(np.exp(rng.uniform(*np.log(CONTRAST_SD))))
        wanted = {"FLAIR": strength, "T1": -strength * float(rng.uniform(0.25, 0.6))}
        wanted = {name: value if hyper else -value for name, value in wanted.items()}
        ring = ndimage.binary_dilation(mask, iterations=_RING_VOXELS) & (anatomy.csf < 0.5) & anatomy.brain
        achieved = {name: _change(changed[name], images[name], mask, soft, ring, wanted[name]) for name in images}
        labels[mask] = label
        records.append(_record(label, mask, anatomy, hyper, achieved, site))
    return changed, labels, tuple(records)


def _centre(rng: np.random.Generator, anatomy: Anatomy, site: str, free: np.ndarray) -> tuple[int, int, int]:
    near = ndimage.gaussian_filter(anatomy.ventricles, 2.0) > 0.03
    where = {
        "white matter": (anatomy.white > 0.7) & ~near,
        "periventricular": (anatomy.white > 0.4) & near,
        "cortex": (anatomy.grey > 0.5) & ~near,
    }[site] & free
    candidates = np.argwhere(where)
    x, y, z = candidates[int(rng.integers(len(candidates)))]
    return int(x), int(y), int(z)


def _blob(
    rng: np.random.Generator, anatomy: Anatomy, centre: tuple[int, int, int], diameter_mm: float, free: np.ndarray
) -> tuple[Bool[np.ndarray, "x y z"], Float32[np.ndarray, "x y z"]]:
    # Exactly the voxels of highest level that make up the wanted volume, less pieces that came off.
    spacing = anatomy.grid.spacing_mm[0]
    radius = diameter_mm / 2 / spacing
    reach = int(np.ceil(2.2 * radius)) + 3
    box = tuple(slice(max(0, c - reach), min(n, c + reach + 1)) for c, n in zip(centre, free.shape, strict=True))
    offsets = [np.arange(s.start, s.stop) - c for s, c in zip(box, centre, strict=True)]
    place = np.stack(np.meshgrid(*offsets, indexing="ij")).astype(np.float64)
    squeeze = np.exp(rng.normal(0, 0.22, 3))
    squeeze /= np.prod(squeeze) ** (1 / 3)
    turned = _turn(rng, place)
    distance = np.sqrt(sum((t / s) ** 2 for t, s in zip(turned, squeeze, strict=True)))
    local = (distance.shape[0], distance.shape[1], distance.shape[2])
    bend = smooth_noise(rng, local, max(1.0, 0.45 * radius))
    level = np.where(free[box], radius - distance + 0.33 * radius * bend, -np.inf)
    level[tuple(c - s.start for c, s in zip(centre, box, strict=True))] = np.inf
    count = max(2, round(np.pi / 6 * (diameter_mm / spacing) ** 3))
    edge = np.sort(level, axis=None)[::-1][min(count, level.size) - 1]
    core = (level >= edge) & np.isfinite(level) | (level == np.inf)
    pieces, _ = ndimage.label(core, np.ones((3, 3, 3)))
    core = pieces == pieces[level == np.inf][0]
    mask = np.zeros(free.shape, dtype=bool)
    mask[box] = core
    soft = np.zeros(free.shape, dtype=np.float32)
    soft[box] = ndimage.gaussian_filter(core.astype(np.float32), 0.55)
    return mask, np.where(anatomy.brain, soft, 0).astype(np.float32)


def _turn(rng: np.random.Generator, place: np.ndarray) -> list[np.ndarray]:
    # Rotation by a uniform unit quaternion, written out (no BLAS, so the same bits on any number of threads).
    w, x, y, z = (q := rng.standard_normal(4)) / np.sqrt((q**2).sum())
    i, j, k = place
    return [
        (1 - 2 * (y * y + z * z)) * i + 2 * (x * y - w * z) * j + 2 * (x * z + w * y) * k,
        2 * (x * y + w * z) * i + (1 - 2 * (x * x + z * z)) * j + 2 * (y * z - w * x) * k,
        2 * (x * z - w * y) * i + 2 * (y * z + w * x) * j + (1 - 2 * (x * x + y * y)) * k,
    ]


def _change(
    target: np.ndarray, healthy: np.ndarray, mask: np.ndarray, soft: np.ndarray, ring: np.ndarray, wanted_sd: float
) -> float:
    # Adds the lesion in place; returns the contrast that was reached (the signal cannot fall below zero).
    spread = float(healthy[ring].std(dtype=np.float64))
    before = float(target[mask].mean(dtype=np.float64))
    target += (wanted_sd * spread / float(soft[mask].mean(dtype=np.float64))) * soft
    np.maximum(target, 0, out=target)
    return (float(target[mask].mean(dtype=np.float64)) - before) / spread


def _record(
    label: int, mask: np.ndarray, anatomy: Anatomy, hyper: bool, achieved: Mapping[str, float], site: str
) -> SyntheticLesion:
    volume_mm3 = float(np.count_nonzero(mask)) * anatomy.grid.voxel_volume_mm3
    x, y, z = anatomy.grid.affine[:3, :3] @ np.argwhere(mask).mean(0) + anatomy.grid.affine[:3, 3]
    return SyntheticLesion(
        label,
        (round(float(x), 3), round(float(y), 3), round(float(z), 3)),
        round((6 * volume_mm3 / np.pi) ** (1 / 3), 3),
        round(volume_mm3 / 1000, 6),
        "hyper" if hyper else "hypo",
        {name: round(value, 4) for name, value in achieved.items()},
        site,
    )
