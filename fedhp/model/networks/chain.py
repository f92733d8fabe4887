"""Chains of layers whose layout is declared: dense and LeNet-like networks.

Declared rather than traced, since the entries of a sample are units here too, and since a device reads them
without PyTorch. `fedhp.model.networks.chain_modules` builds them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedhp.errors import ScenarioError
from fedhp.model.architecture import INPUTS
from fedhp.model.axes import AxisRef
from fedhp.model.layout import Layout

_KERNEL = (3, 3)


@dataclass(frozen=True)
class Layer:
    """A layer with weights: its incoming and outgoing groups (None where the axis is fixed) and sizes.

    Attributes:
        name: Of its parameters; also of what it makes, where that is a group.
        incoming: The group of units that it takes in.
        span: How many of its inputs each of those is.
        num_inputs: Its inputs in the full model.
        outgoing: The group of units that it makes.
        num_outputs: Its outputs in the full model.
        kernel: The sides of a convolution's kernel; of dense layers none.
    """

    name: str
    incoming: str | None
    span: int
    num_inputs: int
    outgoing: str | None
    num_outputs: int
    kernel: tuple[int, ...] = ()

    def sizes(self, counts: Mapping[str, int]) -> tuple[int, int]:
        """Returns the compact numbers of outputs and inputs."""
        rows = self.num_outputs if self.outgoing is None else counts[self.outgoing]
        columns = self.num_inputs if self.incoming is None else counts[self.incoming] * self.span
        return rows, columns


@dataclass(frozen=True)
class Chain:
    """Convolutions, each with ReLU and pooling by two, and then dense layers with ReLU between them."""

    layers: Sequence[Layer]
    layout: Layout


def mlp(
    widths: Sequence[int], floor: int, prune_inputs: bool, input_shape: tuple[int, ...], num_classes: int
) -> Chain:
    """A multi-layer perceptron; ``widths`` are its hidden layers."""
    groups = [f"fc{index}" for index in range(1, len(widths) + 1)]
    units = dict(zip(groups, widths, strict=True))
    num_inputs = math.prod(input_shape)
    if prune_inputs:
        units = {INPUTS: num_inputs, **units}
    incoming = INPUTS if prune_inputs else None
    layers = _dense_layers(incoming, 1, num_inputs, groups, widths, num_classes)
    return Chain(layers, _layout(layers, units, floor))


def cnn(widths: Sequence[int], floor: int, input_shape: tuple[int, ...], num_classes: int) -> Chain:
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
        Layer(name, before, 1, input_shape[0] if before is None else channels[before], name, width, _KERNEL)
        for name, before, width in zip(convs, [None, *convs], channels.values(), strict=False)
    ]
    layers = [*conv_layers, *dense]
    return Chain(layers, _layout(layers, {**channels, "fc1": widths[-1]}, floor))


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


def _dense_layers(
    incoming: str | None,
    span: int,
    num_inputs: int,
    groups: Sequence[str],
    widths: Sequence[int],
    num_classes: int,
) -> list[Layer]:
    layers = []
    for group, width in zip(groups, widths, strict=True):
        layers.append(Layer(group, incoming, span, num_inputs, group, width))
        incoming, span, num_inputs = group, 1, width
    layers.append(Layer("head", incoming, span, num_inputs, None, num_classes))
    return layers


def _layout(layers: Sequence[Layer], widths: Mapping[str, int], floor: int) -> Layout:
    shapes: dict[str, tuple[int, ...]] = {}
    axes: dict[str, tuple[AxisRef | None, ...]] = {}
    for layer in layers:
        weight, bias = f"{layer.name}.weight", f"{layer.name}.bias"
        rows = AxisRef(layer.outgoing) if layer.outgoing else None
        columns = AxisRef(layer.incoming, layer.span) if layer.incoming else None
        shapes[weight] = (layer.num_outputs, layer.num_inputs, *layer.kernel)
        shapes[bias] = (layer.num_outputs,)
        axes[weight] = (rows, columns, *(None for _ in layer.kernel))
        axes[bias] = (rows,)
    floors = {group: min(floor, width) for group, width in widths.items()}
    return Layout(dict(widths), shapes, axes, floors)
