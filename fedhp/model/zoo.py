"""The networks that ship, and the user's own."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.bounds import MOST_PARAMETERS
from fedhp.errors import ScenarioError
from fedhp.model.architecture import Architecture
from fedhp.model.draws import drawing
from fedhp.model.modules import hollow, resize, settle, take_weights
from fedhp.model.networks import chain, resnet, sensors, vgg
from fedhp.model.networks.layers import NORMS_1D, NORMS_2D, Norm
from fedhp.model.options import USUAL_WIDTHS, ModelConfig
from fedhp.model.wiring.tracing import trace
from fedhp.references import resolve
from fedhp.seeds import derive

Normalised = Callable[[Sequence[int], Norm, tuple[int, ...], int], nn.Module]


def architecture(
    config: ModelConfig,
    input_shape: Sequence[int],
    num_classes: int,
    builder: Callable[..., nn.Module] | None = None,
) -> Architecture:
    """Returns the architecture for inputs of this shape and this many classes.

    Args:
        config: Which network.
        input_shape: Of one sample, channels first.
        num_classes: Width of the output.
        builder: Builds the network that ``config.target`` names, which then is not imported.

    Raises:
        ScenarioError: If the model cannot take such inputs, its wiring cannot be traced, or it is too large.
    """
    shape = tuple(input_shape)
    if config.target:
        arch = _foreign(config, shape, num_classes, builder)
    else:
        arch = MODELS[config.name](config, shape, num_classes)
    _check_size(config, arch.layout.num_parameters(arch.layout.widths))
    return arch


def _check_size(config: ModelConfig, num_parameters: int) -> None:
    if num_parameters > MOST_PARAMETERS:
        raise ScenarioError(
            f"{config.said}: the network has {num_parameters:,} parameters, which are more than "
            f"{MOST_PARAMETERS:,}, the most that fedhp takes; lower model.widths"
        )


def _traced(
    make: Callable[[], nn.Module], floor: int, shape: tuple[int, ...], num_classes: int, said: str
) -> Architecture:
    """Returns the architecture of a network that `make` builds whole, by tracing it."""

    def drawn(seed: int) -> nn.Module:
        with drawing(seed, "cpu"):
            return _settled(make(), shape, said)

    module = drawn(0).train()
    layout, template = trace(module, shape, num_classes, floor, said), hollow(module)

    def build(counts: Mapping[str, int]) -> nn.Module:
        module = copy.deepcopy(template)
        resize(module, {name: layout.shape(name, counts) for name in layout.shapes})
        return module

    def initial(seed: int) -> Mapping[str, NDArray[np.float32]]:
        return take_weights(drawn(derive(seed, "initial weights")))

    return Architecture(layout, shape, num_classes, build, initial)


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


def _users_own(target: str, said: str) -> Callable[..., nn.Module]:
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


def _foreign(
    config: ModelConfig,
    shape: tuple[int, ...],
    num_classes: int,
    builder: Callable[..., nn.Module] | None,
) -> Architecture:
    said = f"model.target = {config.target}"
    make = builder or _users_own(config.target, said)
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

    return replace(_traced(whole, config.floor, shape, num_classes, said), is_users_own=True)


def _mlp(config: ModelConfig, shape: tuple[int, ...], num_classes: int) -> Architecture:
    widths = config.widths or USUAL_WIDTHS["mlp"]
    layout, build = chain.mlp(widths, config.floor, config.prune_inputs, shape, num_classes)
    return Architecture(layout, shape, num_classes, build, lambda seed: chain.uniform_weights(layout, seed))


def _cnn(config: ModelConfig, shape: tuple[int, ...], num_classes: int) -> Architecture:
    layout, build = chain.cnn(config.widths or USUAL_WIDTHS["cnn"], config.floor, shape, num_classes)
    return Architecture(layout, shape, num_classes, build, lambda seed: chain.uniform_weights(layout, seed))


def _normalised(
    builder: Normalised, norms: Mapping[str, Norm]
) -> Callable[[ModelConfig, tuple[int, ...], int], Architecture]:
    """Returns the maker of a network with normalisation, whose layout is traced."""

    def make(config: ModelConfig, shape: tuple[int, ...], num_classes: int) -> Architecture:
        usual = USUAL_WIDTHS[config.name]
        widths = config.widths or usual
        if len(shape) != 3 or (config.name != "conv1d" and len(widths) != len(usual)):
            raise ScenarioError(
                f"model '{config.name}' takes samples of three axes and {len(usual)} widths, such as "
                f"{list(usual)}; got samples of shape {shape} and widths {list(widths)}"
            )
        # Known to be too large before it is built, to be traced: no kernel has fewer than five places.
        _check_size(config, 5 * sum(one * other for one, other in pairwise([*shape[:1], *widths])))
        said, norm = f"model '{config.name}'", norms[config.norm]
        return _traced(
            lambda: builder(widths, norm, shape, num_classes), config.floor, shape, num_classes, said
        )

    return make


MODELS: dict[str, Callable[[ModelConfig, tuple[int, ...], int], Architecture]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "vgg11": _normalised(vgg.vgg11, NORMS_2D),
    "resnet20": _normalised(resnet.resnet20, NORMS_2D),
    "conv1d": _normalised(sensors.conv1d, NORMS_1D),
}
