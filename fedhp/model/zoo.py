"""The networks that ship, and the user's own. Of some, the layout is read without PyTorch."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedhp.bounds import MOST_PARAMETERS
from fedhp.errors import ScenarioError, needing_torch, require
from fedhp.model.architecture import Architecture
from fedhp.model.networks import chain, windows
from fedhp.model.options import USUAL_TIME_STEPS, USUAL_WIDTHS, ModelConfig

if TYPE_CHECKING:
    from torch import nn


def architecture(
    config: ModelConfig,
    input_shape: Sequence[int],
    num_classes: int,
    builder: "Callable[..., nn.Module] | None" = None,
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
        with needing_torch(f"model.target = {config.target}"):
            from fedhp.model.traced import users_own

        arch = users_own(config, shape, num_classes, builder)
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


def _mlp(config: ModelConfig, shape: tuple[int, ...], num_classes: int) -> Architecture:
    widths = config.widths or USUAL_WIDTHS["mlp"]
    found = chain.mlp(widths, config.floor, config.prune_inputs, shape, num_classes)
    return _declared(found, shape, num_classes)


def _cnn(config: ModelConfig, shape: tuple[int, ...], num_classes: int) -> Architecture:
    widths = config.widths or USUAL_WIDTHS[config.name]
    found = chain.cnn(config.name, widths, config.floor, shape, num_classes)
    return _declared(found, shape, num_classes)


def _declared(found: chain.Chain, shape: tuple[int, ...], num_classes: int) -> Architecture:
    def build(counts: Mapping[str, int]) -> "nn.Module":
        from fedhp.model.networks import chain_modules

        return chain_modules.build(found.layers, counts)

    def initial(seed: int) -> Mapping[str, NDArray[np.float32]]:
        from fedhp.model.networks import chain_modules

        return chain_modules.uniform_weights(found.layout, seed)

    return Architecture(found.layout, shape, num_classes, build, initial)


def _spiking_mlp(config: ModelConfig, shape: tuple[int, ...], num_classes: int) -> Architecture:
    widths = config.widths or USUAL_WIDTHS["spiking_mlp"]
    return _spiking(config, chain.mlp(widths, config.floor, False, shape, num_classes), shape, num_classes)


def _spiking_cnn(config: ModelConfig, shape: tuple[int, ...], num_classes: int) -> Architecture:
    widths = config.widths or USUAL_WIDTHS["spiking_cnn"]
    found = chain.cnn(config.name, widths, config.floor, shape, num_classes)
    return _spiking(config, found, shape, num_classes)


def _spiking(
    config: ModelConfig, found: chain.Chain, shape: tuple[int, ...], num_classes: int
) -> Architecture:
    """Returns the architecture of a chain with spikes in the place of ReLU, whose layout is traced."""
    said = f"model '{config.name}'"
    _check_size(config, found.layout.num_parameters(found.layout.widths))  # before it is built
    with needing_torch(said):
        from fedhp.model.traced import Network, traced
    with require(said, "spiking"):
        from fedhp.model.networks import spiking

    steps = config.time_steps or USUAL_TIME_STEPS
    network = Network(lambda: spiking.network(found.layers, steps), shape, said)
    picks = config.prune_inputs and not found.layers[0].kernel
    inputs = f"{found.layers[0].name}.weight" if picks else ""
    return traced(network, config.floor, num_classes, inputs)


def _conv1d(config: ModelConfig, shape: tuple[int, ...], num_classes: int) -> Architecture:
    widths = _widths(config, shape)
    layout = windows.conv1d(widths, config.norm, config.floor, shape, num_classes)

    @cache
    def network() -> Any:
        from fedhp.model.traced import shipped

        return shipped("conv1d", config.norm, widths, shape, num_classes)

    return Architecture(
        layout,
        shape,
        num_classes,
        lambda counts: network().build(layout, counts),
        lambda seed: network().initial(seed),
    )


def _by_tracing(config: ModelConfig, shape: tuple[int, ...], num_classes: int) -> Architecture:
    """Returns the architecture of a network with normalisation, whose layout is traced."""
    with needing_torch(f"model '{config.name}'"):
        from fedhp.model.traced import shipped, traced

    widths = _widths(config, shape)
    return traced(shipped(config.name, config.norm, widths, shape, num_classes), config.floor, num_classes)


def _widths(config: ModelConfig, shape: tuple[int, ...]) -> Sequence[int]:
    """Returns the widths of a network with normalisation, once they and the samples suit it.

    Raises:
        ScenarioError: If they do not, or the network is too large to be built.
    """
    usual = USUAL_WIDTHS[config.name]
    widths = config.widths or usual
    if len(shape) != 3 or (config.name != "conv1d" and len(widths) != len(usual)):
        raise ScenarioError(
            f"model '{config.name}' takes samples of three axes and {len(usual)} widths, such as "
            f"{list(usual)}; got samples of shape {shape} and widths {list(widths)}"
        )
    # Known to be too large before it is built, to be traced: no kernel has fewer than five places.
    _check_size(config, 5 * sum(one * other for one, other in pairwise([*shape[:1], *widths])))
    return widths


MODELS: Mapping[str, Callable[[ModelConfig, tuple[int, ...], int], Architecture]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "vgg11": _by_tracing,
    "resnet20": _by_tracing,
    "conv1d": _conv1d,
    "lenet5": _cnn,
    "fedavg_cnn": _cnn,
    "heterofl_cnn": _by_tracing,
    "spiking_mlp": _spiking_mlp,
    "spiking_cnn": _spiking_cnn,
}
