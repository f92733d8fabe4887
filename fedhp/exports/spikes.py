"""What a network's spikes come to: operations and, as an estimate, energy beside the same without spikes.

A number takes a multiplication and an addition for each weight that it meets; a spike takes an addition, and
no spike nothing. So the first layer, which takes the sample itself at each of T steps, costs T times its
products; each other layer T times its products times the share of its inputs that spike at a step, in
additions (Kim & Panda 2020, arXiv 2010.01729; Venkatesha et al. 2021, arXiv 2106.06579).
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedhp.errors import RecordError
from fedhp.exports.loaded import load_trained
from fedhp.exports.network import network_inputs
from fedhp.exports.samples import check_data, raw_data
from fedhp.model.inference import to_plain_module
from fedhp.records.load import load_run

# Of 32-bit floating-point numbers in 45 nm (Horowitz, "Computing's energy problem", ISSCC 2014): 0.9 pJ for
# an addition, 3.7 pJ for a multiplication. Memory, leaks, resets and normalisation are not in it.
ADDITION_PJ, PRODUCT_PJ = 0.9, 4.6
_MOST_SAMPLES, _BATCH = 1000, 100


@dataclass(frozen=True)
class LayerWork:
    """What a layer with weights does for a sample.

    Attributes:
        name: Of the layer.
        products: Of weights and inputs, each time that it is run.
        rate: The share of its inputs that spike at a step, 0 to 1; None where it takes the sample itself.
        operations: In all time steps: of the layer that takes the sample products, each with an addition, of
            the others additions. At the edges of maps they count as elsewhere.
        picojoules: Their energy.
        picojoules_without: That of the layer run once, on what are no spikes.
    """

    name: str
    products: int
    rate: float | None
    operations: float
    picojoules: float
    picojoules_without: float


@dataclass(frozen=True)
class SpikeCount:
    """What a network's spikes come to, per sample; energies are estimates, in picojoules.

    Attributes:
        time_steps: How often a sample is shown.
        num_samples: Over how many held-out samples figures are means.
        spikes: Of all neurons, in all time steps.
        layers: Those with weights, in order.
        picojoules: The energy of all layers.
        picojoules_kept: The same, were the first layer run once, and what it gives kept for all steps.
        picojoules_without: That of the same network without spikes.
    """

    time_steps: int
    num_samples: int
    spikes: float
    layers: tuple[LayerWork, ...]
    picojoules: float
    picojoules_kept: float
    picojoules_without: float

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON has it."""
        return asdict(self)


def layer_work(name: str, products: int, rate: float | None, time_steps: int) -> LayerWork:
    """Works out what a layer does for a sample."""
    operations = time_steps * products * (1.0 if rate is None else rate)
    each = PRODUCT_PJ if rate is None else ADDITION_PJ
    return LayerWork(name, products, rate, operations, operations * each, products * PRODUCT_PJ)


def count_spikes(run: str | Path, data: str | Path | None = None) -> SpikeCount:
    """Counts the spikes of a run's final network, on up to 1,000 of its held-out samples.

    Args:
        run: The run's record.
        data: Where the run's data lies now; by default where the run found it.

    Raises:
        RecordError: If the record holds no network, or one without spikes.
        DataError: If its data is not there, or other data is.
        MissingExtraError: If the extra ``spiking`` is not installed.
    """
    config = load_run(run).config
    if not config.model.is_spiking:
        raise RecordError(
            f"{run} is of {config.model.said}, which has no spikes to count; spiking_mlp and spiking_cnn have"
        )
    trained = load_trained(run)
    raw = raw_data(config.data, config.seed, None if data is None else Path(data), _MOST_SAMPLES, 0)
    check_data(raw, trained.arch.input_shape, trained.arch.num_classes)
    samples = network_inputs(trained, raw.held_out)
    return spikes_of(to_plain_module(trained.arch, trained.state), samples.split(_BATCH))


@torch.no_grad()
def spikes_of(network: nn.Module, batches: Iterable[torch.Tensor]) -> SpikeCount:
    """Counts the spikes of a spiking network in evaluation, of which the first layer takes the samples."""
    from fedhp.model.networks.spiking import Leaky, ThroughTime

    products: dict[str, int] = {}
    taken, entries = defaultdict[str, float](float), defaultdict[str, int](int)
    spikes, num_samples, time_steps = 0.0, 0, 0

    def work(name: str, layer: nn.Module, inputs: torch.Tensor, made: Any) -> None:
        products[name] = layer.get_parameter("weight").numel() * math.prod(made.shape[2:])
        taken[name] += inputs.sum().item()
        entries[name] += inputs.numel()

    def fire(made: torch.Tensor) -> None:
        nonlocal spikes
        spikes += made.sum().item()

    for name, layer in network.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.register_forward_hook(lambda one, given, made, name=name: work(name, one, given[0], made))
        elif isinstance(layer, Leaky):
            layer.register_forward_hook(lambda _, given, made: fire(made[0]))
        elif isinstance(layer, ThroughTime):
            time_steps = layer.time_steps
    network.eval()
    for batch in batches:
        network(batch)
        num_samples += len(batch)
    first = next(iter(products))
    layers = tuple(
        layer_work(name, number, None if name == first else taken[name] / entries[name], time_steps)
        for name, number in products.items()
    )
    energy, without = (
        sum(getattr(one, key) for one in layers) for key in ("picojoules", "picojoules_without")
    )
    kept = energy - layers[0].picojoules * (1 - 1 / time_steps)
    return SpikeCount(time_steps, num_samples, spikes / num_samples, layers, energy, kept, without)
