"""From any network of usual layers to its `Layout`: which channels must live and die together.

The network's graph (``torch.fx``) is walked once with an identity for every channel. Layers with weights make
new ones; an addition, a depthwise or grouped convolution and a group normalisation make some equal; a
concatenation lines them up; a flatten repeats them. What ends up equal is one unit, and units that appear in
the same places are one group. What is not known to keep channels apart is refused by name: a guess would cut
the wrong weights.
"""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from fedhp.channels import Channels, Groups, Identities, fixed
from fedhp.errors import ScenarioError
from fedhp.graphs import draw, function_name, is_tensor, play, shape, told
from fedhp.modules import statistics_names
from fedhp.structure import Axis, Layout

# Layers and functions that treat every channel alike and apart from the others.
_APART: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
    nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Identity, nn.Dropout, nn.Dropout1d,
    nn.Dropout2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.ZeroPad1d, nn.ZeroPad2d, nn.Upsample,
)  # fmt: skip
_APART_NAMES = (
    "relu", "relu_", "relu6", "leaky_relu", "elu", "gelu", "silu", "mish", "hardswish", "hardsigmoid",
    "dropout", "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d", "pad", "interpolate",
)  # fmt: skip
_APART_FUNCTIONS = {getattr(functional, name): name for name in _APART_NAMES} | {
    torch.relu: "relu", torch.relu_: "relu_", torch.sigmoid: "sigmoid", torch.tanh: "tanh",
}  # fmt: skip
_APART_METHODS = {"relu", "relu_", "sigmoid", "tanh", "contiguous", "clone"}
_TOGETHER = {
    operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul, torch.add,
    torch.sub, torch.mul, "add", "add_", "sub", "sub_", "mul", "mul_",
}  # fmt: skip
_FLATTEN, _RESHAPE = {torch.flatten, "flatten"}, {torch.reshape, "view", "reshape"}
_MEANS, _JOINS = {torch.mean, "mean"}, {torch.cat, torch.concat}


def trace(module: nn.Module, input_shape: Sequence[int], num_classes: int, floor: int, said: str) -> Layout:
    """Returns the layout of a network.

    Args:
        module: The network, its parameters on the ``meta`` device; only its graph and shapes are looked at.
        input_shape: The shape of one sample, channels first.
        num_classes: Width of the output, which is never cut.
        floor: Units that every group keeps at least.
        said: How the user named the network, for errors.

    Raises:
        ScenarioError: If the network does something that is not known to keep channels apart, or does not map
            such samples to that many classes; the message names the layer.
    """
    graph = draw(module, said)
    tracer = _Tracer(module, graph, said)
    tracer.check_layers()
    play(graph, input_shape, said)
    return tracer.layout(num_classes, floor)


