"""Convolutions over time, for windows of sensor readings (channels x time)."""

from collections.abc import Sequence

from torch import nn

from fedhp.model.networks.layers import Norm, stack
from fedhp.model.networks.windows import KERNEL


def conv1d(widths: Sequence[int], norm: Norm, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Convolutions of five steps, each with normalisation, ReLU and pooling by two; then the mean over time.

    Args:
        widths: Channels of each convolution.
        norm: Makes the normalisation after a convolution of that many channels.
        input_shape: Of a sample, ``(1, channels, time)``, as windows are stored in arrays, or
            ``(channels, 1, time)``. Maps of one step are not halved further.
        num_classes: Width of the output.
    """
    convolutions = []
    before, steps = input_shape[0] * input_shape[1], input_shape[2]
    for width in widths:
        convolution = nn.Conv1d(before, width, KERNEL, padding=KERNEL // 2, bias=False)
        convolutions.append((convolution, nn.MaxPool1d(2) if steps > 1 else None))
        before, steps = width, max(1, steps // 2)
    return stack({"window": nn.Flatten(1, 2)}, convolutions, norm, nn.AdaptiveAvgPool1d(1), num_classes)
