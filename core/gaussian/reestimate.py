"""The Gaussian that a fit by other settings would have given, from what a fit kept."""

import numpy as np
import torch

from core.gaussian.voxel_gaussian import VoxelGaussian
from core.memory_plan import GaussianSettings


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
