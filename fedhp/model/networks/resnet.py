"""ResNet for small images (He et al. 2016, arXiv 1512.03385, section 4.2)."""

from collections.abc import Sequence

import torch
from torch import nn

from fedhp.model.networks.layers import Norm, initialise

_BLOCKS_PER_STAGE = 3


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, a 1x1 convolution where the shape changes (option B)."""

    def __init__(self, before: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.norm1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = norm(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != width:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), norm(width))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps ``(batch, before, height, width)`` to ``(batch, width, height / stride, width / stride)``."""
        inner = torch.relu_(self.norm1(self.conv1(maps)))
        return torch.relu_(self.norm2(self.conv2(inner)).add_(self.shortcut(maps)))


def resnet20(widths: Sequence[int], norm: Norm, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Three stages of three blocks; all blocks of a stage write into one residual stream.

    Args:
        widths: Channels of the three stages.
        norm: Makes the normalisation after a convolution of that many channels.
        input_shape: Channels, height and width of a sample.
        num_classes: Width of the output.
    """
    stem = nn.Sequential(
        nn.Conv2d(input_shape[0], widths[0], 3, padding=1, bias=False), norm(widths[0]), nn.ReLU(inplace=True)
    )
    stages = []
    for before, width in zip([widths[0], *widths], widths, strict=False):
        stride = 1 if not stages else 2
        blocks = [Block(before, width, stride, norm)]
        blocks += [Block(width, width, 1, norm) for _ in range(_BLOCKS_PER_STAGE - 1)]
        stages.append(nn.Sequential(*blocks))
    network = nn.Sequential()
    network.add_module("stem", stem)
    for number, stage in enumerate(stages, 1):
        network.add_module(f"stage{number}", stage)
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flatten", nn.Flatten())
    network.add_module("head", nn.Linear(widths[-1], num_classes))
    return initialise(network)
