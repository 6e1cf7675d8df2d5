"""A memory bank of healthy patches over an encoder's features; the score is the distance to the nearest of them.

PatchCore (Roth et al. 2022, arXiv:2106.08265) in 3-D, over any encoder, and position-aware if asked to be. One bank
scores every combination of its layers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from jaxtyping import Float32

from core.features.score_maps import positions_in_brain, to_score_map
from core.features.settings import FeatureSettings, every_layer_set
from core.memory_bank.settings import BankSettings
from core.memory_plan import subjects_together
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
    from core.memory_bank.bank import MemoryBank
    from core.memory_bank.search import Found


@dataclass(eq=False)
class PatchCore:
    """Encoder features -> memory bank of healthy patches -> distance to the nearest one."""

    score_unit: ClassVar[str] = "distance to the nearest healthy patch"
    plain_name: ClassVar[str] = "a memory bank"
    scan_rule: ClassVar[str] = (
        "largest patch distance, re-weighted by the neighbours of its nearest entry (PatchCore, eq. 7)"
    )

    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    """Architecture and initialisation; ignored when `weights` is a saved encoder, which brings its own."""
    weights: str = ""
    """Directory of a pretrained encoder, or a safetensors file for `encoder`; empty: randomly initialised."""
    features: FeatureSettings = field(
        default_factory=lambda: FeatureSettings(layers=("stage1", "stage2"), neighbourhood=3)
    )
    """Taps, feature grid, channel reduction, and the neighbourhood whose mean is a patch."""
    bank: BankSettings = field(default_factory=BankSettings)
    """Which patches are kept, which of them count at a position, and how they are searched."""
    smoothing_mm: float = 0.0
    """Standard deviation of the Gaussian smoothing of the score map, mm."""
    median_voxels: int = 0
    """Edge of the median filter of the score map, working-grid voxels; 0: none."""
    memory_gb: float = 6.0
    """Peak memory that fitting and scoring may use, GB."""

    plan_text_: str = field(default="", init=False, repr=False)
    """What the last fit was expected to need, in words."""
    index_cache_: Path | None = field(default=None, init=False, repr=False)
    """Where the search index of this bank is kept between processes; None: in memory only."""
    extractor_: "FeatureExtractor | None" = field(default=None, init=False, repr=False)
    bank_: "MemoryBank | None" = field(default=None, init=False, repr=False)
    encoder_settings_: EncoderSettings | None = field(default=None, init=False, repr=False)
    whole_: "Self | None" = field(default=None, init=False, repr=False)
    """Of a narrowed detector: the one that has all layers."""

    @property
    def layout_(self) -> FeatureLayout:
        """Where the distances live."""
        return self._fitted()[0].layout

    @property
    def layer_sets(self) -> tuple[LayerSet, ...]:
        """Every combination that one bank scores; the full set stands last."""
        return every_layer_set(self.features.layers)

    def fit(self, train: Sequence[Volume], monitor: Monitor = silent) -> Self:
        """Build the bank from the patches of healthy volumes. `monitor` gets a call per volume, then the selection."""
        from core.devices import device
        from core.features.extraction import make_extractor, network_for

        if not train:
            raise BadInput("No training volume. Give at least two healthy subjects.")
        network, self.encoder_settings_ = network_for(self.encoder, self.weights, len(train[0].contrasts))
        self.extractor_ = make_extractor(network, self.features, train, device())
        self._build(train, monitor)
        return self

    def refitted(self, volumes: Sequence[Volume]) -> Self:
        """The detector with a bank of other volumes, at the same features and by the same settings.

        One that was narrowed chooses its patches on all layers, as the run's own bank was chosen.
        """
        if self.whole_ is not None:
            return self.whole_.refitted(volumes).narrowed(self.features.layers)
        changed = self._sharing(self.features)
        changed._build(volumes, silent)
        return changed

    def narrowed(self, layers: LayerSet) -> Self:
        """The fitted detector reduced to some of its layers: the same patches, and no stage that is not needed."""
        changed = self._sharing(replace(self.features, layers=layers))
        changed.bank_, changed.index_cache_, changed.whole_ = self._fitted()[1], self.index_cache_, self.whole_ or self
        return changed

    def distances(
        self, volumes: Sequence[Volume], layer_sets: Sequence[LayerSet] | None = None
    ) -> Float32[np.ndarray, "layer_sets volumes positions"]:
        """Distance of each position to the nearest healthy patch for each layer set, all from the one bank."""
        extractor, _ = self._fitted()
        return self.distances_of([extractor(volume).rows for volume in volumes], layer_sets)

    def distances_of(
        self, rows: "Sequence[Mapping[str, Tensor]]", layer_sets: Sequence[LayerSet] | None = None
    ) -> Float32[np.ndarray, "layer_sets volumes positions"]:
        """`distances` of volumes whose features are there already."""
        bank, wanted = self.searchable_bank(), tuple(layer_sets or self.layer_sets)
        # An index offers candidates by each layer that is asked for: with all of them, a set's do not depend on others.
        beside = () if self.bank.search == "exact" else every_layer_set(bank.layers)[: len(bank.layers)]
        return bank.distances(rows, (*wanted, *beside))[: len(wanted)]

    def distances_and_subject_scores(
        self, volumes: Sequence[Volume]
    ) -> tuple[Float32[np.ndarray, "layer_sets volumes positions"], list[dict[LayerSet, float]]]:
        """`distances` for every layer set, and per volume the score of the whole scan under each.

        That is the largest distance in the brain, re-weighted by how rare its nearest healthy patch is itself
        (`memory_bank.one_patch.reweighted`; Roth et al. 2022, eq. 7).
        """
        extractor, _ = self._fitted()
        rows = [extractor(volume).rows for volume in volumes]
        found = self.searchable_bank().search(rows, self.layer_sets)
        scores = [self._subject_scores(found, n, volume, rows[n]) for n, volume in enumerate(volumes)]
        return found.distance, scores

    def subjects_together(self, most: int, memory_gb: float | None = None) -> int:
        """How many volumes `distances` can take at once within the memory limit, at most `most`."""
        extractor, bank = self._fitted()
        layout = extractor.layout
        return subjects_together(
            bank.n_bytes,
            2 * sum(len(layout.layer_positions[layer]) * n for layer, n in layout.channels.items()),
            4 * len(self.layer_sets) * len(layout.positions),
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

    def fitted_settings(self) -> dict[str, Any]:
        """What came of a fit, for the run's record; of an approximate search also how far it is off (`Audit`)."""
        extractor, bank = self._fitted()
        audit = None if self.bank.search == "exact" else (self.searchable_bank().index or bank.open_index()).audit
        found: dict[str, Any] = {} if audit is None else {"audit": audit.text, "recall": audit.recall}
        if audit is not None:
            found |= {"mean_error": audit.mean_error, "p99_error": audit.p99_error}
        return {
            "entries": len(bank),
            "bytes": bank.n_bytes,
            "n_subjects": len(bank.subject_ids),
            "features": sum(bank.channels.values()),
            "positions": len(extractor.layout.positions),
            "subset": self.bank.subset,
            "position": self.bank.position,
            "search": self.bank.search,
            **found,
        }

    def exactness(self, settings: Mapping[str, Any]) -> str:
        """What is exact and what is not when the layers of one bank are combined; `settings` are `fitted_settings`."""
        bank, sets = self.bank, len(self.layer_sets)
        many = f"{settings['entries']:,} healthy patches" if "entries" in settings else "healthy patches"
        within = f" within {bank.radius_mm:g} mm" if bank.position == "restricted" else ""
        text = f"One bank of {many} serves all {sets} layer sets. "
        if bank.search == "exact":
            text += (
                f"Exact: the distance to the nearest of them{within} under every set, because squared distances of "
                "layers add up patch by patch. "
            )
        else:
            text += (
                f"Approximate: only candidates of a {bank.search.upper()} index are measured, so a distance may be "
                f"too large. {settings.get('audit', '')} "
            )
        if bank.subset in ("all", "random"):
            return text + "Which patches are kept does not depend on the layers."
        return text + (
            "Approximate: which patches are kept was decided on all layers together; a bank made for one set alone "
            "would keep others and can rank places quite differently. A random subset avoids that."
        )

    def save(self, directory: Path) -> None:
        """Encoder, feature layout and bank; everything that `load` needs. No search index: it is made from the bank."""
        from core.features.extraction import save_features

        extractor, bank = self._fitted()
        save_features(extractor, self.encoder_settings_, directory)
        bank.save(directory / "bank")
        write_json(directory / "detector.json", {"recipe": as_json(self)})

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote."""
        from core.devices import device
        from core.features.extraction import load_features
        from core.memory_bank.bank import MemoryBank

        detector = from_json(cls, read_json(directory / "detector.json")["recipe"])
        detector.extractor_, detector.encoder_settings_ = load_features(directory, detector.features)
        detector.bank_ = MemoryBank.load(directory / "bank", device=str(device()), memory_bytes=detector._limit_bytes)
        return detector

    @property
    def _limit_bytes(self) -> int:
        return int(self.memory_gb * 1e9)

    def _build(self, train: Sequence[Volume], monitor: Monitor) -> None:
        from core.devices import device
        from core.disk_plan import detector_bytes
        from core.memory_bank.bank import MemoryBank
        from core.memory_bank.cost import plan_bank

        assert self.extractor_ is not None
        layout = self.extractor_.layout
        self.bank_ = None
        plan = plan_bank(len(train), layout, self.bank, self._limit_bytes)
        self.plan_text_ = " ".join((*self.extractor_.encoder.loading_notes, plan.text))
        stored = detector_bytes(plan.stored_bytes, layout, self.extractor_.encoder, self.extractor_.projections)
        self.plan_text_ += f" Takes {size(stored)} on disk."
        monitor(0, {"planned_bytes": float(plan.peak_bytes), "disk_bytes": float(stored), "total": float(len(train))})
        self.bank_ = MemoryBank.build(
            self._feature_rows(train),
            [volume.subject_id for volume in train],
            layout,
            self.bank,
            limit_bytes=self._limit_bytes,
            device=str(device()),
            monitor=lambda number, values: monitor(*_step(number, values, len(train))),
        )

    def _feature_rows(self, volumes: Sequence[Volume]) -> "Iterator[Mapping[str, Tensor]]":
        assert self.extractor_ is not None
        for volume in volumes:
            yield self.extractor_(volume).rows

    def _sharing(self, features: FeatureSettings) -> Self:
        """The same recipe with the same encoder, and no bank yet."""
        extractor, _ = self._fitted()
        changed = replace(self, features=features)
        changed.encoder_settings_ = self.encoder_settings_
        # Candidates of an approximate search are found by all layers together.
        whole = features.layers == extractor.settings.layers or self.bank.search != "exact"
        changed.extractor_ = extractor if whole else replace(extractor, settings=features)
        return changed

    def searchable_bank(self) -> "MemoryBank":
        """The bank, with its index where it is searched by one."""
        bank = self._fitted()[1]
        if self.bank.search != "exact" and bank.index is None:
            bank.open_index(self.index_cache_)
        return bank

    def _subject_scores(
        self, found: "Found", number: int, volume: Volume, rows: "Mapping[str, Tensor]"
    ) -> dict[LayerSet, float]:
        from core.memory_bank.one_patch import reweighted

        inside = positions_in_brain(self.layout_, volume)
        scores = {}
        for n, layers in enumerate(self.layer_sets):
            position = int(inside[found.distance[n, number, inside].argmax()])
            entry = int(found.entry[n, number, position])
            scores[layers] = reweighted(self._fitted()[1], rows, position, entry, layers)
        return scores

    def _fitted(self) -> "tuple[FeatureExtractor, MemoryBank]":
        if self.extractor_ is None or self.bank_ is None:
            raise RuntimeError("This PatchCore is not fitted. Call fit(train), or load one from a run.")
        return self.extractor_, self.bank_


def _step(number: int, values: Mapping[str, float], volumes: int) -> tuple[int, Mapping[str, float]]:
    """A step of the build in volumes: once all are read, the patches chosen so far come as a value."""
    return (number, values) if "total" in values else (volumes, {**values, "chosen": float(number)})
