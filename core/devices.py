"""Where the numbers are computed. One process today; every call is a no-op that a launcher can fill."""

import os

import torch


def device() -> torch.device:
    """The first accelerator, else the CPU. DICESCOPE_DEVICE=cpu forces the CPU."""
    wanted = os.environ.get("DICESCOPE_DEVICE", "")
    if wanted:
        return torch.device(wanted)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
