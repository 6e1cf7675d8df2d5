"""What determines an untrained encoder. Apart from the network, so that asking for one needs no torch."""

from dataclasses import dataclass
from typing import Literal

Architecture = Literal["cnn3d", "resnet10_3d", "resnet18_3d", "resnet10_2d", "resnet18_2d"]


@dataclass(frozen=True)
class EncoderSettings:
    """Everything that determines an untrained encoder."""

    architecture: Architecture = "cnn3d"
    """cnn3d: five convolutions; resnet10/18: residual, in 3-D or slice by slice (2d)."""
    in_channels: int = 1
    """Contrasts per volume."""
    width: int = 32
    """Channels of the first stage; the others follow. A published ResNet has 64."""
    strides: tuple[int, ...] = (1, 2, 2, 1, 1)
    """cnn3d only: stride of each stage, in its own input cells."""
    stem_stride: int = 2
    """ResNets only: stride of the first convolution, in voxels."""
    max_pool: bool = False
    """ResNets only: halve the grid once more after the first convolution, as published."""
    seed: int = 0
    """Of the initial weights."""
