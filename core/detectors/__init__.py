"""Every detector there is, as unfitted recipes. A new method is one file and one row of CATALOGUE.

What a detector can do beyond fitting and scoring is told by `core.detectors.capabilities`; nobody asks for its class.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.detectors.capabilities import can
from core.detectors.feature_gaussian import FeatureGaussian
from core.detectors.gated import Gated
from core.detectors.intensity import Intensity
from core.detectors.patchcore import PatchCore
from core.detectors.voxel_zscore import VoxelZScore
from core.features.settings import FeatureSettings
from core.memory_bank.settings import BankSettings
from core.recipes import as_json, from_json
from core.types import Detector
from data.errors import BadInput
from models.settings import EncoderSettings


@dataclass(frozen=True)
class Row:
    """One detector of the catalogue."""

    recipe: Detector
    """Unfitted, with the settings that `fit` takes when nothing else is said."""
    description: str
    """One line: what it is and what it compares."""


CATALOGUE: Mapping[str, Row] = {
    "gaussian": Row(
        FeatureGaussian(),
        "Gaussian per voxel over the feature maps of a 3-D encoder (SimCLR-trained or random), every layer set",
    ),
    "padim": Row(
        FeatureGaussian(
            encoder=EncoderSettings(architecture="resnet18_2d"),
            features=FeatureSettings(layers=("layer1", "layer2", "layer3"), reduction="draw", max_channels=100),
            smoothing_mm=4.0,
        ),
        "PaDiM: Gaussian per voxel over 2-D ResNet-18 features of axial slices, seeded channel draw",
    ),
    "patchcore": Row(
        PatchCore(),
        "PatchCore in 3-D: distance to the nearest healthy patch in a memory bank, greedy 1 % coreset",
    ),
    "patchcore-position": Row(
        PatchCore(bank=BankSettings(subset="random", coreset_ratio=0.25, position="restricted")),
        "PatchCore that compares each place with healthy patches within 8 mm only; a quarter kept",
    ),
    "zscore": Row(
        VoxelZScore(),
        "|z| of the smoothed intensity against healthy scans at the same voxel; no features",
    ),
    "intensity-bright": Row(
        Intensity(polarity="bright"),
        "rank of the intensity inside the brain, bright is anomalous (lesions on FLAIR)",
    ),
    "intensity-dark": Row(
        Intensity(polarity="dark"),
        "rank of the intensity inside the brain, dark is anomalous (lesions on T1)",
    ),
}


def kinds() -> dict[str, type[Any]]:
    """Types of detectors by the name that run.json gives them: those of the catalogue, and what is made of two runs."""
    return {type(row.recipe).__name__: type(row.recipe) for row in CATALOGUE.values()} | {Gated.__name__: Gated}


Gated.kinds = staticmethod(kinds)


def make(name: str, changes: Mapping[str, Any] | None = None) -> Detector:
    """A fresh recipe of the catalogue, with some hyper-parameters changed."""
    if name not in CATALOGUE:
        close = difflib.get_close_matches(name, CATALOGUE, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise BadInput(f"No detector {name!r}.{hint} The catalogue has: {', '.join(CATALOGUE)}.")
    recipe: Any = CATALOGUE[name].recipe
    changed: Detector = dataclasses.replace(recipe, **dict(changes or {}))
    return changed


def kind_of(detector: Detector) -> str:
    """Name of the detector's type, as it stands in run.json."""
    return type(detector).__name__


def kinds_that_can(capability: type) -> tuple[str, ...]:
    """Names, as they stand in run.json, of the types of detectors that have a capability."""
    return tuple(name for name, kind in kinds().items() if can(kind, capability))


def plain_name(kind: str) -> str:
    """What a kind of detector is, in words that a user reads."""
    known = kinds()
    return str(known[kind].plain_name) if kind in known else f"a detector of kind {kind!r}"


def recipe_json(detector: Detector) -> dict[str, Any]:
    """The recipe with its type, for run.json."""
    return {"kind": kind_of(detector), **as_json(detector)}


def from_recipe(recipe: Mapping[str, Any]) -> Detector:
    """The unfitted detector that `recipe_json` described."""
    fields = {key: value for key, value in recipe.items() if key != "kind"}
    detector: Detector = from_json(detector_kind(recipe["kind"]), fields)
    return detector


def detector_kind(kind: str) -> type[Any]:
    """The type by its name in run.json."""
    known = kinds()
    if kind not in known:
        raise BadInput(f"Detector type {kind!r} is not known here. Known: {', '.join(known)}. Is the run newer?")
    return known[kind]