class _Tracer:
    """One walk through a graph."""

    def __init__(self, module: nn.Module, graph: fx.GraphModule, said: str) -> None:
        self._module, self._said = module, said
        self._nodes = list(graph.graph.nodes)
        self._values: dict[fx.Node, Channels] = {}
        self._channels = Identities()
        self._axes: dict[str, list[Channels]] = {}
        self._views_maps = False

    def check_layers(self) -> None:
        """Refuses layers that are not known, before it shows that they do not take what others make."""
        for node in self._nodes:
            if node.op == "call_module" and not _is_known(self._module.get_submodule(str(node.target))):
                raise self._unknown(node)

    def layout(self, num_classes: int, floor: int) -> Layout:
        """Walks the graph, and returns the layout that it has found."""
        self._check_parameters()
        for node in self._nodes:
            self._visit(node, num_classes)
        statistics = statistics_names(self._module)
        shapes = {name: tuple(p.shape) for name, p in self._module.named_parameters()}
        shapes |= {name: (len(self._axes[name][0]),) for name in statistics if name in self._axes}
        if unused := [name for name in [*shapes, *statistics] if name not in self._axes]:
            raise self._refusal(f"'{unused[0]}' belongs to no layer that its forward pass uses")
        groups = self._channels.groups()
        if not groups.widths:
            raise self._refusal(
                "it has no units that could be cut apart from each other. What one group of a group "
                "normalisation or of a convolution covers is one unit: widen the network, or use more groups"
            )
        axes = {name: self._runs(name, groups) for name in shapes}
        floors = {group: min(floor, width) for group, width in groups.widths.items()}
        buffers = frozenset(statistics)
        over_batches = any(isinstance(layer, _BatchNorm) for layer in self._module.modules())
        return Layout(groups.widths, shapes, axes, floors, buffers, self._views_maps, over_batches)

    def _check_parameters(self) -> None:
        named = list(self._module.named_parameters(remove_duplicate=False))
        if frozen := [name for name, parameter in named if not parameter.requires_grad]:
            raise self._refusal(f"'{frozen[0]}' is frozen (requires_grad is False), and all would be trained")
        if len({id(parameter) for _, parameter in named}) < len(named):
            raise self._refusal("a parameter belongs to two layers")

    def _runs(self, name: str, groups: Groups) -> list[Axis]:
        try:
            return groups.runs(self._axes[name])
        except ValueError as error:
            raise self._refusal(f"'{name}' takes {error}") from None

    def _visit(self, node: fx.Node, num_classes: int) -> None:
        if node.op == "placeholder":
            self._values[node] = fixed(shape(node)[1])
        elif node.op == "output":
            self._end(node, num_classes)
        elif node.op == "get_attr":
            raise self._refusal(f"'{node.target}' is used outside of a layer")
        elif not node.args or any(isinstance(value, fx.Node) for value in node.kwargs.values()):
            raise self._refusal(f"{self._told(node)} takes a feature map by keyword: give it by place")
        elif node.op == "call_module":
            self._values[node] = self._through_layer(node, self._module.get_submodule(str(node.target)))
        elif is_tensor(node):
            self._values[node] = self._through_function(node)
        if node in self._values and len(self._values[node]) != shape(node)[1]:
            raise self._refusal(f"{self._told(node)} changes the number of channels")

    def _end(self, node: fx.Node, num_classes: int) -> None:
        result = node.args[0]
        if not isinstance(result, fx.Node) or shape(result) != (2, num_classes):
            raise ScenarioError(
                f"{self._said} must return one logit per class, {num_classes}, for each sample, and returns "
                f"{shape(result)[1:] if is_tensor(result) else 'no tensor'}"
            )
        channels = self._values[result]
        self._channels.equate(fixed(len(channels)), channels)

    def _through_layer(self, node: fx.Node, layer: nn.Module) -> Channels:
        channels, name = self._input(node), str(node.target)
        if isinstance(layer, nn.Flatten):
            return self._flattened(node)
        if isinstance(layer, nn.Linear):
            return self._through_linear(node, layer, channels)
        if isinstance(layer, _ConvNd):
            return self._through_convolution(name, layer, channels)
        if isinstance(layer, nn.GroupNorm):
            self._channels.equate_blocks(channels, layer.num_groups)
        elif not isinstance(layer, _BatchNorm):
            self._check_axes(node, type(layer).__name__.lower())
        for leaf in [*dict(layer.named_parameters()), *statistics_names(layer)]:
            self._place(f"{name}.{leaf}", [channels])
        return channels

    def _through_linear(self, node: fx.Node, layer: nn.Linear, channels: Channels) -> Channels:
        name = str(node.target)
        if len(shape(node)) != 2:
            raise self._refusal(f"{self._told(node)} works on {shape(node.args[0])}: flatten first")
        made = self._channels.new(name, layer.out_features)
        return self._weighted(name, layer, made, channels)

    def _through_convolution(self, name: str, layer: _ConvNd, channels: Channels) -> Channels:
        made = self._channels.new(name, layer.out_channels)
        if layer.groups == 1:
            return self._weighted(name, layer, made, channels)
        # Only a whole group can be cut: its inputs and its outputs are one unit.
        inputs = self._channels.equate_blocks(channels, layer.groups)
        outputs = self._channels.equate_blocks(made, layer.groups)
        self._channels.equate(inputs, outputs)
        return self._weighted(name, layer, made, fixed(layer.weight.shape[1]))

    def _weighted(self, name: str, layer: nn.Module, made: Channels, taken: Channels) -> Channels:
        if "weight" not in dict(layer.named_parameters(recurse=False)):
            raise self._refusal(f"layer '{name}' computes its weight from others")
        weight = layer.get_parameter("weight")
        kernel = [fixed(size) for size in weight.shape[2:]]
        known = self._axes.get(f"{name}.weight")
        self._place(f"{name}.weight", [made, taken, *kernel])
        if layer.bias is not None:
            self._place(f"{name}.bias", [made])
        return made if known is None else known[0]

    def _place(self, name: str, axes: list[Channels]) -> None:
        """Says what a parameter's axes are; a layer that is used twice has the same both times."""
        for known, axis in zip(self._axes.setdefault(name, axes), axes, strict=True):
            self._channels.equate(known, axis)

    def _through_function(self, node: fx.Node) -> Channels:
        target: Any = node.target
        if target in _APART_FUNCTIONS or target in _APART_METHODS:
            self._check_axes(node, _APART_FUNCTIONS.get(target, function_name(node)))
            return self._input(node)
        if target in _TOGETHER:
            return self._together(node)
        if target in _JOINS and self._argument(node, 1, "dim", 0) in (1, 1 - len(shape(node))):
            return np.concatenate([self._value(node, part) for part in node.args[0]])  # type: ignore[union-attr]
        if target in _FLATTEN and self._argument(node, 1, "start_dim", 0) == 1:
            return self._flattened(node)
        if target in _RESHAPE and len(shape(node)) == 2 and shape(node)[0] == 2:
            if _flat(node.args)[-1] != -1:
                raise self._refusal(
                    f"{self._told(node)} to a number of channels written down: use flatten(1)"
                )
            self._views_maps |= target == "view"
            return self._flattened(node)
        if target in _MEANS and _is_spatial(node, self._argument(node, 1, "dim", 0)):
            return self._input(node)
        raise self._unknown(node)

    def _check_axes(self, node: fx.Node, name: str) -> None:
        """Refuses what would take channels for places: pooling on one axis too few, padding on too many."""
        num_axes = len(shape(node.args[0]))
        wanted = next((axes for end, axes in (("1d", 3), ("2d", 4)) if name.endswith(end)), num_axes)
        pads = self._argument(node, 1, "pad", []) if name == "pad" else []
        if num_axes != wanted or len(pads) > 2 * (num_axes - 2):
            raise self._refusal(f"{self._told(node)}, given {num_axes} axes, reaches into the channels")

    def _together(self, node: fx.Node) -> Channels:
        tensors = [arg for arg in node.args[:2] if isinstance(arg, fx.Node) and is_tensor(arg)]
        values = [self._value(node, tensor) for tensor in tensors]
        widest = max(values, key=len)
        for tensor, value in zip(tensors, values, strict=True):
            if len(shape(tensor)) != len(shape(node)):
                raise self._refusal(f"{self._told(node)} joins tensors of different numbers of axes")
            if len(value) == len(widest):
                self._channels.equate(widest, value)
        return widest

    def _flattened(self, node: fx.Node) -> Channels:
        channels = self._input(node)
        return np.repeat(channels, shape(node)[1] // len(channels))

    def _input(self, node: fx.Node) -> Channels:
        return self._value(node, node.args[0])

    def _value(self, node: fx.Node, argument: Any) -> Channels:
        if argument not in self._values:
            raise self._refusal(f"{self._told(node)} takes something that is no feature map")
        return self._values[argument]

    def _argument(self, node: fx.Node, place: int, name: str, default: Any) -> Any:
        return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)

    def _told(self, node: fx.Node) -> str:
        return told(node, self._module)

    def _unknown(self, node: fx.Node) -> ScenarioError:
        return self._refusal(
            f"{self._told(node)} is not known to keep channels apart. Known are linear layers, 1-d and 2-d "
            "convolutions, batch and group normalisation, pooling, activations, dropout, flatten, addition, "
            "multiplication, concatenation and means over places"
        )

    def _refusal(self, cause: str) -> ScenarioError:
        return ScenarioError(f"{self._said} cannot be pruned: {cause}")


def _is_known(layer: nn.Module) -> bool:
    """Says whether it is known how a layer treats channels."""
    if isinstance(layer, nn.Flatten):
        return layer.start_dim == 1
    if isinstance(layer, _ConvNd):
        return not layer.transposed and layer.weight.dim() < 5
    if isinstance(layer, nn.GroupNorm):
        return layer.affine
    return isinstance(layer, (nn.Linear, _BatchNorm, *_APART))


def _is_spatial(node: fx.Node, axes: int | Sequence[int]) -> bool:
    """Says whether these axes of a node's input lie behind the channels."""
    num_axes = len(shape(node.args[0]))
    return all(axis % num_axes > 1 for axis in ([axes] if isinstance(axes, int) else axes))


def _flat(arguments: Sequence[Any]) -> list[Any]:
    """Returns the sizes of ``view(a, b)`` and of ``view((a, b))``, after the tensor."""
    sizes = arguments[1:]
    return list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else list(sizes)
