"""What a detector can do beyond fitting and scoring: one protocol per capability.

Code outside this room asks for the capability that it needs (`can(detector, LayerSets)`) and never for a class or its
name, so a new detector is served by what it has. Attributes count as well as methods; a field's value is not looked at.
"""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypeGuard, TypeVar

import numpy as np
from jaxtyping import Float32

from core.features.settings import FeatureSettings
from core.memory_bank.settings import BankSettings
from core.memory_plan import GaussianSettings
from core.types import Detector, FeatureLayout, LayerSet, ScoreMap
from data.volume import Volume
from models.settings import EncoderSettings

if TYPE_CHECKING:
    from torch import Tensor

    from core.features.extraction import FeatureExtractor
    from core.memory_bank.bank import MemoryBank

C = TypeVar("C")
_MISSING = object()


class OwnFilters(Detector, Protocol):
    """Smooths or filters its own score maps."""

    smoothing_mm: float
    median_voxels: int


class LayerSets(OwnFilters, Protocol):
    """Works on the layers of an encoder; one fit gives distances for every combination of them."""

    encoder: EncoderSettings
    weights: str
    features: FeatureSettings
    memory_gb: float
    plan_text_: str
    extractor_: "FeatureExtractor | None"

    @property
    def layout_(self) -> FeatureLayout:
        """Where the distances live."""
        ...

    @property
    def layer_sets(self) -> tuple[LayerSet, ...]:
        """Every combination that one fit scores; the full set stands last."""
        ...

    def distances(
        self, volumes: Sequence[Volume], layer_sets: Sequence[LayerSet] | None = None
    ) -> Float32[np.ndarray, "layer_sets volumes positions"]:
        """Distance of each position for each layer set."""
        ...

    def distances_of(
        self, rows: "Sequence[Mapping[str, Tensor]]", layer_sets: Sequence[LayerSet] | None = None
    ) -> Float32[np.ndarray, "layer_sets volumes positions"]:
        """`distances` of volumes whose features are there already."""
        ...

    def to_map(self, distances: Float32[np.ndarray, " positions"], volume: Volume) -> ScoreMap:
        """Distances of one volume as a score map."""
        ...

    def narrowed(self, layers: LayerSet) -> Self:
        """The fitted detector reduced to some of its layers, and no stage that it does not need."""
        ...

    def subjects_together(self, most: int, memory_gb: float | None = None) -> int:
        """How many volumes `distances` can take at once within the memory limit, at most `most`."""
        ...

    def fitted_settings(self) -> dict[str, Any]:
        """What came of a fit, for the run's record."""
        ...

    def exactness(self, settings: Mapping[str, Any]) -> str:
        """What is exact and what is not when layers are combined; `settings` are `fitted_settings`. "" when all is."""
        ...


class ScanScores(LayerSets, Protocol):
    """Gives one number for a whole scan beside its map."""

    scan_rule: ClassVar[str]
    """How that number comes about, in words."""

    def distances_and_subject_scores(
        self, volumes: Sequence[Volume]
    ) -> tuple[Float32[np.ndarray, "layer_sets volumes positions"], list[dict[LayerSet, float]]]:
        """`distances` for every layer set, and per volume the score of the whole scan under each."""
        ...


class LeavesOut(LayerSets, Protocol):
    """Knows the distance of each training scan to what the others teach, without another fit."""

    def left_out(self) -> Float32[np.ndarray, "layer_sets volumes positions"]:
        """By training volume, in the order in which they were given."""
        ...


class Refits(Detector, Protocol):
    """Can learn from other scans at what it has learnt to see: same encoder, same channels, same positions."""

    def refitted(self, volumes: Sequence[Volume]) -> Self:
        """The detector fitted to other training volumes."""
        ...


class Covariance(LayerSets, Protocol):
    """Estimates a covariance of features, which can be estimated otherwise."""

    gaussian: GaussianSettings

    def used_settings(self) -> GaussianSettings:
        """Those of the fit."""
        ...

    def reestimated(self, settings: GaussianSettings) -> Self | None:
        """The detector with its covariance estimated otherwise, from what the fit kept; None if that is too little."""
        ...

    def refitted_by(self, volumes: Sequence[Volume], settings: GaussianSettings) -> Self:
        """The detector fitted to volumes by other settings of its covariance."""
        ...


class KeepsPatches(LayerSets, Protocol):
    """Compares with single healthy patches that it keeps: they can be shown."""

    bank: BankSettings
    bank_: "MemoryBank | None"

    def searchable_bank(self) -> "MemoryBank":
        """The patches, with their index where they are searched by one."""
        ...


class SearchIndex(Detector, Protocol):
    """Keeps a search index between processes."""

    index_cache_: Path | None


class TwoParts(Detector, Protocol):
    """Made of a gate and a second detector, at a threshold of the gate."""

    gate: Mapping[str, Any]
    gate_: Any
    second_: Any
    threshold_from: Literal["validation", "healthy"]
    gate_layers: LayerSet
    second_layers: LayerSet


class OnlyRanks(Detector, Protocol):
    """Learns nothing from its training scans: the intensity's rank is the score. What every method has to beat.

    That the attribute is there says it, whatever its value.
    """

    only_ranks: ClassVar[bool]


class TellsSize(Detector, Protocol):
    """Knows how much disk its fitted state takes."""

    def fitted_bytes(self, volume: Volume) -> int:
        """For scans like this one."""
        ...


def can(detector: object, capability: type[C]) -> TypeGuard[C]:
    """Whether a detector, or a type of detectors, has everything that a capability names."""
    fields = {field.name for field in dataclasses.fields(detector)} if dataclasses.is_dataclass(detector) else set()
    return all(
        name in fields or inspect.getattr_static(detector, name, _MISSING) is not _MISSING
        for name in members(capability)
    )


def members(capability: type) -> frozenset[str]:
    """The attributes and methods that a capability names, with those of the capabilities that it builds on."""
    found: set[str] = set()
    for base in capability.__mro__:
        if getattr(base, "_is_protocol", False) and base is not Protocol:
            named = (*inspect.get_annotations(base), *vars(base))
            found |= {name for name in named if not name.startswith("_")}
    return frozenset(found)


def refit(detector: Detector, volumes: Sequence[Volume]) -> Detector:
    """A detector fitted to other training volumes, at fixed features where it has any."""
    if can(detector, Refits):
        return detector.refitted(volumes)
    return dataclasses.replace(detector).fit(volumes)  # type: ignore[type-var]


def own_filters(detector: Detector) -> tuple[float, int]:
    """Smoothing (mm) and edge of the median filter (voxels) that a detector's own recipe asks for; 0 for none."""
    return (detector.smoothing_mm, detector.median_voxels) if can(detector, OwnFilters) else (0.0, 0)
