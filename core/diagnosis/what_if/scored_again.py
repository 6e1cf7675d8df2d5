"""Scans scored again by changed detectors, and which training scans make a smaller set."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from core.detectors.capabilities import LayerSets, can
from core.randomness import stream
from core.types import Detector, LayerSet
from data.volume import Volume


def nested_subset(count: int, parts: int, seed: int) -> tuple[int, ...]:
    """Indices of count / parts training scans, in order: a seeded draw in which fewer are always among more."""
    drawn = stream(seed, "fewer scans").permutation(count)
    return tuple(sorted(int(i) for i in drawn[: max(1, round(count / parts))]))


def rescored(
    detectors: Sequence[Detector], volumes: Sequence[Volume], layers: LayerSet
) -> list[list[Float32[np.ndarray, "x y z"]]]:
    """Score maps (NaN outside the brain) of each detector for each volume, under one layer set.

    Detectors that share a feature extractor share its features: they are computed once per volume.
    """
    features = {
        id(extractor): [extractor(volume).rows for volume in volumes]
        for extractor in {id(d.extractor_): d.extractor_ for d in detectors if can(d, LayerSets)}.values()
        if extractor is not None
    }
    maps = []
    for detector in detectors:
        if not can(detector, LayerSets):
            maps.append([detector.score(volume).scores for volume in volumes])
            continue
        distances = detector.distances_of(features[id(detector.extractor_)], [layers])[0]
        maps.append([detector.to_map(row, volume).scores for row, volume in zip(distances, volumes, strict=True)])
    return maps
