"""Every detector there is, as unfitted recipes. A new method is one file and one line here."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from core.detectors.feature_gaussian import FeatureGaussian
from core.detectors.gated import Gated
from core.detectors.intensity import Intensity
from core.detectors.patchcore import PatchCore
from core.detectors.voxel_zscore import VoxelZScore
from core.features.settings import FeatureSettings, every_layer_set
from core.memory_bank.settings import BankSettings
from core.recipes import as_json, from_json
from core.types import LayerSet
from data.errors import BadInput
from models.settings import EncoderSettings

Layered = FeatureGaussian | PatchCore
AnyDetector = Layered | Intensity | VoxelZScore | Gated

LAYERED = (FeatureGaussian, PatchCore)
"""Detectors over the layers of an encoder: one fit gives distances for every combination of them."""

CATALOGUE: Mapping[str, AnyDetector] = {
    "gaussian": FeatureGaussian(),
    "padim": FeatureGaussian(
        encoder=EncoderSettings(architecture="resnet18_2d"),
        features=FeatureSettings(layers=("layer1", "layer2", "layer3"), reduction="draw", max_channels=100),
        smoothing_mm=4.0,
    ),
    "patchcore": PatchCore(),
    "patchcore-position": PatchCore(bank=BankSettings(subset="random", coreset_ratio=0.25, position="restricted")),
    "zscore": VoxelZScore(),
    "intensity-bright": Intensity(polarity="bright"),
    "intensity-dark": Intensity(polarity="dark"),
}

DESCRIPTIONS: Mapping[str, str] = {
    "gaussian": "Gaussian per voxel over the feature maps of a 3-D encoder (SimCLR-trained or random), every layer set",
    "padim": "PaDiM: Gaussian per voxel over 2-D ResNet-18 features of axial slices, seeded channel draw",
    "patchcore": "PatchCore in 3-D: distance to the nearest healthy patch in a memory bank, greedy 1 % coreset",
    "patchcore-position": "PatchCore that compares each place with healthy patches within 8 mm only; a quarter kept",
    "zscore": "|z| of the smoothed intensity against healthy scans at the same voxel; no features",
    "intensity-bright": "rank of the intensity inside the brain, bright is anomalous (lesions on FLAIR)",
    "intensity-dark": "rank of the intensity inside the brain, dark is anomalous (lesions on T1)",
}

_KINDS: Mapping[str, type[AnyDetector]] = {
    "FeatureGaussian": FeatureGaussian,
    "PatchCore": PatchCore,
    "Intensity": Intensity,
    "VoxelZScore": VoxelZScore,
    "Gated": Gated,
}
_PLAIN: Mapping[str, str] = {
    "FeatureGaussian": "a Gaussian per voxel",
    "PatchCore": "a memory bank",
    "Intensity": "a rank of the intensity",
    "VoxelZScore": "a voxel-wise |z|",
    "Gated": "a gated detector",
}
Gated.kinds = _KINDS

__all__ = [
    "CATALOGUE",
    "DESCRIPTIONS",
    "LAYERED",
    "AnyDetector",
    "FeatureGaussian",
    "Gated",
    "LayerSet",
    "Layered",
    "PatchCore",
    "every_layer_set",
    "make",
    "plain_name",
]


def make(name: str, changes: Mapping[str, Any] | None = None) -> AnyDetector:
    """A fresh recipe of the catalogue, with some hyper-parameters changed."""
    if name not in CATALOGUE:
        close = difflib.get_close_matches(name, CATALOGUE, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise BadInput(f"No detector {name!r}.{hint} The catalogue has: {', '.join(CATALOGUE)}.")
    return dataclasses.replace(CATALOGUE[name], **dict(changes or {}))


def kind_of(detector: AnyDetector) -> str:
    """Name of the detector's type, as it stands in run.json."""
    return type(detector).__name__


def plain_name(kind: str) -> str:
    """What a kind of detector is, in the words of the catalogue: for texts that a user reads."""
    return _PLAIN.get(kind, f"a detector of kind {kind!r}")


def recipe_json(detector: AnyDetector) -> dict[str, Any]:
    """The recipe with its type, for run.json."""
    return {"kind": kind_of(detector), **as_json(detector)}


def from_recipe(recipe: Mapping[str, Any]) -> AnyDetector:
    """The unfitted detector that `recipe_json` described."""
    fields = {key: value for key, value in recipe.items() if key != "kind"}
    return from_json(detector_kind(recipe["kind"]), fields)


def detector_kind(kind: str) -> type[AnyDetector]:
    """The type by its name in run.json."""
    if kind not in _KINDS:
        raise BadInput(f"Detector type {kind!r} is not known here. Known: {', '.join(_KINDS)}. Is the run newer?")
    return _KINDS[kind]
