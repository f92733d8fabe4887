"""Networks that are built whole, by copying a template: those with a traced layout, and the user's own."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.errors import ScenarioError
from fedhp.model.architecture import INPUTS, Architecture
from fedhp.model.axes import AxisRef
from fedhp.model.draws import drawing
from fedhp.model.layout import Layout
from fedhp.model.modules import hollow, resize, settle, take_weights
from fedhp.model.networks import heterofl, resnet, sensors, vgg
from fedhp.model.networks.layers import NORMS_1D, NORMS_2D, Norm
from fedhp.model.options import ModelConfig
from fedhp.model.wiring.tracing import trace
from fedhp.references import resolve
from fedhp.seeds import derive

Normalised = Callable[[Sequence[int], Norm, tuple[int, ...], int], nn.Module]

# The networks with normalisation.
_BUILDERS: Mapping[str, tuple[Normalised, Mapping[str, Norm]]] = {
    "vgg11": (vgg.vgg11, NORMS_2D),
    "resnet20": (resnet.resnet20, NORMS_2D),
    "conv1d": (sensors.conv1d, NORMS_1D),
    "heterofl_cnn": (heterofl.heterofl_cnn, NORMS_2D),
}


class Network:
    """A network that is built whole.

    Args:
        make: Builds it.
        shape: Of one sample.
        said: What it is called.
    """

    def __init__(self, make: Callable[[], nn.Module], shape: tuple[int, ...], said: str) -> None:
        self._make, self.shape, self.said = make, shape, said

    def drawn(self, seed: int) -> nn.Module:
        """Builds it, with weights by the seed."""
        with drawing(seed, "cpu"):
            return _settled(self._make(), self.shape, self.said)

    @cached_property
    def _template(self) -> nn.Module:
        return hollow(self.drawn(0).train())

    def build(self, layout: Layout, counts: Mapping[str, int]) -> nn.Module:
        """Builds it of so many units, its weights not initialised."""
        module = copy.deepcopy(self._template)
        resize(module, {name: layout.shape(name, counts) for name in layout.shapes})
        return module

    def initial(self, seed: int) -> Mapping[str, NDArray[np.float32]]:
        """Returns its weights before training, by the seed."""
        return take_weights(self.drawn(derive(seed, "initial weights")))


def shipped(name: str, norm: str, widths: Sequence[int], shape: tuple[int, ...], num_classes: int) -> Network:
    """Returns a network with normalisation that ships."""
    builder, norms = _BUILDERS[name]
    return Network(lambda: builder(widths, norms[norm], shape, num_classes), shape, f"model '{name}'")


def traced(network: Network, floor: int, num_classes: int, inputs: str = "") -> Architecture:
    """Returns a network's architecture, by tracing it.

    Args:
        network: The network.
        floor: Units that every group keeps at least.
        num_classes: Width of the output.
        inputs: The weight that takes in flattened samples, whose entries are units then; empty for none.

    Raises:
        ScenarioError: If that is not possible.
    """
    layout = trace(network.drawn(0).train(), network.shape, num_classes, floor, network.said)
    layout = _with_inputs(layout, inputs, floor) if inputs else layout
    return Architecture(
        layout, network.shape, num_classes, lambda counts: network.build(layout, counts), network.initial
    )


def _with_inputs(layout: Layout, weight: str, floor: int) -> Layout:
    """Makes units of what a dense layer takes in, which tracing never cuts: the samples."""
    rows, size = layout.axes[weight][0], layout.shapes[weight][1]
    return replace(
        layout,
        widths={INPUTS: size, **layout.widths},
        axes={**layout.axes, weight: (rows, AxisRef(INPUTS))},
        floors={INPUTS: min(floor, size), **layout.floors},
    )


def users_own(
    config: ModelConfig,
    shape: tuple[int, ...],
    num_classes: int,
    builder: Callable[..., nn.Module] | None,
) -> Architecture:
    """Returns the architecture of the network that ``config.target`` names, or that ``builder`` builds.

    Raises:
        ScenarioError: If there is none, it cannot be built, or its wiring cannot be traced.
    """
    said = f"model.target = {config.target}"
    make = builder or _found(config.target, said)
    offered = {"input_shape": shape, "num_classes": num_classes}
    if config.widths:  # otherwise the network's own
        offered["widths"] = list(config.widths)

    def whole() -> nn.Module:
        try:
            asked = inspect.signature(make).parameters
            module = make(**{name: value for name, value in offered.items() if name in asked})
        except (Exception, SystemExit) as error:  # the user's own code, which may raise anything
            raise ScenarioError(f"{said}: calling it failed: {type(error).__name__}: {error}") from error
        if not isinstance(module, nn.Module):
            raise ScenarioError(f"{said} must return a torch.nn.Module, got {type(module).__name__}")
        return module

    return replace(traced(Network(whole, shape, said), config.floor, num_classes), is_users_own=True)


def _settled(module: nn.Module, shape: tuple[int, ...], said: str) -> nn.Module:
    try:
        settle(module, torch.zeros(2, *shape))
    except (Exception, SystemExit) as error:  # the user's own code, which may raise anything
        raise ScenarioError(
            f"{said}: its lazy layers cannot take samples of shape {shape}: {type(error).__name__}: {error}"
        ) from error
    return module


def _may_build(found: Any) -> bool:
    return issubclass(found, nn.Module) if isinstance(found, type) else callable(found)


def _found(target: str, said: str) -> Callable[..., nn.Module]:
    try:
        found: Any = resolve(target, "model.target")
    except ScenarioError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code, which may raise anything
        raise ScenarioError(f"{said}: importing it failed: {type(error).__name__}: {error}") from error
    if not _may_build(found):
        # Neither called nor shown: it may be anything, such as the environment with all its secrets.
        raise ScenarioError(
            f"{said} must be a function that builds a network, or a class of torch.nn.Module; it is of type "
            f"{type(found).__name__}"
        )
    return found
