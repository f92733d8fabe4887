"""The layers that are compressed, as matrices: what multiplies, and what it is multiplied by."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812, as everybody calls it
from numpy.typing import NDArray
from torch import nn

Layer = nn.Linear | nn.Conv1d | nn.Conv2d
Matrix = NDArray[np.float64]

BATCH = 256


def called_layers(network: nn.Module, inputs: torch.Tensor) -> dict[str, Layer]:
    """Returns the dense layers and convolutions that a network calls, in the order of their calls.

    Two layers of one weight are one.

    Args:
        network: A network.
        inputs: A batch that it takes.
    """
    names = {module: name for name, module in network.named_modules() if isinstance(module, Layer)}
    found: dict[int, Layer] = {}
    with torch.no_grad(), seeing(list(names), lambda layer, _: found.setdefault(id(layer.weight), layer)):
        network(inputs[:1])
    return {names[layer]: layer for layer in found.values()}


@contextmanager
def seeing(layers: list[Layer], see: Callable[[Any, torch.Tensor], object]) -> Iterator[None]:
    """Hands each layer and its inputs to a function, just before the layer computes."""
    handles = [
        layer.register_forward_pre_hook(lambda module, inputs: (see(module, inputs[0]), None)[1])
        for layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def matrix(layer: Layer) -> Matrix:
    """Returns a layer's weights in float64, a row for each output: (outputs, inputs of an output).

    A convolution's columns are its input channels, each with all places of the kernel.
    """
    return layer.weight.detach().flatten(1).double().numpy().copy()


def set_matrix(layer: Layer, weights: Matrix) -> None:
    """Writes weights back, in the layer's own shape and precision."""
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weights).reshape(layer.weight.shape))


def groups_of(layer: Layer) -> int:
    """Returns how many groups of outputs have inputs of their own."""
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def patches(layer: Layer, inputs: torch.Tensor) -> torch.Tensor:
    """Returns what a layer's rows are multiplied by: (groups, columns of `matrix`, products of each row).

    Args:
        layer: A dense layer, of which all axes but the last are samples, or a convolution.
        inputs: What it takes.
    """
    if isinstance(layer, nn.Linear):
        return inputs.reshape(1, -1, inputs.shape[-1]).transpose(1, 2)
    sizes = (layer.kernel_size, layer.dilation, layer.stride)
    kernel, dilation, stride = ((1, *one)[-2:] for one in sizes)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(inputs, _padding(layer), mode)
    if isinstance(layer, nn.Conv1d):
        padded = padded.unsqueeze(2)
    columns = F.unfold(padded, kernel, dilation, 0, stride)  # (samples, channels x kernel, places)
    samples, _, places = columns.shape
    grouped = columns.reshape(samples, layer.groups, -1, places)
    return grouped.permute(1, 2, 0, 3).flatten(2)


def _padding(layer: nn.Conv1d | nn.Conv2d) -> list[int]:
    """Returns a convolution's padding as `F.pad` takes it: before and after, of the last axis first."""
    if layer.padding == "same":
        whole = [
            dilation * (size - 1) for dilation, size in zip(layer.dilation, layer.kernel_size, strict=True)
        ]
        both = [(size // 2, size - size // 2) for size in whole]
    elif isinstance(layer.padding, str):
        both = [(0, 0)] * len(layer.kernel_size)
    else:
        both = [(size, size) for size in layer.padding]
    return [size for pair in reversed(both) for size in pair]


def input_runs(layer: Layer, length: int) -> NDArray[np.intp]:
    """Returns for each column of `matrix` which run of ``length`` neighbouring inputs it belongs to.

    Of a convolution, neighbours are input channels at the same place of the kernel: what sparse kernels read
    together. The last run is shorter where the inputs do not divide.
    """
    channels = layer.weight.shape[1]
    places = layer.weight[0, 0].numel()
    run, place = np.divmod(np.arange(channels * places), places)
    return run // length * places + place
