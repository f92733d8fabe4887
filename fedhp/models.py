"""Models: each is a layout (which axes each group of units indexes) and a builder, side by side."""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.choices import check_choice
from fedhp.errors import ScenarioError
from fedhp.memory import FLOAT_BYTES, INDEX_BYTES, MemoryModel, Op
from fedhp.seeds import derive
from fedhp.state import ModelState
from fedhp.structure import AxisRef, Layout, Structure

# The group whose units are the entries of a flattened sample. Neighbouring pixels say much the same, and in
# a dense network on images the first layer's columns are most of the parameters: at a tenth of its size, an
# MLP 784-300-100-10 keeps 377-58-66 where inputs can go, and 784-30-56 where they cannot.
INPUTS = "inputs"


@dataclass(frozen=True)
class ModelConfig:
    """Which network, and how wide.

    Attributes:
        name: A name in `MODELS`.
        widths: Units per group of the full model, from the input to the output (see each model).
        floor: Units that every group keeps at least.
        prune_inputs: Whether the entries of a sample (its pixels) are units too, which can be cut. Of
            ``mlp`` only: a convolution reads whole images.
    """

    name: str = "mlp"
    widths: list[int] = field(default_factory=lambda: [300, 100])
    floor: int = 2
    prune_inputs: bool = True

    def __post_init__(self) -> None:
        check_choice("model.name", self.name, MODELS)
        if not self.widths or min(self.widths) < 1:
            raise ScenarioError(f"model.widths must be a list of positive numbers, got {self.widths}")
        if not 1 <= self.floor <= min(self.widths):
            raise ScenarioError(
                f"model.floor must be from 1 to the smallest width, {min(self.widths)}, got {self.floor}"
            )


@dataclass(frozen=True)
class Architecture:
    """Everything that the rest needs to know of a model.

    Attributes:
        layout: Which axis of which parameter each group of units indexes.
        input_shape: Shape of one sample, channels first.
        num_classes: Width of the output.
        build: Makes the module whose groups have the given unit counts, its weights not initialised.
        ops: The operations of that module, for the memory model.
    """

    layout: Layout
    input_shape: tuple[int, ...]
    num_classes: int
    build: Callable[[Mapping[str, int]], nn.Module]
    ops: Callable[[Mapping[str, int]], Sequence[Op]]

    def memory_model(self, state_slots: int, raw_itemsize: int) -> MemoryModel:
        """Returns the model's memory model for an optimiser with this many tensors per parameter."""
        size = math.prod(self.input_shape)
        inputs = INPUTS if INPUTS in self.layout.widths else None
        return MemoryModel(self.layout, self.ops, size, raw_itemsize, state_slots, inputs)

    def kept_inputs(self, structure: Structure) -> NDArray[np.intp] | None:
        """Returns which entries of a flattened sample the compact model takes; None where it takes all."""
        kept = structure.counts.get(INPUTS)
        return None if kept is None or kept == self.layout.widths[INPUTS] else structure.kept(INPUTS)


def architecture(config: ModelConfig, input_shape: Sequence[int], num_classes: int) -> Architecture:
    """Returns the architecture for inputs of this shape and this many classes.

    Raises:
        ScenarioError: If the model cannot take such inputs.
    """
    return MODELS[config.name](config, tuple(input_shape), num_classes)


def initial_state(arch: Architecture, seed: int) -> ModelState:
    """Returns the full model with PyTorch's default initialisation for linear and convolution layers.

    Weights and biases are uniform in +-1/sqrt(fan_in), as ``torch.nn.Linear`` draws them.
    """
    layout = arch.layout
    weights = {}
    fan_in = 1
    for name, shape in layout.shapes.items():
        if len(shape) > 1:  # a bias follows its weight and shares its bound
            fan_in = math.prod(shape[1:])
        stream = torch.Generator().manual_seed(derive(seed, "initial weights", name))
        bound = 1 / math.sqrt(fan_in)
        weights[name] = torch.empty(shape).uniform_(-bound, bound, generator=stream).numpy()
    return ModelState(weights, layout.full())


def to_module(arch: Architecture, state: ModelState, device: torch.device | str = "cpu") -> nn.Module:
    """Builds the compact module that holds a copy of the state's weights.

    It takes the inputs that the structure keeps (`Architecture.kept_inputs`); `to_whole_module` takes all.
    """
    module = arch.build(state.structure.counts)
    for name, parameter in module.named_parameters():
        parameter.data = torch.tensor(state.weights[name], device=device)
    return module


def to_whole_module(arch: Architecture, state: ModelState) -> nn.Module:
    """Builds the compact module behind a layer that picks its inputs out of whole samples."""
    module, kept = to_module(arch, state), arch.kept_inputs(state.structure)
    if kept is None:
        return module
    return nn.Sequential(OrderedDict(inputs=_Inputs(kept), **dict(module.named_children())))


