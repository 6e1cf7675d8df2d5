"""The head that contrastive training puts on an encoder and then throws away."""

import torch
from torch import nn

PROJECTED = 64
"""Length of a projected embedding (Kovačević 2025)."""


def projection_head(embedding_dim: int, hidden: int = 128, projected: int = PROJECTED, seed: int = 0) -> nn.Sequential:
    """Two-layer perceptron embedding_dim → hidden → projected; the loss normalises its output.

    Works on the last axis, so it projects whole brains and rows of positions alike (there it is a 1x1x1 convolution).
    Seeded; the global random state is left as it was. Chen et al. 2020, arXiv:2002.05709, section 2.1.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(embedding_dim, hidden), nn.ReLU(), nn.Linear(hidden, projected))


def class_head(embedding_dim: int, classes: int, seed: int = 0) -> nn.Linear:
    """One linear layer embedding_dim → classes. Seeded; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(embedding_dim, classes)
