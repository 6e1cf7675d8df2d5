"""Healthy brains that never lived: the MNI152 tissue maps, deformed, coloured and blurred like scans of one person."""

import functools
import zlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32
from scipy import ndimage

from data.volume import Grid

CONTRASTS = ("T1", "FLAIR")
_MARGIN_VOXELS = 3

# Mean signal of (grey, white, CSF) as fractions of the brightest tissue; rounded from what 3 T MPRAGE and FLAIR show.
_SIGNAL = {"T1": (0.68, 1.0, 0.27), "FLAIR": (0.93, 0.78, 0.22)}


@dataclass(frozen=True)
class Scanner:
    """How a site draws the same brain."""

    name: str
    gain: float
    """Signal of the brightest tissue, in the scanner's arbitrary units."""
    grey_white: float
    """Factor on the difference between grey and white matter."""
    noise: float
    """SD of the noise as a fraction of the gain."""
    bias: float
    """SD of the logarithm of the receive field."""
    blur_voxels: float


SCANNERS = (
    Scanner("A", 900.0, 1.00, 0.022, 0.035, 0.42),
    Scanner("B", 620.0, 0.85, 0.034, 0.055, 0.52),
    Scanner("C", 1300.0, 1.12, 0.028, 0.070, 0.36),
)


@dataclass(frozen=True, eq=False)
class Template:
    """MNI152 tissue probabilities at 2 mm, cropped to the brain."""

    grey: Float32[np.ndarray, "x y z"]
    white: Float32[np.ndarray, "x y z"]
    brain: Float32[np.ndarray, "x y z"]
    ventricles: Float32[np.ndarray, "x y z"]
    widening: Float32[np.ndarray, "3 x y z"]
    """Voxel shifts towards the ventricles, largest 1: following them when sampling makes the ventricles wider."""
    grid: Grid


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One person's tissues on the template's grid; the fractions sum to one in the brain and are zero outside."""

    grey: Float32[np.ndarray, "x y z"]
    white: Float32[np.ndarray, "x y z"]
    csf: Float32[np.ndarray, "x y z"]
    ventricles: Float32[np.ndarray, "x y z"]
    brain: Bool[np.ndarray, "x y z"]
    grid: Grid
    age: float
    sex: str


def generator(seed: int, purpose: str, index: int) -> np.random.Generator:
    """A Philox stream of its own for each (seed, purpose, subject index)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), index])))


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int, int], correlation_voxels: float
) -> Float32[np.ndarray, "x y z"]:
    """A Gaussian random field of mean 0 and SD 1 over the box; drawn on a coarse lattice when it is very smooth."""
    step = max(1, int(correlation_voxels / 1.5))
    coarse = tuple(-(-n // step) + 3 for n in shape) if step > 1 else shape
    field = rng.standard_normal(coarse, dtype=np.float32)
    field = ndimage.gaussian_filter(field, correlation_voxels / step, mode="wrap", truncate=3.0)
    if step > 1:
        for axis in range(3):
            field = _refine(field, axis, shape[axis], step)
    standard: np.ndarray = (field - field.mean(dtype=np.float64)) / field.std(dtype=np.float64)
    return standard.astype(np.float32)


@functools.cache
def template() -> Template:
    """The MNI152 maps that come with nilearn (Fonov et al. 2011, doi:10.1016/j.neuroimage.2010.07.033), at 2 mm."""
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template

    mask_image = load_mni152_brain_mask(resolution=2)
    mask = np.asarray(mask_image.dataobj) > 0.5
    box = tuple(
        slice(max(0, int(where.min()) - _MARGIN_VOXELS), min(n, int(where.max()) + 1 + _MARGIN_VOXELS))
        for where, n in zip(np.nonzero(mask), mask.shape, strict=True)
    )
    affine = np.array(mask_image.affine, dtype=np.float64)
    affine[:3, 3] += affine[:3, :3] @ np.array([s.start for s in box], dtype=np.float64)
    grey = np.asarray(load_mni152_gm_template(resolution=2).dataobj, dtype=np.float32)[box]
    white = np.asarray(load_mni152_wm_template(resolution=2).dataobj, dtype=np.float32)[box]
    brain = mask[box]
    ventricles = _ventricles(np.where(brain, 1 - grey - white, 0), brain)
    shape = brain.shape
    return Template(
        grey, white, brain.astype(np.float32), ventricles, _towards(ventricles),
        Grid((shape[0], shape[1], shape[2]), affine),
    )  # fmt: skip


def draw_anatomy(index: int, seed: int) -> Anatomy:
    """A person: age, sex, head size, a smooth deformation of a few mm, ventricles and sulci that widen with age."""
    rng = generator(seed, "anatomy", index)
    base = template()
    age = float(np.clip(rng.normal(52, 17), 20, 88).round(1))
    sex = "F" if rng.random() < 0.5 else "M"
    atrophy = (age - 50) / 40
    coordinates = _pull_back(rng, base, scale=rng.normal(1.012 if sex == "F" else 0.988, 0.02), atrophy=atrophy)
    grey, white, brain_fraction, ventricles = (
        ndimage.map_coordinates(m, coordinates, order=1, mode="constant")
        for m in (base.grey, base.white, base.brain, base.ventricles)
    )
    shape = base.grid.shape
    brain = ndimage.binary_opening(brain_fraction + 0.08 * smooth_noise(rng, shape, 2.5) > 0.5)
    loss = (0.07 + 0.06 * atrophy) * (1 + smooth_noise(rng, shape, 1.6)) + rng.normal(0, 0.015)
    folds = np.clip(1 - np.clip(loss, -0.1, 0.6) * 4 * grey * (1 - grey - 0.5 * white), 0.3, 1.1)
    grey = np.clip(grey * folds, 0, 1)
    total = np.maximum(grey + white, 1)
    grey, white = np.where(brain, grey / total, 0), np.where(brain, white / total, 0)
    csf = np.where(brain, 1 - grey - white, 0)
    return Anatomy(
        grey.astype(np.float32), white.astype(np.float32), csf.astype(np.float32),
        np.where(brain, ventricles, 0).astype(np.float32), brain, base.grid, age, sex,
    )  # fmt: skip


def scan(anatomy: Anatomy, index: int, seed: int) -> dict[str, Float32[np.ndarray, "x y z"]]:
    """T1 and FLAIR of one anatomy, in scanner units, zero outside the brain; the site is `index` mod 3.

    Signal: tissue means that differ per person, cortical texture, and what is bright or dark in healthy brains.
    Then partial volume (blur), a receive field, and Rician noise.
    """
    rng = generator(seed, "scan", index)
    scanner = SCANNERS[index % len(SCANNERS)]
    texture = smooth_noise(rng, anatomy.grid.shape, 1.3)
    regions = smooth_noise(rng, anatomy.grid.shape, 6.0)
    images = {}
    for contrast in CONTRASTS:
        signal = _tissue_signal(rng, anatomy, scanner, contrast)
        sign = 1.0 if contrast == "FLAIR" else -1.0
        signal += sign * anatomy.grey * (0.030 * texture + 0.035 * regions)
        signal += sign * anatomy.white * (0.010 * texture + 0.018 * regions)
        images[contrast] = signal
    _add_normal_variants(rng, images, anatomy)
    return {name: _acquire(rng, image, anatomy.brain, scanner) for name, image in images.items()}


def _refine(field: np.ndarray, axis: int, length: int, step: int) -> np.ndarray:
    # Cubic B-spline through one axis: four coarse values per fine one, smooth to the second derivative.
    where = np.arange(length)
    first, t = where // step, ((where % step) / step).astype(np.float32)
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    aligned = [1, 1, 1]
    aligned[axis] = length
    terms = [np.take(field, first + k, axis=axis) * (w / 6).reshape(aligned) for k, w in enumerate(weights)]
    fine: np.ndarray = terms[0] + terms[1] + terms[2] + terms[3]
    return fine


def _ventricles(csf: np.ndarray, brain: np.ndarray) -> np.ndarray:
    depth = ndimage.distance_transform_edt(brain)
    deep: np.ndarray = np.where((depth > 9) & (ndimage.gaussian_filter(csf, 0.7) > 0.25), csf, 0)
    pieces, _ = ndimage.label(deep > 0.2, np.ones((3, 3, 3)))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    largest: np.ndarray = np.where(pieces == int(sizes.argmax()), deep, 0).astype(np.float32)
    return largest


def _towards(ventricles: np.ndarray) -> np.ndarray:
    near = ndimage.gaussian_filter(ventricles, 3.0)
    slope = np.stack([ndimage.gaussian_filter1d(near, 1.0, axis=a, order=1) for a in range(3)])
    shifts: np.ndarray = (slope / np.sqrt((slope**2).sum(0)).max()).astype(np.float32)
    return shifts


def _pull_back(rng: np.random.Generator, base: Template, scale: float, atrophy: float) -> np.ndarray:
    # Where in the template each voxel comes from: a scaling about the middle plus smooth shifts, in voxels.
    shape = base.grid.shape
    amplitude = rng.uniform(0.6, 1.3)
    widen = 0.9 * atrophy + rng.normal(0.2, 0.5)
    middle = [(n - 1) / 2 for n in shape]
    axes = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    moved = np.empty((3, *shape), dtype=np.float32)
    for a in range(3):
        stretch = scale + rng.normal(0, 0.012)
        shift = amplitude * smooth_noise(rng, shape, 11.0) + 0.35 * smooth_noise(rng, shape, 4.5)
        moved[a] = (axes[a] - middle[a]) * stretch + middle[a] + shift + widen * base.widening[a]
    return moved


def _tissue_signal(rng: np.random.Generator, anatomy: Anatomy, scanner: Scanner, contrast: str) -> np.ndarray:
    grey, white, csf = _SIGNAL[contrast]
    middle = (grey + white) / 2
    factor = scanner.grey_white * (1 + rng.normal(0, 0.08))
    grey = middle + (grey - middle) * factor + rng.normal(0, 0.012)
    white = middle + (white - middle) * factor + rng.normal(0, 0.012)
    csf *= 1 + rng.normal(0, 0.1)
    signal: np.ndarray = anatomy.grey * grey + anatomy.white * white + anatomy.csf * csf
    return signal


def _add_normal_variants(rng: np.random.Generator, images: dict[str, np.ndarray], anatomy: Anatomy) -> None:
    shape = anatomy.grid.shape
    age = (anatomy.age - 20) / 68
    rim = np.clip(2.5 * ndimage.gaussian_filter(anatomy.ventricles, 1.2), 0, 1) * (anatomy.white + 0.6 * anatomy.grey)
    caps = rim * np.clip(0.5 + 0.8 * smooth_noise(rng, shape, 3.0), 0, 1.6) * (0.06 + 0.16 * age * rng.random())
    images["FLAIR"] += caps
    images["T1"] -= 0.5 * caps

    plexus = np.clip(smooth_noise(rng, shape, 1.5) - 1.2, 0, 1) * anatomy.ventricles
    images["FLAIR"] += rng.uniform(0.4, 0.9) * plexus
    images["T1"] += 0.3 * plexus

    height_mm = anatomy.grid.affine[2, 2] * np.arange(shape[2]) + anatomy.grid.affine[2, 3]
    low = 1 / (1 + np.exp((height_mm + 15) / 8))
    flow = np.clip(smooth_noise(rng, shape, 2.0) - 0.6, 0, 1.5) * anatomy.csf * low
    images["FLAIR"] += rng.uniform(0.2, 0.7) * flow

    ribbon = np.clip(smooth_noise(rng, shape, 4.0) - 0.9, 0, 1.5) * anatomy.grey
    images["FLAIR"] += rng.uniform(0.04, 0.12) * ribbon

    spaces = ndimage.gaussian_filter(
        (rng.random(shape, dtype=np.float32) < 0.0012 * (0.4 + age)).astype(np.float32), 0.55
    ) * (anatomy.white > 0.4)  # fmt: skip
    images["T1"] -= 0.9 * spaces
    images["FLAIR"] -= 0.25 * spaces

    dots = np.clip(smooth_noise(rng, shape, 0.9) - (3.55 - 0.5 * age), 0, 1) * (anatomy.white > 0.6)
    images["FLAIR"] += 0.4 * dots


def _acquire(rng: np.random.Generator, signal: np.ndarray, brain: np.ndarray, scanner: Scanner) -> np.ndarray:
    blurred = ndimage.gaussian_filter(signal, scanner.blur_voxels * rng.uniform(0.9, 1.15))
    inside = ndimage.gaussian_filter(brain.astype(np.float32), scanner.blur_voxels)
    blurred = np.where(brain, blurred / np.maximum(inside, 0.25), 0)
    field = np.exp(scanner.bias * smooth_noise(rng, signal.shape, 16.0))
    noise = scanner.noise * rng.uniform(0.85, 1.2)
    first, second = (
        ndimage.gaussian_filter(rng.standard_normal(signal.shape, dtype=np.float32), 0.35) for _ in range(2)
    )
    seen = np.sqrt((blurred * field + noise * first) ** 2 + (noise * second) ** 2)
    gain = scanner.gain * np.exp(rng.normal(0, 0.08))
    return np.where(brain, np.maximum(gain * seen, 1), 0).astype(np.float32)
