"""Local changes of intensity at chosen places of a view: smooth blobs, brighter or darker."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from core.randomness import stream


@dataclass(frozen=True, eq=False)
class BlobDraw:
    """Everything random about the blobs of one view; where they go is given apart."""

    std_mm: Float[np.ndarray, "blobs 3"]
    """Standard deviation along each axis."""
    change: Float[np.ndarray, " blobs"]
    """At the centre, as a share of the scan's intensity range; negative is darker."""


def draw_blobs(
    count: int, strength: tuple[float, float], std_mm: tuple[float, float], seed: int, step: int, sample: int
) -> BlobDraw:
    """Blobs of a sample at a step: size and strength uniform, either sign. Depends on nothing else."""
    generator = stream(seed, "blobs", step, sample)
    sizes = generator.uniform(*std_mm, (count, 3))
    signs = np.where(generator.random(count) < 0.5, -1.0, 1.0)
    return BlobDraw(sizes, signs * generator.uniform(*strength, count))


def shifted(
    view: Float[Tensor, "contrasts i j k"],
    centres: Float[Tensor, "blobs 3"],
    draw: BlobDraw,
    spacing_mm: tuple[float, float, float],
    within: Bool[Tensor, "i j k"],
) -> tuple[Float[Tensor, "contrasts i j k"], Bool[Tensor, " blobs"]]:
    """The view with Gaussian blobs added inside the brain, and at which centres it really changed.

    Values stay between the view's smallest and largest one. A centre counts as changed when its value (in some
    contrast) moved by at least half of what was drawn for it: blobs may overlap and cancel, or run into the limits.
    """
    low, high = view.amin(dim=(1, 2, 3), keepdim=True), view.amax(dim=(1, 2, 3), keepdim=True)
    spread = torch.tensor(draw.std_mm / np.array(spacing_mm), dtype=torch.float32, device=view.device)
    change = torch.tensor(draw.change, dtype=torch.float32, device=view.device)
    profiles = [
        torch.exp(-0.5 * ((torch.arange(n, device=view.device) - centres[:, axis, None]) / spread[:, axis, None]) ** 2)
        for axis, n in enumerate(view.shape[1:])
    ]
    with torch.autocast(view.device.type, enabled=False):
        field = torch.einsum("bi,bj,bk->ijk", change[:, None] * profiles[0], profiles[1], profiles[2]) * within
    result = torch.minimum(torch.maximum(view + field * (high - low), low), high)
    i, j, k = centres.round().long().unbind(1)
    moved = ((result - view) / (high - low).clamp_min(1e-6))[:, i, j, k].abs().amax(0)
    return result, moved >= 0.5 * change.abs()
