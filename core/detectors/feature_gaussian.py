"""A multivariate Gaussian per voxel over an encoder's features; the score is the Mahalanobis distance.

PaDiM (Defard et al. 2020, arXiv:2011.08785) in 3-D, over any encoder. One fit scores every combination of its layers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from jaxtyping import Float32

from core.features.score_maps import to_score_map
from core.features.settings import FeatureSettings, every_layer_set
from core.memory_plan import GaussianSettings, plan_memory, subjects_together
from core.recipes import as_json, from_json
from core.types import FeatureLayout, LayerSet, Monitor, ScoreMap, silent
from data.errors import BadInput
from data.json_files import read_json, write_json
from data.room import size
from data.volume import Volume
from models.settings import EncoderSettings

if TYPE_CHECKING:  # a recipe alone, as in the catalogue, needs no torch
    from torch import Tensor

    from core.features.extraction import FeatureExtractor
    from core.gaussian.voxel_gaussian import VoxelGaussian


@dataclass(eq=False)
class FeatureGaussian:
    """Encoder features -> Gaussian per position -> Mahalanobis distance."""

    score_unit: ClassVar[str] = "Mahalanobis distance"
    plain_name: ClassVar[str] = "a Gaussian per voxel"

    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    """Architecture and initialisation; ignored when `weights` is a saved encoder, which brings its own."""
    weights: str = ""
    """Directory of a pretrained encoder, or a safetensors file for `encoder`; empty: randomly initialised."""
    features: FeatureSettings = field(default_factory=FeatureSettings)
    """Taps, feature grid, channel reduction."""
    gaussian: GaussianSettings = field(default_factory=GaussianSettings)
    """Form, covariance, shrinkage."""
    smoothing_mm: float = 0.0
    """Standard deviation of the Gaussian smoothing of the score map, mm."""
    median_voxels: int = 0
    """Edge of the median filter of the score map, working-grid voxels; 0: none."""
    memory_gb: float = 6.0
    """Peak memory that fitting and scoring may use, GB."""

    plan_text_: str = field(default="", init=False, repr=False)
    """The memory law of the last fit, in words."""
    extractor_: "FeatureExtractor | None" = field(default=None, init=False, repr=False)
    gaussian_: "VoxelGaussian | None" = field(default=None, init=False, repr=False)
    encoder_settings_: EncoderSettings | None = field(default=None, init=False, repr=False)

    @property
    def layout_(self) -> FeatureLayout:
        """Where the distances live."""
        return self._fitted()[0].layout

    @property
    def layer_sets(self) -> tuple[LayerSet, ...]:
        """Every combination that one fit scores; the full set stands last."""
        return every_layer_set(self.features.layers)

    def fit(self, train: Sequence[Volume], monitor: Monitor = silent) -> Self:
        """Learn the healthy Gaussian of every position. `monitor` gets one call per volume."""
        from core.devices import device
        from core.disk_plan import detector_bytes
        from core.features.extraction import make_extractor, network_for
        from core.gaussian.running import fit_gaussian

        if not train:
            raise BadInput("No training volume. Give at least two healthy subjects.")
        network, self.encoder_settings_ = network_for(self.encoder, self.weights, len(train[0].contrasts))
        self.extractor_ = make_extractor(network, self.features, train, device())
        layout = self.extractor_.layout
        plan = plan_memory(
            len(train),
            layout.channels,
            {name: len(rows) for name, rows in layout.layer_positions.items()},
            len(layout.positions),
            self.gaussian,
            self._limit_bytes,
        )
        self.plan_text_ = " ".join((*network.loading_notes, plan.text))
        stored = detector_bytes(plan.stored_bytes, layout, network, self.extractor_.projections)
        self.plan_text_ += f" Takes {size(stored)} on disk."
        monitor(0, {"planned_bytes": float(plan.peak_bytes), "disk_bytes": float(stored), "total": float(len(train))})
        self.gaussian_ = fit_gaussian(
            self._feature_rows(train, monitor),
            layout.lookup,
            layout.channels,
            self.gaussian,
            n_subjects=len(train),
            limit_bytes=self._limit_bytes,
            device=str(device()),
        )
        return self

    def distances(
        self, volumes: Sequence[Volume], layer_sets: Sequence[LayerSet] | None = None
    ) -> Float32[np.ndarray, "layer_sets volumes positions"]:
        """Mahalanobis distance of each position for each layer set, all from the one fit."""
        extractor, _ = self._fitted()
        return self.distances_of([extractor(volume).rows for volume in volumes], layer_sets)

    def distances_of(
        self, rows: "Sequence[Mapping[str, Tensor]]", layer_sets: Sequence[LayerSet] | None = None
    ) -> Float32[np.ndarray, "layer_sets volumes positions"]:
        """`distances` of volumes whose features are there already."""
        return self._fitted()[1].mahalanobis_subsets(rows, layer_sets or self.layer_sets)

    def left_out(self) -> Float32[np.ndarray, "layer_sets volumes positions"]:
        """Distance of each training volume to the Gaussian of the others, in the order in which they were given."""
        return self._fitted()[1].leave_one_out(self.layer_sets)

    def subjects_together(self, most: int, memory_gb: float | None = None) -> int:
        """How many volumes `distances` can take at once within the memory limit, at most `most`."""
        extractor, gaussian = self._fitted()
        layout = extractor.layout
        return subjects_together(
            gaussian.n_bytes,
            sum(len(layout.layer_positions[layer]) * n for layer, n in layout.channels.items()),
            len(self.layer_sets) * len(layout.positions),
            int(np.prod(layout.working_grid.shape)),
            self._limit_bytes if memory_gb is None else memory_gb * 1e9,
            most,
        )

    def score(self, volume: Volume) -> ScoreMap:
        """Distance over all fitted layers on the working grid, NaN outside the brain."""
        distances = self.distances([volume], [self.features.layers])[0, 0]
        return self.to_map(distances, volume)

    def to_map(self, distances: Float32[np.ndarray, " positions"], volume: Volume) -> ScoreMap:
        """Distances of one volume as a score map: linear interpolation, smoothing, median, brain mask."""
        return to_score_map(
            distances,
            self.layout_,
            volume,
            self.score_unit,
            smoothing_mm=self.smoothing_mm,
            median_voxels=self.median_voxels,
        )

    def narrowed(self, layers: LayerSet) -> Self:
        """The fitted detector reduced to some of its layers: the marginal Gaussian, exactly."""
        _, gaussian = self._fitted()
        changed = replace(self, features=replace(self.features, layers=layers))
        return self._sharing(changed, gaussian if gaussian.layers == layers else gaussian.marginal(layers))

    def refitted(self, volumes: Sequence[Volume]) -> Self:
        """The detector fitted to other training volumes at fixed features.

        The encoder, the layout and the channel reduction stay; EnvironmentProblem when its memory is too small.
        """
        had = self._fitted()[1]
        form = had.form if had.settings.covariance == "full" else "auto"
        return self.refitted_by(volumes, replace(had.settings, form=form))

    def refitted_by(self, volumes: Sequence[Volume], settings: GaussianSettings) -> Self:
        """`refitted` by other settings of the Gaussian."""
        from core.devices import device
        from core.gaussian.running import fit_gaussian

        extractor, gaussian = self._fitted()
        fitted = fit_gaussian(
            (extractor(volume).rows for volume in volumes),
            gaussian.lookup,
            gaussian.channels,
            settings,
            n_subjects=len(volumes),
            limit_bytes=self._limit_bytes,
            device=str(device()),
        )
        return self._sharing(self, fitted)

    def reestimated(self, settings: GaussianSettings) -> Self | None:
        """The detector with its covariance estimated otherwise, as in `reestimate`; no scan is read."""
        from core.gaussian.reestimate import reestimate

        changed = reestimate(self._fitted()[1], settings)
        return None if changed is None else self._sharing(self, changed)

    def used_settings(self) -> GaussianSettings:
        """Those of the fit."""
        return self._fitted()[1].settings

    def fitted_settings(self) -> dict[str, Any]:
        """What came of a fit, for the run's record."""
        _, fitted = self._fitted()
        return {
            "form": fitted.form,
            "n_subjects": fitted.n_subjects,
            "features": sum(fitted.channels.values()),
            "positions": fitted.n_positions,
            "bytes": fitted.n_bytes,
        }

    def exactness(self, settings: Mapping[str, Any]) -> str:
        """A marginal of a Gaussian is a block of it: every layer set is exact, and nothing needs to be said."""
        return ""

    def save(self, directory: Path) -> None:
        """Encoder, feature layout and Gaussian; everything that `load` needs."""
        from core.features.extraction import save_features

        extractor, gaussian = self._fitted()
        save_features(extractor, self.encoder_settings_, directory)
        gaussian.save(directory / "gaussian")
        write_json(directory / "detector.json", {"recipe": as_json(self)})

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote."""
        from core.devices import device
        from core.features.extraction import load_features
        from core.gaussian.voxel_gaussian import VoxelGaussian

        detector = from_json(cls, read_json(directory / "detector.json")["recipe"])
        detector.extractor_, detector.encoder_settings_ = load_features(directory, detector.features)
        detector.gaussian_ = VoxelGaussian.load(directory / "gaussian", device=str(device()))
        return detector

    @property
    def _limit_bytes(self) -> int:
        return int(self.memory_gb * 1e9)

    def _sharing(self, recipe: Self, gaussian: "VoxelGaussian") -> Self:
        """A recipe with this fit's encoder and layout, and a Gaussian."""
        extractor, _ = self._fitted()
        changed = replace(recipe)
        changed.encoder_settings_ = self.encoder_settings_
        same = recipe.features.layers == extractor.settings.layers
        changed.extractor_ = extractor if same else replace(extractor, settings=recipe.features)
        changed.gaussian_ = gaussian
        return changed

    def _feature_rows(self, volumes: Sequence[Volume], monitor: Monitor) -> "Iterator[Mapping[str, Tensor]]":
        assert self.extractor_ is not None
        for number, volume in enumerate(volumes, start=1):
            yield self.extractor_(volume).rows
            monitor(number, {"total": float(len(volumes))})

    def _fitted(self) -> "tuple[FeatureExtractor, VoxelGaussian]":
        if self.extractor_ is None or self.gaussian_ is None:
            raise RuntimeError("This FeatureGaussian is not fitted. Call fit(train), or load one from a run.")
        return self.extractor_, self.gaussian_
