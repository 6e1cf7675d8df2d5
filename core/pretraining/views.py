"""Random views of a volume: what changes between the two sides of a contrastive pair.

Magnitudes are those of Kovačević 2025 ("Feature Modeling for Anomaly Detection in Neuroimaging", augmentation list),
lengths as fractions of the field of view (there 224 voxels), so they do not depend on the voxel size.
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from core.pretraining.view_settings import ViewSettings, check_crop
from core.randomness import stream
from data.errors import BadInput

FLIP_PROBABILITY = 0.5
AFFINE_PROBABILITY, SCALE_RANGE, ROTATION_DEGREES, TRANSLATION_SHARE = 0.9, (0.8, 1.3), 15.0, 12 / 224
ELASTIC_PROBABILITY, ELASTIC_POINTS, ELASTIC_SHARE = 0.4, 7, 6 / 224
GHOST_PROBABILITY, GHOST_STRENGTH = 0.2, 0.3
GAMMA_PROBABILITY, GAMMA_LOG = 0.6, 0.5
NOISE_PROBABILITY, NOISE_STD = 0.5, 0.04
BIAS_PROBABILITY, BIAS_COEFFICIENT, BIAS_ORDER = 0.3, 0.5, 3
BLUR_PROBABILITY, BLUR_VOXELS = 0.2, (0.5, 1.0)
SWAP_PROBABILITY, SWAPS, SWAP_SHARE = 0.4, 12, 28 / 155
PLACE_STEPS, PLACE_TOLERANCE = 24, 0.02

Triple = tuple[float, float, float]
_NOISE = 0x2545F4914F6CDD1D
"""Flips bits of a view's seed: noise and the elastic field begin with streams of their own."""


@dataclass(frozen=True)
class ViewDraw:
    """Everything random about one view; with the volume it determines the view. JSON-able through `asdict`."""

    crop_start: tuple[int, int, int]
    crop_shape: tuple[int, int, int]
    flip: tuple[bool, bool, bool] = (False, False, False)
    scale: Triple = (1.0, 1.0, 1.0)
    rotation_degrees: Triple = (0.0, 0.0, 0.0)
    translation_voxels: Triple = (0.0, 0.0, 0.0)
    elastic_voxels: float = 0.0
    ghost: float = 0.0
    ghost_axis: int = 0
    ghost_copies: int = 2
    gamma: float = 1.0
    noise_std: float = 0.0
    bias: float = 0.0
    blur_voxels: float = 0.0
    swaps: int = 0
    field_seed: int = 0
    """Of the noise, the elastic displacements, the bias coefficients and the swapped places."""

    def as_json(self) -> dict[str, object]:
        """Plain values for a log."""
        return asdict(self)


