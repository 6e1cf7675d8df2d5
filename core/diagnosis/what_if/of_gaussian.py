"""The Gaussian of a run under other assumptions: narrowed, estimated anew, fitted to fewer, scored again."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float32

from core.detectors import LAYERED, AnyDetector, FeatureGaussian, Gated, Layered, LayerSet, PatchCore
from core.devices import device
from core.gaussian.running import fit_gaussian
from core.gaussian.voxel_gaussian import VoxelGaussian
from core.memory_plan import GaussianSettings
from core.randomness import stream
from data.volume import Volume


def narrowed(detector: Layered, layers: LayerSet) -> Layered:
    """The fitted detector reduced to some of its layers, and no stage that it does not need.

    The marginal Gaussian, exactly; or the same patches of the same memory bank, compared by these layers.
    """
    if isinstance(detector, PatchCore):
        return detector.narrowed(layers)
    assert detector.extractor_ is not None
    assert detector.gaussian_ is not None
    features = dataclasses.replace(detector.features, layers=layers)
    gaussian = detector.gaussian_
    return _with_gaussian(
        dataclasses.replace(detector, features=features),
        detector,
        gaussian if gaussian.layers == layers else gaussian.marginal(layers),
    )


def reestimated(detector: FeatureGaussian, settings: GaussianSettings) -> FeatureGaussian | None:
    """The detector with its covariance estimated otherwise, as in `reestimate`; no scan is read."""
    assert detector.gaussian_ is not None
    changed = reestimate(detector.gaussian_, settings)
    return None if changed is None else _with_gaussian(detector, detector, changed)


def reestimate(gaussian: VoxelGaussian, settings: GaussianSettings) -> VoxelGaussian | None:
    """The Gaussian that a fit by other settings would have given, from what this fit kept.

    None where it does not hold what it takes: Ledoit-Wolf needs training features (form `dual`), full covariances
    cannot be had from diagonal or shared ones.
    """
    had, wanted = gaussian.settings.covariance, settings.covariance
    form, state = gaussian.form, gaussian.state
    if wanted == "diagonal" and had == "full":
        form, state = "primal", _variances(gaussian)
    elif wanted != had or (settings.shrinkage == "ledoit_wolf" and form != "dual"):
        return None
    return VoxelGaussian(gaussian.channels, gaussian.lookup, settings, form, gaussian.n_subjects, gaussian.means, state)


def refitted(detector: AnyDetector, volumes: Sequence[Volume], settings: GaussianSettings | None = None) -> AnyDetector:
    """The detector fitted to other training volumes (or by other Gaussian settings) at fixed features.

    A memory bank is built anew by its own settings: the same share of fewer patches is fewer patches.

    The encoder, the layout and the channel reduction stay; EnvironmentProblem when the detector's memory is too small.
    """
    if isinstance(detector, PatchCore):
        return detector.rebuilt(volumes)
    if isinstance(detector, Gated):
        gate, second = (refitted(part, volumes) for part in (detector.gate_, detector.second_))
        return dataclasses.replace(detector).with_parts(gate, second)
    if not isinstance(detector, FeatureGaussian):
        return dataclasses.replace(detector).fit(volumes)
    gaussian, extractor = detector.gaussian_, detector.extractor_
    assert gaussian is not None
    assert extractor is not None
    chosen = settings
    if chosen is None:
        keeps_form = gaussian.settings.covariance == "full"
        chosen = dataclasses.replace(gaussian.settings, form=gaussian.form if keeps_form else "auto")
    fitted = fit_gaussian(
        (extractor(volume).rows for volume in volumes),
        gaussian.lookup,
        gaussian.channels,
        chosen,
        n_subjects=len(volumes),
        limit_bytes=detector.memory_gb * 1e9,
        device=str(device()),
    )
    return _with_gaussian(detector, detector, fitted)


def nested_subset(count: int, parts: int, seed: int) -> tuple[int, ...]:
    """Indices of count / parts training scans, in order: a seeded draw in which fewer are always among more."""
    drawn = stream(seed, "fewer scans").permutation(count)
    return tuple(sorted(int(i) for i in drawn[: max(1, round(count / parts))]))


def rescored(
    detectors: Sequence[AnyDetector], volumes: Sequence[Volume], layers: LayerSet
) -> list[list[Float32[np.ndarray, "x y z"]]]:
    """Score maps (NaN outside the brain) of each detector for each volume, under one layer set.

    Detectors that share a feature extractor share its features: they are computed once per volume.
    """
    features = {
        id(extractor): [extractor(volume).rows for volume in volumes]
        for extractor in {id(d.extractor_): d.extractor_ for d in detectors if isinstance(d, LAYERED)}.values()
        if extractor is not None
    }
    maps = []
    for detector in detectors:
        if not isinstance(detector, LAYERED):
            maps.append([detector.score(volume).scores for volume in volumes])
            continue
        distances = _distances(detector, features[id(detector.extractor_)], layers)
        maps.append([detector.to_map(row, volume).scores for row, volume in zip(distances, volumes, strict=True)])
    return maps


def _distances(
    detector: Layered, rows: Sequence[Mapping[str, torch.Tensor]], layers: LayerSet
) -> Float32[np.ndarray, "volumes positions"]:
    if isinstance(detector, PatchCore):
        distances = detector.distances_of(rows, [layers])
    else:
        assert detector.gaussian_ is not None
        distances = detector.gaussian_.mahalanobis_subsets(rows, [layers])
    first: np.ndarray = distances[0]
    return first


def _with_gaussian(detector: FeatureGaussian, source: FeatureGaussian, gaussian: VoxelGaussian) -> FeatureGaussian:
    assert source.extractor_ is not None
    changed = dataclasses.replace(detector)
    changed.encoder_settings_ = source.encoder_settings_
    changed.extractor_ = source.extractor_
    if detector.features.layers != source.extractor_.settings.layers:
        changed.extractor_ = dataclasses.replace(source.extractor_, settings=detector.features)
    changed.gaussian_ = gaussian
    return changed


def _variances(gaussian: VoxelGaussian) -> dict[str, torch.Tensor]:
    """Sums of squares per feature, per layer at its own positions, from samples or from full moments."""
    if gaussian.form == "dual":
        return {layer: gaussian.state[layer].to(torch.float64).square().sum(1) for layer in gaussian.layers}
    diagonal = gaussian.state["all"].diagonal(dim1=-2, dim2=-1).to(torch.float64)
    starts = dict(zip(gaussian.layers, np.cumsum([0, *gaussian.channels.values()]), strict=False))
    state = {}
    for layer, count in gaussian.channels.items():
        rows, first = np.unique(gaussian.lookup[layer], return_index=True)
        values = torch.zeros_like(gaussian.means[layer])
        start = int(starts[layer])
        values[torch.from_numpy(rows)] = diagonal[torch.from_numpy(first), start : start + count]
        state[layer] = values
    return state
