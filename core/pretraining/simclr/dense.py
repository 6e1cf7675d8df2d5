"""Positions against positions: the same anatomical place in two views, found by inverting how they were deformed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from core.pretraining.contrastive import cosines, diagnostics, difficulty, histograms, info_nce
from core.pretraining.simclr.local_changes import draw_blobs, shifted
from core.pretraining.simclr.variant import Batch, Setup, sample_view, view_draws, view_pair
from core.pretraining.simclr_settings import SimclrSettings
from core.pretraining.views import ViewDraw, places_in_view, trilinear, view_coordinates
from core.randomness import stream
from data.errors import BadInput
from models.encoder import Encoder
from models.projection import projection_head
from models.taps import Tap

SPARE = 16
"""Candidates drawn per position wanted: of a crop that both views deform, most may leave one of them."""


@dataclass(frozen=True, eq=False)
class Places:
    """Anatomical positions of one subject that both of its views hold, at most `positions` of them."""

    anatomy: Float[Tensor, "places 3"]
    """In voxel indices of the volume."""
    in_view: Float[Tensor, "2 places 3"]
    """In voxel indices of the first and of the second view."""


class Dense:
    """Each position must find itself in the other view of the same brain, by the features of a mid-level layer.

    Positive: the same anatomical position under the inverse of flips, affine and elastic deformation and crop, features
    read trilinearly at the exact place. Negatives: positions of the same subject at least `apart_mm` away, in either
    view, and positions of other subjects (all, or with `other_subjects` "apart" those as far away). Features are read
    at `positions` in-brain places per subject, then projected row by row (a 1x1x1 convolution at these places).

    "dense-shift" adds one negative per position: the same position in a copy of the second view whose intensity was
    changed around it by a smooth blob, so that the encoder is not taught to ignore local changes of intensity. These
    blobs resemble planted lesions, so results on planted lesions flatter it; judge it on real ones.

    Only stages up to the layer are trained; later ones keep their first weights. At chance the loss is the mean of
    ln(1 + negatives) over positions. Wang et al. 2021, arXiv:2011.09157 (dense contrast), with correspondence from
    geometry rather than from similarity, as in Pinheiro et al. 2020, arXiv:2011.05499.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.tap = tap_of(setup.encoder, setup.settings)
        self.head = projection_head(self.tap.channels, seed=setup.settings.seed).to(setup.device).train()
        self.modules: Mapping[str, nn.Module] = {"encoder": setup.encoder, "head": self.head}

    def loss_of(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """The loss of all positions of the subjects of a step, in both directions."""
        setup, given = self.setup, self.setup.settings.negatives
        draws = view_draws(setup, batch)
        views = view_pair(batch.scans, draws)
        places = [
            common_places(brain, (draws[0][n], draws[1][n]), self.tap, given.positions, setup, batch.step, subject)
            for n, (subject, brain) in enumerate(zip(batch.subjects, batch.brains, strict=True))
        ]
        total = sum(len(found.anatomy) for found in places)
        if total < 2:
            raise BadInput(
                f"Of the brains of step {batch.step}, {total} positions lie in both views; at least 2 are needed. "
                "Enlarge crop_voxels, or weaken the geometric views."
            )
        shift = given.kind == "dense-shift"
        copies, changed = self._changed_copies(batch, draws, views, places) if shift else (views[:0], None)
        maps = setup.encoder.features(torch.cat([views, copies]), (self.tap.name,))[self.tap.name]
        of_view = [[found.in_view[view] for found in places] for view in ((0, 1, 1) if shift else (0, 1))]
        rows = self.head(read_places(maps, [p for side in of_view for p in side], self.tap)).float()
        z, other = rows[: 2 * total], rows[2 * total :]
        positive, negative = self._compare(z, places)
        if changed is not None:
            own = nn.functional.cosine_similarity(z.reshape(2, total, -1), other[None], dim=2)
            negative = torch.cat([negative, own.masked_fill(~changed, -math.inf).reshape(-1, 1)], dim=1)
        loss = info_nce(positive, negative, setup.settings.temperature)
        logs = self._logs(z.detach(), positive.detach(), negative.detach(), batch.step)
        if changed is not None:
            logs |= _shift_logs(own.detach(), changed)
        return loss, {**logs, **sample_view(batch, draws)}

    def _compare(self, z: Tensor, places: Sequence[Places]) -> tuple[Float[Tensor, " rows"], Tensor]:
        given = self.setup.settings.negatives
        anatomy = torch.cat([found.anatomy for found in places])
        lengths = torch.tensor([len(found.anatomy) for found in places], device=z.device)
        owner = torch.arange(len(places), device=z.device).repeat_interleave(lengths)
        allowed = told_apart(
            anatomy, owner, self.setup.spacing_mm, given.apart_mm, everywhere=given.other_subjects == "anywhere"
        ).repeat(2, 2)
        similar = cosines(z, z)
        rows = torch.arange(len(z), device=z.device)
        return similar[rows, rows.roll(len(anatomy))], similar.masked_fill(~allowed, -math.inf)

    def _changed_copies(
        self, batch: Batch, draws: Sequence[Sequence[ViewDraw]], views: Tensor, places: Sequence[Places]
    ) -> tuple[Tensor, Bool[Tensor, " places"]]:
        """Second views with blobs at their positions, and at which positions they changed."""
        setup, given = self.setup, self.setup.settings.negatives
        copies, changed = [], []
        for n, (subject, brain, found) in enumerate(zip(batch.subjects, batch.brains, places, strict=True)):
            count = len(found.anatomy)
            sample, seed = setup.sample(subject), setup.settings.seed
            draw = draw_blobs(count, given.blob_strength, given.blob_mm, seed, batch.step, sample)
            within = brain_in_view(brain, draws[1][n])
            copy, moved = shifted(views[len(places) + n], found.in_view[1], draw, setup.spacing_mm, within)
            copies.append(copy)
            changed.append(moved)
        return torch.stack(copies), torch.cat(changed)

    def _logs(self, z: Tensor, positive: Tensor, negative: Tensor, step: int) -> dict[str, Any]:
        z1, z2 = z.chunk(2)
        return {
            **diagnostics(z1, z2),
            **difficulty(positive, negative),
            "positions": len(z1),
            **histograms(step, positive, negative),
        }


def common_places(
    brain: Bool[Tensor, "x y z"],
    draws: tuple[ViewDraw, ViewDraw],
    tap: Tap,
    count: int,
    setup: Setup,
    step: int,
    subject: int,
) -> Places:
    """Positions drawn evenly from the brain inside the crop, of which those that left a view are dropped.

    Depends on the seed, the step and the subject alone. A place must lie between the centres of the layer's cells.
    """
    sample = setup.sample(subject)
    anatomy = drawn_places(brain, draws[0], count, stream(setup.settings.seed, "places", step, sample))
    both = [held_places(draw, setup.shape, anatomy, tap) for draw in draws]
    kept = (both[0][1] & both[1][1]).nonzero()[:count, 0]
    return Places(anatomy[kept], torch.stack([places[kept] for places, _ in both]))


def drawn_places(
    brain: Bool[Tensor, "x y z"], draw: ViewDraw, count: int, generator: np.random.Generator
) -> Float[Tensor, "drawn 3"]:
    """Brain voxels inside the crop of a draw, in random order, with spare ones beyond `count`."""
    crop = tuple(slice(s, s + n) for s, n in zip(draw.crop_start, draw.crop_shape, strict=True))
    inside = brain[crop].nonzero() + torch.tensor(draw.crop_start, device=brain.device)
    chosen = generator.permutation(len(inside))[: SPARE * count]
    return inside[torch.as_tensor(chosen, device=brain.device)].float()


def held_places(
    draw: ViewDraw, shape: tuple[int, int, int], anatomy: Float[Tensor, "places 3"], tap: Tap
) -> tuple[Float[Tensor, "places 3"], Bool[Tensor, " places"]]:
    """Where positions lie in a view, and which of them lie between the centres of the layer's cells there."""
    places, inside = places_in_view(draw, shape, anatomy)
    reach = [s * ((n - 1) // s) for n, s in zip(draw.crop_shape, tap.stride, strict=True)]
    return places, inside & (places <= torch.tensor(reach, device=anatomy.device)).all(1)


def read_places(
    maps: Float[Tensor, "views channels x y z"], places: Sequence[Float[Tensor, "_ 3"]], tap: Tap
) -> Float[Tensor, "rows channels"]:
    """Features of each view at its places (in voxel indices of the view), one view after the other."""
    stride = torch.tensor(tap.stride, dtype=torch.float32, device=maps.device)
    longest = max(len(p) for p in places)
    padded = torch.stack([nn.functional.pad(p / stride, (0, 0, 0, longest - len(p))) for p in places])
    read = trilinear(maps, padded)
    return torch.cat([row[: len(p)] for row, p in zip(read, places, strict=True)])


def told_apart(
    anatomy: Float[Tensor, "places 3"],
    owner: Int64[Tensor, " places"],
    spacing_mm: tuple[float, float, float],
    apart_mm: float,
    everywhere: bool,
) -> Bool[Tensor, "places places"]:
    """Which positions are negatives of which: far ones of the same subject, and those of others, far or `everywhere`.

    A position is never its own negative, whatever `apart_mm`.
    """
    mm = anatomy * torch.tensor(spacing_mm, dtype=torch.float32, device=anatomy.device)
    far = (mm[:, None] - mm[None]).square().sum(2) >= apart_mm**2
    others = owner[:, None] != owner[None]
    itself = torch.eye(len(anatomy), dtype=torch.bool, device=anatomy.device)
    return torch.where(others, far | everywhere, far) & ~itself


def brain_in_view(brain: Bool[Tensor, "x y z"], draw: ViewDraw) -> Bool[Tensor, "i j k"]:
    """The brain mask as a view sees it, read at the nearest voxel."""
    shape = (brain.shape[0], brain.shape[1], brain.shape[2])
    last = torch.tensor(shape, device=brain.device) - 1
    nearest = view_coordinates(draw, shape, brain.device).round().long()
    i, j, k = torch.minimum(nearest.clamp_min(0), last).unbind(-1)
    return brain[i, j, k]


def _shift_logs(own: Float[Tensor, "2 places"], changed: Bool[Tensor, " places"]) -> dict[str, float]:
    """shift_share: positions with a changed copy; shift_similarity: mean cosine of a position with that copy."""
    share = float(changed.double().mean())
    return {"shift_share": share, "shift_similarity": float(own[:, changed].double().mean()) if share else 0.0}


def tap_of(encoder: Encoder, settings: SimclrSettings) -> Tap:
    """The layer whose positions are compared. BadInput, with the encoder's layers, when it has no such one."""
    layer = settings.negatives.layer
    for tap in encoder.taps:
        if tap.name == layer:
            return tap
    raise BadInput(
        f"Layer {layer!r} is not in encoder {settings.encoder.architecture!r}. "
        f"It has: {', '.join(tap.name for tap in encoder.taps[1:])}."
    )
