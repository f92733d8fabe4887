"""VGG with batch or group normalisation (Simonyan & Zisserman 2015, arXiv 1409.1556), for small images."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from fedhp.networks.layers import Norm, initialise

USUAL = (64, 128, 256, 256, 512, 512, 512, 512)
_POOLED = (0, 1, 3, 5, 7)  # the convolutions of configuration A that a pooling follows


def vgg11(widths: Sequence[int], norm: Norm, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Configuration A: eight 3x3 convolutions, then one linear layer on the mean of each map.

    Args:
        widths: Channels of the eight convolutions.
        norm: Makes the normalisation after a convolution of that many channels.
        input_shape: Channels, height and width of a sample. Maps of one pixel are not halved further.
        num_classes: Width of the output.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before, side = input_shape[0], min(input_shape[1:])
    for index, width in enumerate(widths):
        layers[f"conv{index + 1}"] = nn.Conv2d(before, width, 3, padding=1, bias=False)
        layers[f"norm{index + 1}"] = norm(width)
        layers[f"relu{index + 1}"] = nn.ReLU(inplace=True)
        if index in _POOLED and side > 1:
            layers[f"pool{index + 1}"] = nn.MaxPool2d(2)
            side //= 2
        before = width
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(before, num_classes)
    return initialise(nn.Sequential(layers))
