"""HeteroFL's network for MNIST (Diao et al. 2021, arXiv 2010.01264, and its authors' settings)."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from fedhp.model.networks.layers import Norm
from fedhp.model.scaler import Scaler


def heterofl_cnn(
    widths: Sequence[int], norm: Norm, input_shape: tuple[int, ...], num_classes: int
) -> nn.Module:
    """Four 3x3 convolutions with bias, each scaled and normalised; pooling between them, and a linear layer.

    Weights before training are torch's own, of which the last bias is zero, as the authors draw them.

    Args:
        widths: Channels of the convolutions.
        norm: Makes the normalisation after a convolution of that many channels.
        input_shape: Channels, height and width of a sample. Maps of one pixel are not halved further.
        num_classes: Width of the output.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before, side = input_shape[0], min(input_shape[1:])
    for number, width in enumerate(widths, 1):
        layers[f"conv{number}"] = nn.Conv2d(before, width, 3, padding=1)
        layers[f"scaler{number}"] = Scaler(width)
        layers[f"norm{number}"] = norm(width)
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
        if number < len(widths) and side > 1:
            layers[f"pool{number}"] = nn.MaxPool2d(2)
            side //= 2
        before = width
    head = nn.Linear(before, num_classes)
    nn.init.zeros_(head.bias)
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": head}
    return nn.Sequential(layers)
