"""Positions against positions of other brains: in registered scans the same place is the same anatomy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from core.pretraining.contrastive import diagnostics, difficulty, histograms
from core.pretraining.simclr.dense import brain_in_view, drawn_places, held_places, read_places, tap_of, told_apart
from core.pretraining.simclr.local_changes import BlobDraw, draw_blobs, shifted
from core.pretraining.simclr.variant import Batch, Setup, sample_view, view_draws, view_pair
from core.pretraining.views import ViewDraw, trilinear
from core.randomness import stream
from data.errors import BadInput
from models.projection import projection_head

LEAST_HELD = 0.5
"""Of the views of a step that a position must lie in: strong geometric views seldom all hold one place."""
BLOB_SHARE = 0.25
"""Of the positions, those that are the centre of a blob; the others of a changed copy count where a blob reaches."""


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Positions that all brains of a step have, and at least half of their views hold."""

    points: Float[Tensor, "places 3"]
    """In voxel indices of the volumes, which share one grid."""
    in_view: Float[Tensor, "2 subjects places 3"]
    """In voxel indices of the first and of the second view of each subject."""
    held: Bool[Tensor, "2 subjects places"]
    """Which of these the view holds; the others left its crop or its field and take no part."""


class Atlas:
    """Each position must find itself in the other brains of the step, by the features of a mid-level layer.

    A Gaussian per position asks how far a feature lies from those of other healthy brains at the same place; this loss
    makes exactly these alike. Anchors: positions of first views. Positives: the same anatomical position in the second
    view of every subject of the step, its own included. Negatives: positions of any second view at least `apart_mm`
    away. "atlas-shift" adds the same position in copies of the second views whose intensity was changed locally by
    smooth blobs: alike is what healthy brains share, not what a lesion changes. These blobs resemble planted lesions,
    so results on planted lesions flatter "atlas-shift"; judge it on real ones. Both need registered scans.

    ℓ = mean over anchors a and positives p of −log( e^{a·p/T} / (e^{a·p/T} + Σ_n e^{a·n/T}) ), cosines; the supervised
    contrastive loss (Khosla et al. 2020, arXiv:2004.11362, eq. 2) with the position as the class and the positives
    apart in the denominator. At chance it is the mean of ln(1 + negatives).
    Only stages up to the layer are trained; later ones keep their first weights.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.tap = tap_of(setup.encoder, setup.settings)
        self.head = projection_head(self.tap.channels, seed=setup.settings.seed).to(setup.device).train()
        self.modules: Mapping[str, nn.Module] = {"encoder": setup.encoder, "head": self.head}

    def loss_of(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """The loss of all anchors of the subjects of a step."""
        setup, given = self.setup, self.setup.settings.negatives
        draws, anatomy = self._together(batch)
        views = view_pair(batch.scans, draws)
        shift = given.kind == "atlas-shift"
        copies, changed = self._changed_copies(batch, draws, views, anatomy) if shift else (views[:0], None)
        maps = setup.encoder.features(torch.cat([views, copies]), (self.tap.name,))[self.tap.name]
        sides = [anatomy.in_view[view] for view in ((0, 1, 1) if shift else (0, 1))]
        rows = self.head(read_places(maps, [places for side in sides for places in side], self.tap)).float()
        z = functional.normalize(rows, dim=1).unflatten(0, (len(sides), len(batch.subjects), -1))
        positive, negative = self._compare(z, anatomy, changed)
        loss = position_loss(positive, negative, setup.settings.temperature)
        logs = self._logs(z.detach(), anatomy, positive.detach(), negative.detach(), batch.step)
        if changed is not None:
            logs["shift_share"] = float(changed.double().mean())
        return loss, {**logs, **sample_view(batch, draws)}

    def _together(self, batch: Batch) -> tuple[list[list[ViewDraw]], Anatomy]:
        """Draws with one crop for all, the first of the subjects' crops with enough positions, and these positions."""
        drawn = view_draws(self.setup, batch)
        best: tuple[list[list[ViewDraw]], Anatomy] | None = None
        for lead in drawn[0]:
            draws = [[replace(draw, crop_start=lead.crop_start) for draw in side] for side in drawn]
            anatomy = self._anatomy(batch, draws)
            if best is None or len(anatomy.points) > len(best[1].points):
                best = draws, anatomy
            if len(anatomy.points) >= self.setup.settings.negatives.positions:
                break
        assert best is not None
        if len(best[1].points) < 2:
            raise BadInput(
                f"The brains of step {batch.step} share {len(best[1].points)} positions inside half of their views; at "
                "least 2 are needed. Register the scans, enlarge crop_voxels, or weaken the geometric views."
            )
        return best

    def _anatomy(self, batch: Batch, draws: Sequence[Sequence[ViewDraw]]) -> Anatomy:
        setup, count = self.setup, self.setup.settings.negatives.positions
        shared = torch.stack(list(batch.brains)).all(0)
        points = drawn_places(shared, draws[0][0], count, stream(setup.settings.seed, "anatomy", batch.step))
        views = [held_places(draw, setup.shape, points, self.tap) for side in draws for draw in side]
        in_view, holds = (torch.stack(part).unflatten(0, (2, -1)) for part in zip(*views, strict=True))
        kept = (holds.double().mean(dim=(0, 1)) >= LEAST_HELD).nonzero()[:count, 0]
        return Anatomy(points[kept], in_view[:, :, kept], holds[:, :, kept])

    def _compare(
        self, z: Float[Tensor, "sides subjects places dim"], anatomy: Anatomy, changed: Tensor | None
    ) -> tuple[Float[Tensor, "anchors subjects"], Float[Tensor, "anchors negatives"]]:
        """Cosines of every anchor with its positives and negatives; −∞ where a view does not hold the place."""
        points, (first, second) = anatomy.points, anatomy.held
        with torch.autocast(z.device.type, enabled=False):
            given, subjects = self.setup.settings.negatives, z.shape[1]
            anchors = z[0].flatten(0, 1)
            similar = torch.einsum("ad,spd->asp", anchors, z[1])
            own = torch.arange(len(points), device=z.device).repeat(subjects)
            positive = similar.gather(2, own[:, None, None].expand(-1, subjects, 1))[..., 0]
            positive = positive.masked_fill(~(first.flatten()[:, None] & second.T.repeat(subjects, 1)), -torch.inf)
            nobody = torch.zeros(len(points), dtype=torch.long, device=z.device)
            far = told_apart(points, nobody, self.setup.spacing_mm, given.apart_mm, everywhere=False)
            negative = similar.masked_fill(~(far[own][:, None] & second), -torch.inf).flatten(1)
            if changed is not None:
                moved = torch.einsum("spd,tpd->spt", z[0], z[2]).masked_fill(~changed.T[None], -torch.inf)
                negative = torch.cat([negative, moved.flatten(0, 1)], dim=1)
        return positive, negative

    def _changed_copies(
        self, batch: Batch, draws: Sequence[Sequence[ViewDraw]], views: Tensor, anatomy: Anatomy
    ) -> tuple[Tensor, Bool[Tensor, "subjects places"]]:
        """Second views with blobs around some of the positions, and which positions they changed."""
        setup, given = self.setup, self.setup.settings.negatives
        copies, changed = [], []
        for n, (subject, brain) in enumerate(zip(batch.subjects, batch.brains, strict=True)):
            view, places = views[len(batch.subjects) + n], anatomy.in_view[1, n]
            count = max(1, round(BLOB_SHARE * len(places)))
            sample, seed = setup.sample(subject), setup.settings.seed
            draw = draw_blobs(count, given.blob_strength, given.blob_mm, seed, batch.step, sample)
            order = stream(seed, "blob-places", batch.step, sample).permutation(len(places))
            drawn = torch.as_tensor(order, device=places.device)
            centres = places[drawn[anatomy.held[1, n, drawn]][:count]]
            draw = BlobDraw(draw.std_mm[: len(centres)], draw.change[: len(centres)])
            copy, _ = shifted(view, centres, draw, setup.spacing_mm, brain_in_view(brain, draws[1][n]))
            spread = (view.amax(dim=(1, 2, 3)) - view.amin(dim=(1, 2, 3))).clamp_min(1e-6)
            moved = trilinear((copy - view)[None], places[None])[0].abs() / spread
            copies.append(copy)
            changed.append((moved.amax(1) >= 0.5 * given.blob_strength[0]) & anatomy.held[1, n])
        return torch.stack(copies), torch.stack(changed)

    def _logs(self, z: Tensor, anatomy: Anatomy, positive: Tensor, negative: Tensor, step: int) -> dict[str, Any]:
        # "Found" is the same place of the next subject of the batch, so that no brain finds itself.
        subjects = z.shape[1]
        following = torch.arange(subjects, device=z.device).roll(-1).repeat_interleave(z.shape[2])
        other = positive[torch.arange(len(positive), device=z.device), following]
        both = other > -torch.inf
        first, second = z[0].flatten(0, 1)[both], z[1].roll(-1, 0).flatten(0, 1)[both]
        return {
            **(diagnostics(first, second) if len(first) > 1 else {}),
            **difficulty(other[both], negative[both]),
            "positions": int(anatomy.held[0].sum()),
            **histograms(step, other[both], negative[both]),
        }


def position_loss(
    positive: Float[Tensor, "anchors positives"], negative: Float[Tensor, "anchors negatives"], temperature: float
) -> Float[Tensor, ""]:
    """Mean of −log( e^{p/T} / (e^{p/T} + Σ_n e^{n/T}) ) over the positives of all anchors; −∞ marks what is none.

    Anchors without any negative say nothing and are left out. BadInput when nothing is left.
    """
    with torch.autocast(positive.device.type, enabled=False):
        told = (negative > -torch.inf).any(1)
        against = (negative[told].float() / temperature).logsumexp(1)
        found = positive[told] > -torch.inf
        if not found.any():
            raise BadInput(
                "No place of one brain was seen in another together with a place to tell it from. Enlarge "
                "crop_voxels, lower apart_mm, or weaken the geometric views."
            )
        terms = functional.softplus(against[:, None] - positive[told].float() / temperature)
        return terms[found].mean()