def draw_view(
    settings: ViewSettings, shape: tuple[int, int, int], seed: int, step: int, sample: int, view: int
) -> ViewDraw:
    """The draw of view 0 or 1 of a sample at a step. Depends on nothing else: no batch, no earlier draw.

    BadInput when a strength is negative or the crop exceeds the volume.
    """
    start, crop = _crop(settings, shape, stream(seed, "crop", step, sample))
    if min(settings.geometric, settings.photometric, settings.tone) < 0:
        raise BadInput("Strengths of views are at least 0 (0 off, 1 as published).")
    if view == 0 and settings.first_view_clean:
        return ViewDraw(start, crop)
    geometry = stream(seed, "geometry", step, sample, view)
    photometry = stream(seed, "photometry", step, sample, view)
    g, p = settings.geometric, settings.photometric
    extent = float(max(shape))
    # Every value is drawn whether or not it is used, so one strength does not move the draws of the others.
    flips = geometry.random(2) < FLIP_PROBABILITY * min(g, 1.0)
    affine = g * (geometry.random() < AFFINE_PROBABILITY)
    scale = np.exp(affine * geometry.uniform(np.log(SCALE_RANGE[0]), np.log(SCALE_RANGE[1]), 3))
    rotation = affine * geometry.uniform(-ROTATION_DEGREES, ROTATION_DEGREES, 3)
    translation = affine * geometry.uniform(-TRANSLATION_SHARE, TRANSLATION_SHARE, 3) * extent
    elastic = g * (geometry.random() < ELASTIC_PROBABILITY) * ELASTIC_SHARE * extent
    chance = photometry.random(6)
    size = photometry.random(6)
    return ViewDraw(
        crop_start=start,
        crop_shape=crop,
        flip=(bool(flips[0]), bool(flips[1]), False),
        scale=_triple(scale),
        rotation_degrees=_triple(rotation),
        translation_voxels=_triple(translation),
        elastic_voxels=float(elastic),
        ghost=float(p * (chance[0] < GHOST_PROBABILITY) * size[0] * GHOST_STRENGTH),
        ghost_axis=int(photometry.integers(3)),
        ghost_copies=int(photometry.integers(2, 5)),
        gamma=float(np.exp(p * settings.tone * (chance[1] < GAMMA_PROBABILITY) * (2 * size[1] - 1) * GAMMA_LOG)),
        noise_std=float(p * (chance[2] < NOISE_PROBABILITY) * size[2] * NOISE_STD),
        bias=float(p * settings.tone * (chance[3] < BIAS_PROBABILITY) * BIAS_COEFFICIENT),
        blur_voxels=float(p * (chance[4] < BLUR_PROBABILITY) * (BLUR_VOXELS[0] + size[4] * np.ptp(BLUR_VOXELS))),
        swaps=round(float(p * (chance[5] < SWAP_PROBABILITY) * SWAPS)),
        field_seed=int(photometry.integers(2**62)),
    )


def apply_view(volume: Float[Tensor, "channels x y z"], draw: ViewDraw) -> Float[Tensor, "channels i j k"]:
    """The view of one volume, on the volume's device; exactly a crop of the input when nothing was drawn.

    Computed in the volume's precision whatever the autocast: coordinates in bfloat16 would be voxels off.
    """
    with torch.autocast(volume.device.type, enabled=False):
        return _applied(volume, draw)


def view_coordinates(
    draw: ViewDraw, shape: tuple[int, int, int], device: torch.device | None = None
) -> Float[Tensor, "i j k 3"]:
    """Where each voxel of a view was read in the volume of `shape`, in voxel indices; may lie outside of it."""
    generator, device = torch.Generator().manual_seed(draw.field_seed), device or torch.device("cpu")
    with torch.autocast(device.type, enabled=False):
        return _read_points(shape, draw, _matrix(draw), generator, device)


def places_in_view(
    draw: ViewDraw, shape: tuple[int, int, int], points: Float[Tensor, "points 3"]
) -> tuple[Float[Tensor, "points 3"], Bool[Tensor, " points"]]:
    """Where points of the volume (in voxel indices) lie in a view (in its own), and which of them it holds.

    The inverse of `view_coordinates`: exact for flips, affine and crop; under an elastic deformation found by
    fixed-point steps u ← u + A⁻¹(p − P(u)), P trilinear between view voxels. A point is held when it lies inside the
    view and the steps came within PLACE_TOLERANCE voxels of it; places of the others are arbitrary.
    """
    device = points.device
    matrix = torch.tensor(_matrix(draw), dtype=torch.float64, device=device)
    centre = (torch.tensor(shape, dtype=torch.float64, device=device) - 1) / 2
    moved = points.double() - centre - torch.tensor(draw.translation_voxels, dtype=torch.float64, device=device)
    start = torch.tensor(draw.crop_start, dtype=torch.float64, device=device)
    places = (torch.linalg.solve(matrix, moved.T).T + centre - start).float()
    last = torch.tensor(draw.crop_shape, dtype=torch.float32, device=device) - 1
    held = torch.ones(len(points), dtype=torch.bool, device=device)
    if draw.elastic_voxels > 0:
        read = view_coordinates(draw, shape, device).movedim(-1, 0)[None]
        for _ in range(PLACE_STEPS):
            missing = points - trilinear(read, places[None])[0]
            step = torch.linalg.solve(matrix, missing.double().T).T.float()
            places = torch.minimum((places + step).clamp_min(0), last)
        held = (points - trilinear(read, places[None])[0]).abs().amax(1) < PLACE_TOLERANCE
    held &= ((places > -PLACE_TOLERANCE) & (places < last + PLACE_TOLERANCE)).all(1)
    return torch.minimum(places.clamp_min(0), last), held


