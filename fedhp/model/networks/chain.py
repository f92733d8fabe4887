"""Chains of layers with a layout that is declared beside the builder: dense and LeNet-like networks.

Declared rather than traced, since the entries of a sample are units here too, and since modules of any size
are built straight away: small models are built for every client of every round.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.errors import ScenarioError
from fedhp.model.architecture import INPUTS, Build
from fedhp.model.axes import AxisRef
from fedhp.model.layout import Layout
from fedhp.seeds import derive


def mlp(
    widths: Sequence[int], floor: int, prune_inputs: bool, input_shape: tuple[int, ...], num_classes: int
) -> tuple[Layout, Build]:
    """A multi-layer perceptron; ``widths`` are its hidden layers."""
    groups = [f"fc{index}" for index in range(1, len(widths) + 1)]
    units = dict(zip(groups, widths, strict=True))
    num_inputs = math.prod(input_shape)
    if prune_inputs:
        units = {INPUTS: num_inputs, **units}
    incoming = INPUTS if prune_inputs else None
    layers = _dense_layers(incoming, 1, num_inputs, groups, widths, num_classes)

    def build(counts: Mapping[str, int]) -> nn.Module:
        modules: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        _add_dense(modules, layers, counts)
        return nn.Sequential(modules)

    return _layout(layers, units, floor), build


def cnn(
    widths: Sequence[int], floor: int, input_shape: tuple[int, ...], num_classes: int
) -> tuple[Layout, Build]:
    """A network of the LeNet kind: 3x3 convolutions, each with ReLU and 2x2 max-pooling, then dense.

    ``widths`` are the channels of the convolutions followed by one hidden dense layer.
    """
    if len(widths) < 2 or len(input_shape) != 3:
        raise ScenarioError(
            "model 'cnn' takes images (channels, height, width) and at least two widths (channels of each "
            f"convolution, then one dense layer); got inputs of shape {input_shape} and widths "
            f"{widths}"
        )
    _check_sides(input_shape)
    num_convs = len(widths) - 1
    sides = [(input_shape[1] >> n, input_shape[2] >> n) for n in range(num_convs + 1)]
    if min(sides[-1]) < 1:
        raise ScenarioError(
            f"model 'cnn' halves the image {num_convs} times, which inputs of shape {input_shape} do not "
            f"allow; give fewer widths"
        )
    convs = [f"conv{index}" for index in range(1, num_convs + 1)]
    channels = dict(zip(convs, widths[:-1], strict=True))
    area = math.prod(sides[-1])
    dense = _dense_layers(convs[-1], area, channels[convs[-1]] * area, ["fc1"], widths[-1:], num_classes)
    conv_layers = [
        _Layer(name, before, 1, input_shape[0] if before is None else channels[before], name, width)
        for name, before, width in zip(convs, [None, *convs], channels.values(), strict=False)
    ]

    def build(counts: Mapping[str, int]) -> nn.Module:
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        for number, layer in enumerate(conv_layers, 1):
            rows, columns = layer.sizes(counts)
            modules[layer.name] = _plain(_Conv2d(columns, rows, kernel_size=3, padding=1), nn.Conv2d)
            modules[f"relu_{layer.name}"] = nn.ReLU(inplace=True)
            modules[f"pool{number}"] = nn.MaxPool2d(2)
        modules["flatten"] = nn.Flatten()
        _add_dense(modules, dense, counts)
        return nn.Sequential(modules)

    layers = [*conv_layers, *dense]
    return _layout(layers, {**channels, "fc1": widths[-1]}, floor, convs), build


def _check_sides(input_shape: tuple[int, ...]) -> None:
    """Refuses what no number of widths makes an image of."""
    if min(input_shape[1:]) > 1:
        return
    features = input_shape[:2] == (1, 1)
    said = f"features of shape ({input_shape[2]},)" if features else f"samples of shape {input_shape}"
    raise ScenarioError(
        f"model 'cnn' takes images (channels, height, width), and {said} have no height and width; set "
        f"model.name=mlp, or conv1d if their last axis is time"
    )


def uniform_weights(layout: Layout, seed: int) -> dict[str, NDArray[np.float32]]:
    """Returns initial weights of a chain: uniform in +-1/sqrt(fan_in), as ``torch.nn.Linear`` draws them."""
    weights = {}
    fan_in = 1
    for name, shape in layout.shapes.items():
        if len(shape) > 1:  # a bias follows its weight and shares its bound
            fan_in = math.prod(shape[1:])
        stream = torch.Generator().manual_seed(derive(seed, "initial weights", name))
        bound = 1 / math.sqrt(fan_in)
        weights[name] = torch.empty(shape).uniform_(-bound, bound, generator=stream).numpy()
    return weights


class _Linear(nn.Linear):
    """A linear layer that skips initialisation: its weights always come from a `ModelState`."""

    def reset_parameters(self) -> None:
        pass


class _Conv2d(nn.Conv2d):
    """A convolution that skips initialisation: its weights always come from a `ModelState`."""

    def reset_parameters(self) -> None:
        pass


def _plain(layer: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """Makes a layer one of torch's own: quantisers and exporters pass over subclasses without a word."""
    layer.__class__ = kind
    return layer


