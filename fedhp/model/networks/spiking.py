"""Chains of layers whose activations are spikes (Venkatesha et al. 2021, arXiv 2106.06579).

Leaky integrate-and-fire neurons stand in the place of ReLU, behind batch normalisation through time (Kim &
Panda 2020, arXiv 2010.01729); both, and the surrogate gradient, are snnTorch's.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from snntorch import BatchNormTT1d, BatchNormTT2d, Leaky
from torch import nn

from fedhp.model.networks.chain import Layer
from fedhp.model.wiring.layers import WIRING, keeps_channels

# What is left of a potential a step later; that of a neuron that fired is reset to zero.
LEAK = 0.95


class ThroughTime(nn.Sequential):
    """Layers that are run once per time step, always on the same current: direct encoding.

    A list of layers, one for each step, gives that of the step; neurons go on from the potential that the
    step before left. What is returned are firing rates, for the layer that reads them: since that is linear,
    it makes of them what its own potential, which neither leaks nor fires, would have gathered by the last
    step, over the number of steps.

    Args:
        layers: The layers by name; the last makes spikes.
        time_steps: The number of steps.
    """

    def __init__(self, layers: Mapping[str, nn.Module], time_steps: int) -> None:
        super().__init__(OrderedDict(layers))
        self.time_steps = time_steps

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Maps currents ``(batch, units, ...)`` to the last units' spikes per step, from 0 to 1."""
        potentials: dict[nn.Module, torch.Tensor] = {}
        rates = None
        for step in range(self.time_steps):
            spikes = self._step(step, input, potentials)
            rates = spikes if rates is None else rates + spikes
        assert rates is not None
        return rates / self.time_steps

    def _step(
        self, step: int, signal: torch.Tensor, potentials: dict[nn.Module, torch.Tensor]
    ) -> torch.Tensor:
        """Takes one time step; ``potentials`` hold what it finds and what it leaves, by neurons."""
        for layer in self:
            if isinstance(layer, nn.ModuleList):
                signal = layer[step](signal)
            elif isinstance(layer, Leaky):
                before = potentials[layer] if layer in potentials else torch.zeros_like(signal)
                spikes, potentials[layer] = layer(signal, before)
                signal = spikes.to(signal.dtype)  # they are float32, whatever the network is
                # Its own notes of them would outlive the step, with all that the backward pass keeps.
                layer.mem, layer.reset = torch.empty(0), None
            else:
                signal = layer(signal)
        return signal


def network(layers: Sequence[Layer], time_steps: int) -> nn.Module:
    """Builds a chain with spikes in the place of ReLU, of full width.

    Before each of its neurons stands batch normalisation through time: statistics and a scale for each step.
    The current of its first layer is the same at every step, and computed once.

    Args:
        layers: The layers of `fedhp.model.networks.chain`, a dense one or more at its end.
        time_steps: The number of time steps.
    """
    first, head = layers[0], layers[-1]
    spiking: dict[str, nn.Module] = {}
    for before, layer in zip([None, *layers], layers[:-1], strict=False):
        if before is not None:
            if before.kernel and not layer.kernel:
                spiking["flatten"] = nn.Flatten()
            spiking[layer.name] = _weighted(layer)
        norm = BatchNormTT2d if layer.kernel else BatchNormTT1d
        spiking[f"norm_{layer.name}"] = norm(layer.num_outputs, time_steps)
        spiking[f"neurons_{layer.name}"] = Leaky(LEAK, reset_mechanism="zero")
        if layer.kernel:
            spiking[f"pool_{layer.name}"] = nn.MaxPool2d(2)  # of spikes, it makes spikes
    parts = (
        OrderedDict[str, nn.Module]() if first.kernel else OrderedDict[str, nn.Module](flatten=nn.Flatten())
    )
    parts[first.name] = _weighted(first)
    parts["spikes"] = ThroughTime(spiking, time_steps)
    parts[head.name] = nn.Linear(head.num_inputs, head.num_outputs)
    return nn.Sequential(parts)


def _weighted(layer: Layer) -> nn.Module:
    """Makes a layer without biases, which the normalisation behind it would take away."""
    if layer.kernel:
        return nn.Conv2d(
            layer.num_inputs, layer.num_outputs, layer.kernel[0], padding=layer.padding, bias=False
        )
    return nn.Linear(layer.num_inputs, layer.num_outputs, bias=False)


# A neuron's spikes and its potential follow from its own current alone.
WIRING[Leaky] = keeps_channels