def trilinear(
    values: Float[Tensor, "batch channels x y z"], points: Float[Tensor, "batch points 3"]
) -> Float[Tensor, "batch points channels"]:
    """Values between the voxels at points given in voxel indices; beyond the edge, the edge. In float32."""
    last = torch.tensor(values.shape[2:], dtype=torch.float32, device=values.device) - 1
    normalised = (2 * points.float() / last.clamp_min(1) - 1).flip(-1)[:, :, None, None]
    with torch.autocast(values.device.type, enabled=False):
        read: Tensor = functional.grid_sample(
            values.float(), normalised, mode="bilinear", padding_mode="border", align_corners=True
        )
    return read[..., 0, 0].transpose(1, 2)


def _applied(volume: Tensor, draw: ViewDraw) -> Tensor:
    generator = torch.Generator().manual_seed(draw.field_seed)
    low = volume.amin(dim=(1, 2, 3), keepdim=True)
    range_ = (volume.amax(dim=(1, 2, 3), keepdim=True) - low).clamp_min(1e-6)
    view = _deformed(volume, draw, generator)
    if draw.ghost > 0:
        view = _ghosted(view, draw)
    if draw.gamma != 1:
        view = low + range_ * ((view - low) / range_).clamp(0, 1) ** draw.gamma
    if draw.noise_std > 0:
        noise = torch.Generator(view.device).manual_seed(draw.field_seed ^ _NOISE)
        view = view + draw.noise_std * range_ * torch.randn(view.shape, generator=noise, device=view.device)
    if draw.bias > 0:
        view = low + (view - low) * _bias_field(_shape(view), draw.bias, generator, view.device)
    if draw.blur_voxels > 0:
        view = _blurred(view, draw.blur_voxels)
    return _swapped(view, draw.swaps, generator) if draw.swaps else view


def _crop(
    settings: ViewSettings, shape: tuple[int, int, int], generator: np.random.Generator
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    crop = check_crop(settings, shape)
    start = [int(generator.integers(n - c + 1)) for c, n in zip(crop, shape, strict=True)]
    return (start[0], start[1], start[2]), crop


def _deformed(volume: Tensor, draw: ViewDraw, generator: torch.Generator) -> Tensor:
    """Crop, flip, affine and elastic deformation in one trilinear read."""
    (i, j, k), (a, b, c) = draw.crop_start, draw.crop_shape
    matrix = _matrix(draw)
    still = np.array_equal(matrix, np.eye(3)) and not any(draw.translation_voxels)
    if still and draw.elastic_voxels == 0:
        return volume[:, i : i + a, j : j + b, k : k + c]
    size = torch.tensor(volume.shape[1:], dtype=torch.float32, device=volume.device)
    points = _read_points(_shape(volume), draw, matrix, generator, volume.device)
    normalised = (2 * points / (size - 1).clamp_min(1) - 1).flip(-1)
    read = functional.grid_sample(
        volume[None].float(), normalised[None], mode="bilinear", padding_mode="border", align_corners=True
    )
    return read[0].to(volume.dtype)


def _matrix(draw: ViewDraw) -> np.ndarray:
    matrix: np.ndarray = _rotation(draw.rotation_degrees) @ np.diag(
        np.array(draw.scale) * np.where(draw.flip, -1.0, 1.0)
    )
    return matrix


def _read_points(
    shape: tuple[int, int, int],
    draw: ViewDraw,
    matrix: np.ndarray,
    generator: torch.Generator,
    device: torch.device,
) -> Float[Tensor, "i j k 3"]:
    size = torch.tensor(shape, dtype=torch.float32, device=device)
    centre = (size - 1) / 2
    axes = [
        torch.arange(start, start + length, dtype=torch.float32, device=device)
        for start, length in zip(draw.crop_start, draw.crop_shape, strict=True)
    ]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1) - centre
    points = points @ torch.tensor(matrix.T, dtype=torch.float32, device=device) + centre
    points = points + torch.tensor(draw.translation_voxels, dtype=torch.float32, device=device)
    if draw.elastic_voxels > 0:
        coarse = torch.rand((1, 3, *[ELASTIC_POINTS] * 3), generator=generator) * 2 - 1
        smooth = functional.interpolate(coarse.to(device), size=draw.crop_shape, mode="trilinear", align_corners=True)
        points = points + draw.elastic_voxels * smooth[0].movedim(0, -1)
    return points


