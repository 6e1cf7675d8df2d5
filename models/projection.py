"""The head that contrastive training puts on an encoder and then throws away."""

import torch
from torch import nn


def projection_head(embedding_dim: int, hidden: int = 128, projected: int = 64, seed: int = 0) -> nn.Sequential:
    """Two-layer perceptron embedding_dim → hidden → projected; the loss normalises its output.

    Seeded; the global random state is left as it was. Chen et al. 2020, arXiv:2002.05709, section 2.1.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(embedding_dim, hidden), nn.ReLU(), nn.Linear(hidden, projected))