@dataclass(frozen=True)
class _Layer:
    """A layer with weights: its incoming and outgoing groups (None where the axis is fixed) and sizes."""

    name: str
    incoming: str | None
    span: int
    num_inputs: int
    outgoing: str | None
    num_outputs: int

    @property
    def parameters(self) -> tuple[str, str]:
        return f"{self.name}.weight", f"{self.name}.bias"

    def sizes(self, counts: Mapping[str, int]) -> tuple[int, int]:
        """Returns the compact numbers of outputs and inputs."""
        rows = self.num_outputs if self.outgoing is None else counts[self.outgoing]
        columns = self.num_inputs if self.incoming is None else counts[self.incoming] * self.span
        return rows, columns


def _dense_layers(
    incoming: str | None,
    span: int,
    num_inputs: int,
    groups: Sequence[str],
    widths: Sequence[int],
    num_classes: int,
) -> list[_Layer]:
    layers = []
    for group, width in zip(groups, widths, strict=True):
        layers.append(_Layer(group, incoming, span, num_inputs, group, width))
        incoming, span, num_inputs = group, 1, width
    layers.append(_Layer("head", incoming, span, num_inputs, None, num_classes))
    return layers


def _add_dense(
    modules: OrderedDict[str, nn.Module], layers: Sequence[_Layer], counts: Mapping[str, int]
) -> None:
    for layer in layers:
        rows, columns = layer.sizes(counts)
        modules[layer.name] = _plain(_Linear(columns, rows), nn.Linear)
        if layer.outgoing is not None:
            modules[f"relu_{layer.name}"] = nn.ReLU(inplace=True)


def _layout(
    layers: Sequence[_Layer], widths: Mapping[str, int], floor: int, convs: Sequence[str] = ()
) -> Layout:
    shapes: dict[str, tuple[int, ...]] = {}
    axes: dict[str, tuple[AxisRef | None, ...]] = {}
    for layer in layers:
        weight, bias = layer.parameters
        kernel = (3, 3) if layer.name in convs else ()
        rows = AxisRef(layer.outgoing) if layer.outgoing else None
        columns = AxisRef(layer.incoming, layer.span) if layer.incoming else None
        shapes[weight] = (layer.num_outputs, layer.num_inputs, *kernel)
        shapes[bias] = (layer.num_outputs,)
        axes[weight] = (rows, columns, *(None for _ in kernel))
        axes[bias] = (rows,)
    floors = {group: min(floor, width) for group, width in widths.items()}
    return Layout(dict(widths), shapes, axes, floors)