def _rotation(degrees: Triple) -> np.ndarray:
    x, y, z = np.deg2rad(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    matrix: np.ndarray = about_z @ about_y @ about_x
    return matrix


def _ghosted(view: Tensor, draw: ViewDraw) -> Tensor:
    """Weaken every n-th k-space line along one axis (never the centre): n faint copies, as periodic motion gives."""
    dim = draw.ghost_axis + 1
    spectrum: Tensor = torch.fft.fft(view.float(), dim=dim)
    weights = torch.ones(view.shape[dim], device=view.device)
    weights[draw.ghost_copies :: draw.ghost_copies] = 1 - draw.ghost
    shape = [1, 1, 1, 1]
    shape[dim] = -1
    ghosted: Tensor = torch.fft.ifft(spectrum * weights.reshape(shape), dim=dim).real
    return ghosted.to(view.dtype)


def _bias_field(
    shape: tuple[int, int, int], coefficient: float, generator: torch.Generator, device: torch.device
) -> Tensor:
    """exp of a random polynomial of order 3 in coordinates from −1 to 1."""
    orders = torch.arange(BIAS_ORDER + 1)
    drawn = coefficient * (2 * torch.rand((BIAS_ORDER + 1,) * 3, generator=generator) - 1)
    total_order = orders[:, None, None] + orders[:, None] + orders
    field = torch.where(total_order <= BIAS_ORDER, drawn, 0.0).to(device)
    for n in shape:  # contracts the first axis with the powers of one coordinate and appends it: i j k → x y z
        powers = torch.linspace(-1, 1, n, device=device) ** orders.to(device)[:, None]
        field = torch.tensordot(field, powers, dims=([0], [0]))
    return field.exp()


def _blurred(view: Tensor, std_voxels: float) -> Tensor:
    """Separable Gaussian, edges repeated."""
    radius = int(np.ceil(3 * std_voxels))
    taps = torch.arange(-radius, radius + 1, dtype=torch.float32, device=view.device)
    kernel = torch.exp(-0.5 * (taps / std_voxels) ** 2)
    kernel = kernel / kernel.sum()
    for axis in (1, 2, 3):
        length = view.shape[axis]
        index = torch.arange(length, device=view.device)
        total = torch.zeros_like(view)
        for tap, weight in zip(range(-radius, radius + 1), kernel, strict=True):
            total = total + weight * view.index_select(axis, (index + tap).clamp(0, length - 1))
        view = total
    return view


def _swapped(view: Tensor, swaps: int, generator: torch.Generator) -> Tensor:
    """Exchange pairs of thin columns that run along z."""
    x, y, z = _shape(view)
    length = max(1, round(SWAP_SHARE * z))
    view = view.clone()
    for _ in range(swaps):
        first, second = (
            [int(torch.randint(high, (), generator=generator)) for high in (x, y, z - length + 1)] for _ in range(2)
        )
        one = view[:, first[0], first[1], first[2] : first[2] + length].clone()
        view[:, first[0], first[1], first[2] : first[2] + length] = view[
            :, second[0], second[1], second[2] : second[2] + length
        ].clone()
        view[:, second[0], second[1], second[2] : second[2] + length] = one
    return view


def _shape(view: Tensor) -> tuple[int, int, int]:
    return view.shape[1], view.shape[2], view.shape[3]


def _triple(values: np.ndarray) -> Triple:
    return float(values[0]), float(values[1]), float(values[2])
