"""What training changed: the same scans, views and lesions through the encoder before and after it."""

from collections.abc import Iterator
from dataclasses import dataclass

from core.metrics.bootstrap import Interval
from core.pretraining.visibility.changes import FAMILIES
from core.pretraining.visibility.measure import LayerVisibility, Movement, Visibility, ratio_interval

LESION = "lesion"
LEAST_SCANS = 6
"""Fewest scans for a claim that a change moves a layer less. Nine kinds of view are looked at, and lesions at every
layer: six scans all agree by chance once in 64 where there is nothing, three once in 8."""


@dataclass(frozen=True)
class Trained:
    """Movement of one layer under one change, before and after training, both in healthy SDs of their own features."""

    layer: str
    change: str
    """A kind of view, "view", "lesion" (mean of all kinds), or the name of one kind of lesion."""
    before: Interval
    after: Interval
    ratio: Interval
    """after / before, resampled in pairs over scans."""
    fell: bool
    """Less in every scan, of at least LEAST_SCANS, and the whole interval of the ratio lies below 1. A kind of view
    that fell was learned as an invariance."""


def compare_training(before: Visibility, after: Visibility, seed: int = 0) -> tuple[Trained, ...]:
    """Every change at every layer but the input, which no training changes."""
    return tuple(
        _compared(one.layer, first, second, seed)
        for one in before.layers
        if one.layer != "input"
        for first, second in _pairs(one, after.layer(one.layer))
    )


def taught_away(trained: tuple[Trained, ...], layer: str) -> list[Trained]:
    """Kinds of view that move this layer less than before training, the most forgotten first."""
    kinds = [t for t in trained if t.layer == layer and t.change in FAMILIES and t.fell]
    return sorted(kinds, key=lambda t: t.ratio.mean or 0.0)


def damage(trained: tuple[Trained, ...], layer: str) -> Trained:
    """What became of the movement under lesions at a layer."""
    return next(t for t in trained if t.layer == layer and t.change == LESION)


def _pairs(before: LayerVisibility, after: LayerVisibility) -> Iterator[tuple[Movement, Movement]]:
    yield from zip(before.families, after.families, strict=True)
    yield before.view, after.view
    yield before.lesion, after.lesion
    for first, second in zip(before.lesions, after.lesions, strict=True):
        yield first.movement, second.movement


def _compared(layer: str, before: Movement, after: Movement, seed: int) -> Trained:
    ratio = ratio_interval(after.per_scan, before.per_scan, seed)
    everywhere = all(b < a for a, b in zip(before.per_scan, after.per_scan, strict=True))
    fell = len(after.per_scan) >= LEAST_SCANS and everywhere and ratio.high is not None and ratio.high < 1
    return Trained(layer, before.change, before.mean, after.mean, ratio, fell)
