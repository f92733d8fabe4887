"""VGG with batch or group normalisation (Simonyan & Zisserman 2015, arXiv 1409.1556), for small images."""

from collections.abc import Sequence

from torch import nn

from fedhp.model.networks.layers import Norm, stack

_POOLED = (0, 1, 3, 5, 7)  # the convolutions of configuration A that a pooling follows


def vgg11(widths: Sequence[int], norm: Norm, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Configuration A: eight 3x3 convolutions, then one linear layer on the mean of each map.

    Args:
        widths: Channels of the eight convolutions.
        norm: Makes the normalisation after a convolution of that many channels.
        input_shape: Channels, height and width of a sample. Maps of one pixel are not halved further.
        num_classes: Width of the output.
    """
    convolutions = []
    before, side = input_shape[0], min(input_shape[1:])
    for index, width in enumerate(widths):
        halved = index in _POOLED and side > 1
        side = side // 2 if halved else side
        convolution = nn.Conv2d(before, width, 3, padding=1, bias=False)
        convolutions.append((convolution, nn.MaxPool2d(2) if halved else None))
        before = width
    return stack({}, convolutions, norm, nn.AdaptiveAvgPool2d(1), num_classes)
