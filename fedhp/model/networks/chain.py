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


@dataclass(frozen=True)
class Convolutional:
    """A kind of network: convolutions, each with ReLU and 2x2 max-pooling, then dense layers.

    Attributes:
        kernel: The side of a convolution's kernel.
        padding: Zeros around what a convolution takes, on each side.
        num_dense: Hidden dense layers, of which the last widths are.
    """

    kernel: int
    padding: int
    num_dense: int = 1

    def sides(self, before: Sequence[int]) -> tuple[int, ...]:
        """Returns the sides of an image behind one convolution and its pooling."""
        return tuple(max(0, side + 2 * self.padding - self.kernel + 1) // 2 for side in before)


# ``fedavg_cnn`` is that of McMahan et al. 2017 (arXiv 1602.05629, section 3), ``lenet5`` LeCun et al.'s of
# 1998 with ReLU and maxima, as benchmarks of federated learning have it (Li et al. 2022, arXiv 2102.02079).
CONVOLUTIONAL: Mapping[str, Convolutional] = {
    "cnn": Convolutional(3, padding=1),
    "fedavg_cnn": Convolutional(5, padding=2),
    "lenet5": Convolutional(5, padding=0, num_dense=2),
    "spiking_cnn": Convolutional(3, padding=1),  # spikes come in the place of ReLU
}


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
        padding: Of a convolution.
    """

    name: str
    incoming: str | None
    span: int
    num_inputs: int
    outgoing: str | None
    num_outputs: int
    kernel: tuple[int, ...] = ()
    padding: int = 0

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


def cnn(
    name: str, widths: Sequence[int], floor: int, input_shape: tuple[int, ...], num_classes: int
) -> Chain:
    """A network of the LeNet kind, one of `CONVOLUTIONAL`.

    ``widths`` are the channels of the convolutions followed by the hidden dense layers.
    """
    kind = CONVOLUTIONAL[name]
    num_convs = len(widths) - kind.num_dense
    if num_convs < 1 or len(input_shape) != 3:
        least, dense = ("two", "one dense layer") if kind.num_dense == 1 else ("three", "two dense layers")
        raise ScenarioError(
            f"model '{name}' takes images (channels, height, width) and at least {least} widths (channels of "
            f"each convolution, then {dense}); got inputs of shape {input_shape} and widths "
            f"{widths}"
        )
    _check_sides(name, input_shape)
    sides = input_shape[1:]
    for _ in range(num_convs):
        sides = kind.sides(sides)
    if min(sides) < 1:
        raise ScenarioError(
            f"model '{name}' halves the image {num_convs} times, which inputs of shape {input_shape} do not "
            f"allow; give fewer widths"
        )
    convs = [f"conv{index}" for index in range(1, num_convs + 1)]
    hidden = [f"fc{index}" for index in range(1, kind.num_dense + 1)]
    units = dict(zip([*convs, *hidden], widths, strict=True))
    area = math.prod(sides)
    num_inputs = units[convs[-1]] * area
    dense = _dense_layers(convs[-1], area, num_inputs, hidden, widths[num_convs:], num_classes)
    kernel = (kind.kernel, kind.kernel)
    conv_layers = [
        Layer(
            own, before, 1, units[before] if before else input_shape[0], own, units[own], kernel, kind.padding
        )
        for own, before in zip(convs, [None, *convs], strict=False)
    ]
    layers = [*conv_layers, *dense]
    return Chain(layers, _layout(layers, units, floor))


def _check_sides(name: str, input_shape: tuple[int, ...]) -> None:
    """Refuses what no number of widths makes an image of."""
    if min(input_shape[1:]) > 1:
        return
    features = input_shape[:2] == (1, 1)
    said = f"features of shape ({input_shape[2]},)" if features else f"samples of shape {input_shape}"
    raise ScenarioError(
        f"model '{name}' takes images (channels, height, width), and {said} have no height and width; set "
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
