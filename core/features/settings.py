"""Which features of an encoder are modelled, and every combination of its layers. Needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from core.types import LayerSet


@dataclass(frozen=True)
class FeatureSettings:
    """Which taps, on which grid, with how many channels."""

    layers: tuple[str, ...] = ("stage0", "stage1", "stage2", "stage3")
    """Taps to model. 'input' is the intensity itself."""
    grid: str = "4mm"
    """The feature grid on which distances are computed: millimetres ('4mm'), or the name of a layer."""
    reduction: Literal["none", "draw", "pca"] = "none"
    """How channels become fewer: a seeded draw that is stored, or principal components per layer."""
    max_channels: int = 100
    """Channels kept per layer when `reduction` is draw or pca."""
    seed: int = 0
    """Of the channel draw."""
    neighbourhood: int = 1
    """Edge of the cube of a layer's own cells whose mean makes a feature; 1: the cell alone. PatchCore takes 3."""


def every_layer_set(layers: Sequence[str]) -> tuple[LayerSet, ...]:
    """All 2^L − 1 combinations: single layers first, the full set last, each in the order of `layers`."""
    return tuple(combo for size in range(1, len(layers) + 1) for combo in combinations(layers, size))
