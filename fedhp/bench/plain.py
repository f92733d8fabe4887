"""Plain averaging of Fashion-MNIST, its networks small as pruned, and a client's training in bare PyTorch."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from fedhp.aggregation.submodels import first
from fedhp.data.parts import client_shard
from fedhp.data.shard import Shard
from fedhp.model.architecture import Architecture
from fedhp.model.building import fresh_state
from fedhp.model.state import ModelState, Weights
from fedhp.model.zoo import architecture
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.recipes import recipe_of
from fedhp.scenario.schema import Scenario

_SAMPLES = 50_000
_PASSES = 50  # samples that a client passes in a round
_SHAPE, _CLASSES = (1, 28, 28), 10


def plain_averaging(num_workers: int, clients: int = 1000, per_round: int = 50) -> Scenario:
    """Returns the benchmark's scenario: FedAvg of the MLP, 50,000 IID samples among the clients.

    Where there are more than 1,000 clients each has fewer than 50 samples, and passes over them as often as
    makes 50.
    """
    return load_scenario(
        "fashion_mnist_fleet",
        values={
            "name": "plain_averaging",
            "data.max_train": _SAMPLES,
            "data.partition.name": "iid",
            "data.partition.min_samples": 1,
            "fleet.num_clients": clients,
            "train": {
                "local_epochs": max(1, _PASSES * clients // _SAMPLES),
                "batch_size": 10,
                "learning_rate": 0.1,
                "momentum": 0.0,
                "lr_schedule": "constant",
            },
            "strategy.name": "dense",
            "server.clients_per_round": per_round,
            "simulation.num_workers": num_workers,
        },
    )


def small_state(scenario: Scenario, compression: float) -> ModelState:
    """Returns a fresh model so much smaller than the full one, of as many units as a schedule ends with."""
    arch = _architecture(scenario)
    return fresh_state(arch, first(arch.layout.widths, _counts(scenario, compression)), scenario.seed)


def _counts(scenario: Scenario, compression: float) -> Mapping[str, int]:
    if compression == 1:
        return _architecture(scenario).layout.widths
    prune = replace(scenario.prune, target_compression=compression)
    return recipe_of(replace(scenario, prune=prune), _SHAPE, _CLASSES).schedule.counts(1.0)


def _architecture(scenario: Scenario) -> Architecture:
    return architecture(scenario.model, _SHAPE, _CLASSES)


class BareClient:
    """Trains any of a scenario's clients with nothing but PyTorch."""

    def __init__(self, scenario: Scenario, compression: float) -> None:
        arch, start = _architecture(scenario), small_state(scenario, compression)
        self._scenario = scenario
        self._inputs = arch.kept_inputs(start.structure)
        self.module = arch.build(start.structure.counts)

    def train(self, weights: Weights, client: int) -> int:
        """Trains the module from these weights on a client's samples; returns how many there are."""
        scenario = self._scenario
        shard = client_shard(scenario.data, scenario.fleet.num_clients, scenario.seed, client)
        self.module.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
        optimizer = torch.optim.SGD(self.module.parameters(), lr=scenario.train.learning_rate)
        for _ in range(scenario.train.local_epochs):
            train_plainly(self.module, optimizer, shard, scenario.train.batch_size, self._inputs)
        return len(shard)


def train_plainly(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    shard: Shard,
    batch_size: int,
    inputs: np.ndarray | None = None,
) -> None:
    """Passes over the samples once, in a random order, as every introduction to PyTorch does.

    Args:
        module: The network.
        optimizer: Its optimiser.
        shard: The samples.
        batch_size: How many are in a step.
        inputs: The entries of each flattened sample that the network takes, as in `Shard.batch`.
    """
    order = torch.randperm(len(shard)).numpy()
    for start in range(0, len(shard), batch_size):
        images, labels = shard.batch(order[start : start + batch_size], inputs)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images), labels).backward()
        optimizer.step()
