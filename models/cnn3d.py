"""The five-stage 3-D CNN: convolution, GroupNorm, GELU, five times. No residuals, no pretraining."""

from torch import nn

from models.taps import Tap

GROUPS = (4, 8, 16, 16, 16)
KERNELS = (3, 3, 3, 3, 1)
WIDENING = (1, 2, 4, 8, 8)


def five_stage_cnn(
    in_channels: int = 1, width: int = 32, strides: tuple[int, ...] = (1, 2, 2, 1, 1)
) -> list[tuple[Tap, nn.Module]]:
    """The stages in order, each with its tap "stage0" ... "stage4".

    Stage widths are width·(1, 2, 4, 8, 8), the last stage is a 1³ convolution, weights are Kaiming normal (fan-out).
    With the default strides an input at 2 mm gives cells of 2, 4, 8, 8 and 8 mm, the millimetres that strides
    (2, 2, 2, 1, 1) give at 1 mm (Kovačević 2025, "Feature Modeling for Anomaly Detection in Neuroimaging").
    GroupNorm takes its statistics over the whole volume: a large lesion shifts every feature a little.

    ValueError when the width is not a multiple of 4 or the strides are not five positive numbers.
    """
    if width < 4 or width % 4:
        raise ValueError(f"Width {width} of cnn3d is not a multiple of 4, which its normalisation groups need. Try 16.")
    if len(strides) != 5 or min(strides) < 1:
        raise ValueError(f"Strides {strides} of cnn3d are not five positive numbers. Give for example (1, 2, 2, 1, 1).")
    if strides[4] != 1:
        raise ValueError(f"Stage 4 of cnn3d is a 1³ convolution; with stride {strides[4]} it would skip cells. Give 1.")
    stages: list[tuple[Tap, nn.Module]] = []
    channels, reach = in_channels, 1
    for number, (stride, kernel, groups, widening) in enumerate(zip(strides, KERNELS, GROUPS, WIDENING, strict=True)):
        stages.append(
            (
                Tap(f"stage{number}", width * widening, (reach * stride, reach * stride, reach * stride)),
                _stage(channels, width * widening, kernel, stride, groups),
            )
        )
        channels, reach = width * widening, reach * stride
    return stages


def _stage(channels: int, out_channels: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    convolution = nn.Conv3d(channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.GroupNorm(groups, out_channels), nn.GELU())
