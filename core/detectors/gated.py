"""One map inside the segmentation of another: a gate finds where, a second detector says how much.

"PatchCore3D + X" of PatchCore3D: the first map is cut at its own threshold, inside that the second map's scores count,
elsewhere the score is 0. Theirs cut at the threshold that is best for the test scans; here it comes from validation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np

from core.detectors.capabilities import LayerSets, can, refit
from core.recipes import as_json, from_json
from core.types import Detector, LayerSet, Monitor, ScoreMap, silent
from data.errors import BadInput
from data.json_files import read_json, write_json
from data.volume import Volume

GATE, SECOND = "gate", "second"
"""Folders of the two parts inside the detector's own."""


@dataclass(eq=False)
class Gated:
    """The second detector's score where the gate's map reaches its threshold, 0 elsewhere, NaN outside the brain."""

    score_unit: ClassVar[str] = "score of the second map inside the gate, 0 outside it"
    plain_name: ClassVar[str] = "a gated detector"
    kinds: ClassVar[Callable[[], Mapping[str, type[Any]]]]
    """Detectors by the name that a recipe gives their type. The catalogue sets it: no detector imports another."""

    gate: Mapping[str, Any]
    """Recipe of the detector that decides where, with its type under "kind"."""
    second: Mapping[str, Any]
    """Recipe of the detector that decides how much."""
    gate_threshold: float
    """A voxel is inside the gate when the gate's score is at least this."""
    gate_rule: str
    """How the threshold was chosen, in words."""
    threshold_from: Literal["validation", "healthy"]
    """Which subjects chose it: labelled validation, or healthy calibration. Never test."""
    gate_layers: tuple[str, ...] = ()
    """Layer set of the gate; empty for all, and for detectors without layers."""
    second_layers: tuple[str, ...] = ()
    """Layer set of the second detector."""

    gate_: Any = field(default=None, init=False, repr=False)
    second_: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.threshold_from not in ("validation", "healthy"):
            raise BadInput(f"The gate's threshold is from {self.threshold_from!r}. Allowed: validation, healthy.")
        if not np.isfinite(self.gate_threshold):
            raise BadInput(f"The gate's threshold is {self.gate_threshold}. Allowed: a finite score.")
        for recipe in (self.gate, self.second):
            self._kind(recipe)

    @property
    def smoothing_mm(self) -> float:
        """Of the second map, before the gate."""
        return float(self.second.get("smoothing_mm", 0.0))

    @property
    def median_voxels(self) -> int:
        """Of the second map, before the gate."""
        return int(self.second.get("median_voxels", 0))

    def fit(self, train: Sequence[Volume], monitor: Monitor = silent) -> Self:
        """Fit both parts to the same volumes; the threshold stays as given."""
        gate = self._unfitted(self.gate).fit(train)
        return self.with_parts(gate, self._unfitted(self.second).fit(train, monitor))

    def with_parts(self, gate: Detector, second: Detector) -> Self:
        """Take fitted parts as they are."""
        self.gate_, self.second_ = gate, second
        return self

    def refitted(self, volumes: Sequence[Volume]) -> Self:
        """Both parts fitted to other training volumes; the threshold stays."""
        gate, second = (refit(part, volumes) for part in self._fitted())
        return replace(self).with_parts(gate, second)

    def score(self, volume: Volume) -> ScoreMap:
        """Both parts' maps of the volume, combined. BadInput where the second map is negative."""
        gate, second = self._fitted()
        return self.combine(_map(gate, volume, self.gate_layers), _map(second, volume, self.second_layers))

    def combine(self, gate: ScoreMap, second: ScoreMap) -> ScoreMap:
        """Two maps of one scan as one: the second where the gate's reaches the threshold, 0 elsewhere in the brain."""
        return gated_map(gate, second, self.gate_threshold)

    def save(self, directory: Path) -> None:
        """Write the recipe, and each part as it writes itself, under gate/ and second/."""
        gate, second = self._fitted()
        for name, part in ((GATE, gate), (SECOND, second)):
            (directory / name).mkdir(parents=True, exist_ok=True)
            part.save(directory / name)
        self.save_recipe(directory)

    def save_recipe(self, directory: Path) -> None:
        """Write the recipe alone, beside parts that are there already."""
        write_json(directory / "detector.json", {"recipe": as_json(self)})

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote."""
        detector = from_json(cls, read_json(directory / "detector.json")["recipe"])
        return detector.with_parts(
            cls._kind(detector.gate).load(directory / GATE), cls._kind(detector.second).load(directory / SECOND)
        )

    @classmethod
    def _kind(cls, recipe: Mapping[str, Any]) -> type[Any]:
        known = cls.kinds()
        if recipe.get("kind") not in known:
            raise BadInput(f"A part is of type {recipe.get('kind')!r}. Known: {', '.join(known)}.")
        return known[recipe["kind"]]

    def _unfitted(self, recipe: Mapping[str, Any]) -> Any:
        fields = {key: value for key, value in recipe.items() if key != "kind"}
        return from_json(self._kind(recipe), fields)

    def _fitted(self) -> tuple[Any, Any]:
        if self.gate_ is None or self.second_ is None:
            raise RuntimeError("This Gated is not fitted. Call fit(train), or load one from a run.")
        return self.gate_, self.second_


def gated_map(gate: ScoreMap, second: ScoreMap, threshold: float) -> ScoreMap:
    """`second` where `gate` is at least `threshold`, 0 elsewhere, NaN where the second map is NaN.

    BadInput when the maps are of different scans or grids, or when a score of the second is negative: 0 is then not
    its least score, and what the gate shuts out would outrank what it lets through.
    """
    if gate.subject_id != second.subject_id or not gate.grid.matches(second.grid):
        raise BadInput(
            f"Maps of {gate.subject_id!r} and {second.subject_id!r} on grids {gate.grid.shape} and "
            f"{second.grid.shape} cannot be combined. Score the same scans, prepared in the same way."
        )
    inside = np.nan_to_num(gate.scores, nan=-np.inf) >= threshold
    if (second.scores < 0).any():
        raise BadInput(
            f"The second map of {second.subject_id!r} has negative scores, down to {np.nanmin(second.scores):.4g}. "
            "Allowed: 0 or more, for outside the gate the score is 0. Choose another second detector."
        )
    scores = np.where(inside | np.isnan(second.scores), second.scores, np.float32(0))
    return ScoreMap(scores, second.grid, second.subject_id, Gated.score_unit)


def _map(detector: Any, volume: Volume, layers: LayerSet) -> ScoreMap:
    if layers and can(detector, LayerSets):
        return detector.to_map(detector.distances([volume], [layers])[0, 0], volume)
    found: ScoreMap = detector.score(volume)
    return found
