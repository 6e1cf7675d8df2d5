"""ResNet-10 and -18, in 3-D or slice by slice, cut into the stages whose features are read."""

from typing import Literal

from torch import nn

from models.taps import Tap

BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2)}


def resnet_stages(
    depth: Literal[10, 18],
    dimensions: Literal[2, 3],
    in_channels: int = 1,
    width: int = 64,
    stem_stride: int = 2,
    max_pool: bool = False,
) -> list[tuple[Tap, nn.Module]]:
    """The stages in order, each with its tap: conv1, layer1 ... layer4. Widths are width·(1, 1, 2, 4, 8).

    Without the max-pool, layer1 has the stride of conv1 and small lesions keep their cells. Each later layer halves
    the grid. In 2-D the last axis is the batch, so its stride is 1. The published width is 64.
    He et al. 2016, arXiv:1512.03385; network from MONAI.
    """
    if width < 1 or stem_stride < 1:
        raise ValueError(f"Width {width} and stem stride {stem_stride} of a ResNet are whole numbers from 1 up.")
    from monai.networks.nets.resnet import ResNet, ResNetBlock  # takes longer to import than torch; cnn3d needs none

    network = ResNet(
        ResNetBlock,
        list(BLOCKS[depth]),
        [width, 2 * width, 4 * width, 8 * width],
        spatial_dims=dimensions,
        n_input_channels=in_channels,
        conv1_t_stride=stem_stride,
        no_max_pool=not max_pool,
        feed_forward=False,
        bias_downsample=False,
    )
    pooled = [network.maxpool] if max_pool else []
    reach = stem_stride
    stages = [(_tap("conv1", width, reach, dimensions), _chain(network.conv1, network.bn1, network.act))]
    reach *= 2 if max_pool else 1
    stages.append((_tap("layer1", width, reach, dimensions), _chain(*pooled, network.layer1)))
    for number, layer in enumerate((network.layer2, network.layer3, network.layer4), start=2):
        reach *= 2
        stages.append((_tap(f"layer{number}", width * 2 ** (number - 1), reach, dimensions), layer))
    return stages


def _tap(name: str, channels: int, reach: int, dimensions: int) -> Tap:
    return Tap(name, channels, (reach, reach, reach if dimensions == 3 else 1))


def _chain(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules)
