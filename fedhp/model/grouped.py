"""Plain convolutional networks side by side: their channels lie beside each other in common feature maps.

Maps of K networks are of shape ``(batch, K * channels, ...)``. A convolution of each is one grouped
convolution of all, a group normalisation one of K times the groups; after the maps are flattened, dense
layers are batched products. Windows over time are taken for images of one row, whose channels can lie
innermost too.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

# Logits of K networks, of shape (K, batch, classes), from their parameters in order, each with an axis for
# the networks first, and samples of shape (K, batch, *sample).
Logits = Callable[[Sequence[torch.Tensor], torch.Tensor], torch.Tensor]

# Measured on a CPU, for up to so many networks at a time: beyond so many pairs of an input and an output
# channel, single convolutions are as fast, over images and over time, by the axes of their weights.
MOST_GROUPS = 8
_MOST_PAIRS = {4: 300, 3: 5000}

_POOLS = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
)


def grouping_pays(shapes: Iterable[Sequence[int]]) -> bool:
    """Says whether networks with parameters of these shapes are best computed side by side, on a CPU."""
    return all(math.prod(shape[:2]) <= _MOST_PAIRS.get(len(shape), math.inf) for shape in shapes)


def grouped(module: nn.Module) -> Logits | None:
    """Returns how the logits of networks like this one are computed side by side; None if they are not.

    They are for chains of convolutions (of one group), group normalisation, ReLU and pooling, then dense
    layers.
    """
    if type(module) is not nn.Sequential or not _is_chain(layers := [*module]):
        return None
    layers = _pooled_first(layers)

    def logits(rows: Sequence[torch.Tensor], samples: torch.Tensor) -> torch.Tensor:
        own, flow = iter(rows), samples.transpose(0, 1).flatten(1, 2)
        for layer in layers:
            step = _STEPS.get(type(layer))
            flow = layer(flow) if step is None else step(layer, flow, len(samples), own)
        return flow

    return logits


def _is_chain(layers: Sequence[nn.Module]) -> bool:
    ends = [place for place, layer in enumerate(layers) if _flattens(layer, -1)]
    if len(ends) != 1:
        return False
    start = 1 if _flattens(layers[0], 2) else 0  # windows, whose first axis is one of two that they share
    on_maps, dense = layers[start : ends[0]], layers[ends[0] + 1 :]
    parameters = [p for layer in layers for p in layer.parameters()]
    return (
        any(isinstance(layer, (nn.Conv1d, nn.Conv2d)) for layer in on_maps)
        and all(map(_is_on_maps, on_maps))
        and all(type(layer) in (nn.Linear, nn.ReLU) for layer in dense)
        and any(type(layer) is nn.Linear for layer in dense)
        and len({*parameters}) == len(parameters)  # one that comes twice has two gradients
        and all(p.requires_grad for p in parameters)
    )


def _pooled_first(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """Lets ReLU wait for a maximum that follows it: of fewer values, it and its gradient are the same."""
    ordered = [*layers]
    for place, pair in enumerate(pairwise(layers)):
        if type(pair[0]) is nn.ReLU and type(pair[1]) in (nn.MaxPool1d, nn.MaxPool2d):
            ordered[place : place + 2] = reversed(pair)
    return ordered


def _flattens(layer: nn.Module, end: int) -> bool:
    return isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, end)


def _is_on_maps(layer: nn.Module) -> bool:
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        return type(layer) in _STEPS and layer.groups == 1 and layer.padding_mode == "zeros"
    if type(layer) in _POOLS:
        return not getattr(layer, "return_indices", False)
    return type(layer) in (nn.GroupNorm, nn.ReLU)


# A layer of all networks: from that of one, what flows into it, their number, and their next parameters.
_Own = Iterator[torch.Tensor]


def _convolve(layer: nn.Conv1d | nn.Conv2d, maps: torch.Tensor, number: int, own: _Own) -> torch.Tensor:
    weights = next(own).flatten(0, 1)
    biases = None if layer.bias is None else next(own).flatten()
    if isinstance(layer, nn.Conv1d):
        maps = _images(maps)
        weights = weights.unsqueeze(2).contiguous(memory_format=torch.channels_last)
    if weights.is_contiguous(memory_format=torch.channels_last):
        maps = maps.contiguous(memory_format=torch.channels_last)
    padding = layer.padding if isinstance(layer.padding, str) else _of_image(layer.padding, 0)
    stride, dilation = _of_image(layer.stride), _of_image(layer.dilation)
    return functional.conv2d(maps, weights, biases, stride, padding, dilation, number)


def _images(maps: torch.Tensor) -> torch.Tensor:
    return maps.unsqueeze(2) if maps.dim() == 3 else maps


def _of_image(sizes: int | tuple[int, ...], of_one_row: int = 1) -> tuple[int, ...]:
    """Returns what a layer says of both axes of an image, or, over time, of the one row's first."""
    own = (sizes,) if isinstance(sizes, int) else sizes
    return own if len(own) == 2 else (of_one_row, *own)


def _pool_over_time(layer: nn.Module, maps: torch.Tensor, number: int, own: _Own) -> torch.Tensor:
    maps = _images(maps)
    if not isinstance(layer, nn.MaxPool1d):
        return layer(maps.squeeze(2)).unsqueeze(2)
    kernel, stride = _of_image(layer.kernel_size), _of_image(layer.stride)
    padding, dilation = _of_image(layer.padding, 0), _of_image(layer.dilation)
    return functional.max_pool2d(maps, kernel, stride, padding, dilation, layer.ceil_mode)


def _normalise(layer: nn.GroupNorm, maps: torch.Tensor, number: int, own: _Own) -> torch.Tensor:
    weights, biases = (next(own).flatten(), next(own).flatten()) if layer.affine else (None, None)
    return functional.group_norm(maps, number * layer.num_groups, weights, biases, layer.eps)


def _flatten(layer: nn.Flatten, maps: torch.Tensor, number: int, own: _Own) -> torch.Tensor:
    flat = maps.flatten(1, layer.end_dim)
    return flat if flat.dim() > 2 else flat.unflatten(1, (number, -1)).transpose(0, 1)


def _multiply(layer: nn.Linear, inputs: torch.Tensor, number: int, own: _Own) -> torch.Tensor:
    # Weights come first, so that autograd's gradient of them lies in memory as they do.
    weights, inputs = next(own), inputs.transpose(1, 2)
    if layer.bias is None:
        return torch.bmm(weights, inputs).transpose(1, 2)
    return torch.baddbmm(next(own).unsqueeze(2), weights, inputs).transpose(1, 2)


_STEPS: dict[type[nn.Module], Callable[..., torch.Tensor]] = {
    nn.Conv1d: _convolve,
    nn.Conv2d: _convolve,
    nn.MaxPool1d: _pool_over_time,
    nn.AvgPool1d: _pool_over_time,
    nn.AdaptiveAvgPool1d: _pool_over_time,
    nn.GroupNorm: _normalise,
    nn.Flatten: _flatten,
    nn.Linear: _multiply,
}
