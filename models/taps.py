"""What is known of a layer before it runs: its name, its channels, and where its cells lie."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tap:
    """A named place in an encoder where features can be read.

    `stride` counts input voxels per cell along each axis. Every stage is a centred, padded convolution, so cell i
    lies on input voxel stride·i (offset 0), and an axis of n voxels has ceil(n / stride) cells.
    """

    name: str
    channels: int
    stride: tuple[int, int, int]