class _Inputs(nn.Module):
    """Picks entries out of flattened samples."""

    def __init__(self, kept: NDArray[np.intp]) -> None:
        super().__init__()
        self.kept: torch.Tensor
        self.register_buffer("kept", torch.tensor(kept))

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        return samples.flatten(1)[:, self.kept]


class _Linear(nn.Linear):
    """A linear layer that skips initialisation: its weights always come from a `ModelState`."""

    def reset_parameters(self) -> None:
        pass


class _Conv2d(nn.Conv2d):
    """A convolution that skips initialisation: its weights always come from a `ModelState`."""

    def reset_parameters(self) -> None:
        pass


def _mlp(config: ModelConfig, input_shape: tuple[int, ...], num_classes: int) -> Architecture:
    """A multi-layer perceptron; ``widths`` are its hidden layers."""
    groups = [f"fc{index}" for index in range(1, len(config.widths) + 1)]
    widths = dict(zip(groups, config.widths, strict=True))
    num_inputs = math.prod(input_shape)
    if config.prune_inputs:
        widths = {INPUTS: num_inputs, **widths}
    incoming = INPUTS if config.prune_inputs else None
    layers = _dense_layers(incoming, 1, num_inputs, groups, config.widths, num_classes)

    def build(counts: Mapping[str, int]) -> nn.Module:
        modules: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        _add_dense(modules, layers, counts)
        return nn.Sequential(modules)

    def ops(counts: Mapping[str, int]) -> list[Op]:
        return _dense_ops(layers, counts)

    layout = _layout(layers, widths, config.floor)
    return Architecture(layout, input_shape, num_classes, build, ops)


def _cnn(config: ModelConfig, input_shape: tuple[int, ...], num_classes: int) -> Architecture:
    """A network of the LeNet kind: 3x3 convolutions, each with ReLU and 2x2 max-pooling, then dense.

    ``widths`` are the channels of the convolutions followed by one hidden dense layer.
    """
    if len(config.widths) < 2 or len(input_shape) != 3:
        raise ScenarioError(
            "model 'cnn' takes images (channels, height, width) and at least two widths (channels of each "
            f"convolution, then one dense layer); got inputs of shape {input_shape} and widths "
            f"{config.widths}"
        )
    num_convs = len(config.widths) - 1
    sides = [(input_shape[1] >> n, input_shape[2] >> n) for n in range(num_convs + 1)]
    if min(sides[-1]) < 1:
        raise ScenarioError(
            f"model 'cnn' halves the image {num_convs} times, which inputs of shape {input_shape} do not "
            f"allow; give fewer widths"
        )
    convs = [f"conv{index}" for index in range(1, num_convs + 1)]
    channels = dict(zip(convs, config.widths[:-1], strict=True))
    area = math.prod(sides[-1])
    dense = _dense_layers(
        convs[-1], area, channels[convs[-1]] * area, ["fc1"], config.widths[-1:], num_classes
    )
    conv_layers = [
        _Layer(name, before, 1, input_shape[0] if before is None else channels[before], name, width)
        for name, before, width in zip(convs, [None, *convs], channels.values(), strict=False)
    ]

    def build(counts: Mapping[str, int]) -> nn.Module:
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        for number, layer in enumerate(conv_layers, 1):
            rows, columns = layer.sizes(counts)
            modules[layer.name] = _Conv2d(columns, rows, kernel_size=3, padding=1)
            modules[f"relu_{layer.name}"] = nn.ReLU(inplace=True)
            modules[f"pool{number}"] = nn.MaxPool2d(2)
        modules["flatten"] = nn.Flatten()
        _add_dense(modules, dense, counts)
        return nn.Sequential(modules)

    def ops(counts: Mapping[str, int]) -> list[Op]:
        chain = []
        for layer, before, after in zip(conv_layers, sides, sides[1:], strict=False):
            rows, _ = layer.sizes(counts)
            pooled = rows * math.prod(after)
            chain.append(Op(layer.parameters, FLOAT_BYTES * rows * math.prod(before), relu=True))
            chain.append(Op((), FLOAT_BYTES * pooled, kept=INDEX_BYTES * pooled))
        return chain + _dense_ops(dense, counts)

    layers = [*conv_layers, *dense]
    layout = _layout(layers, {**channels, "fc1": config.widths[-1]}, config.floor, convs)
    return Architecture(layout, input_shape, num_classes, build, ops)


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
        modules[layer.name] = _Linear(columns, rows)
        if layer.outgoing is not None:
            modules[f"relu_{layer.name}"] = nn.ReLU(inplace=True)


def _dense_ops(layers: Sequence[_Layer], counts: Mapping[str, int]) -> list[Op]:
    return [
        Op(layer.parameters, FLOAT_BYTES * layer.sizes(counts)[0], relu=layer.outgoing is not None)
        for layer in layers
    ]


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


MODELS: dict[str, Callable[[Any, tuple[int, ...], int], Architecture]] = {
    "mlp": _mlp,
    "cnn": _cnn,
}
