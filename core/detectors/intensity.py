"""Intensity alone: what any method has to beat. Meissen et al. 2021, arXiv:2109.06540: thresholded equalised FLAIR."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Self

from core.features.score_maps import masked_score_map
from core.recipes import as_json, from_json
from core.types import Monitor, ScoreMap, silent
from data.errors import BadInput
from data.intensity import equalise
from data.json_files import read_json, write_json
from data.volume import Volume


@dataclass(eq=False)
class Intensity:
    """The rank of a voxel's intensity inside the brain, 0 to 1; learns nothing from the training volumes."""

    score_unit: ClassVar[str] = "intensity rank in the brain"
    plain_name: ClassVar[str] = "a rank of the intensity"
    only_ranks: ClassVar[bool] = True

    polarity: Literal["bright", "dark"] = "bright"
    """Which end is anomalous: bright (lesions on FLAIR) or dark (lesions on T1)."""
    contrast: int = 0
    """Index of the contrast."""
    smoothing_mm: float = 0.0
    """Standard deviation of the Gaussian smoothing of the score map, mm."""
    median_voxels: int = 0
    """Edge of the median filter of the score map, working-grid voxels; 0: none."""

    fitted_: bool = field(default=False, init=False, repr=False)

    def fit(self, train: Sequence[Volume], monitor: Monitor = silent) -> Self:
        """Only checks that there is something to be compared with."""
        if not train:
            raise BadInput("No training volume. Give at least two healthy subjects.")
        names = train[0].contrasts
        if not 0 <= self.contrast < len(names):
            raise BadInput(
                f"There is no contrast {self.contrast}. The volumes have {len(names)}: {', '.join(names)}; "
                f"count from 0 to {len(names) - 1}."
            )
        monitor(len(train), {"total": float(len(train))})
        self.fitted_ = True
        return self

    def score(self, volume: Volume) -> ScoreMap:
        """Rank of each voxel's intensity among the brain's voxels (reversed for dark)."""
        if not self.fitted_:
            raise RuntimeError("This Intensity is not fitted. Call fit(train), or load one from a run.")
        ranks = equalise(volume.voxels[self.contrast], volume.brain_mask)
        scores = ranks if self.polarity == "bright" else 1.0 - ranks
        return masked_score_map(
            scores, volume, self.score_unit, smoothing_mm=self.smoothing_mm, median_voxels=self.median_voxels
        )

    def save(self, directory: Path) -> None:
        """Write the recipe; there is no other state."""
        write_json(directory / "detector.json", {"recipe": as_json(self)})

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote."""
        detector = from_json(cls, read_json(directory / "detector.json")["recipe"])
        detector.fitted_ = True
        return detector
