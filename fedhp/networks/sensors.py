"""Convolutions over time, for windows of sensor readings (channels x time)."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from fedhp.networks.layers import Norm, initialise

USUAL = (32, 64, 64)
_KERNEL = 5


def conv1d(widths: Sequence[int], norm: Norm, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Convolutions of five steps, each with normalisation, ReLU and pooling by two; then the mean over time.

    Args:
        widths: Channels of each convolution.
        norm: Makes the normalisation after a convolution of that many channels.
        input_shape: Of a sample, ``(1, channels, time)``, as windows are stored in arrays, or
            ``(channels, 1, time)``. Maps of one step are not halved further.
        num_classes: Width of the output.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(window=nn.Flatten(1, 2))
    before, steps = input_shape[0] * input_shape[1], input_shape[2]
    for number, width in enumerate(widths, 1):
        layers[f"conv{number}"] = nn.Conv1d(before, width, _KERNEL, padding=_KERNEL // 2, bias=False)
        layers[f"norm{number}"] = norm(width)
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
        if steps > 1:
            layers[f"pool{number}"] = nn.MaxPool1d(2)
            steps //= 2
        before = width
    layers["pool"] = nn.AdaptiveAvgPool1d(1)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(before, num_classes)
    return initialise(nn.Sequential(layers))
