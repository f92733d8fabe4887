"""Clients that are trained together beside a bare PyTorch loop over the same ones."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch

from fedhp.bench.plain import small_state, train_plainly
from fedhp.data.parts import client_shard
from fedhp.fleet.devices import DeviceProfile
from fedhp.model.building import to_module
from fedhp.run.setup import prepare
from fedhp.scenario.loading import load_scenario
from fedhp.training.cohort import Client, train_cohort
from fedhp.training.recipe import Recipe
from fedhp.training.update import RoundTask, Update

STACKS = (1, 2, 5, 10, 25, 50)
_CLIENTS, _SAMPLES = 50, 50


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        scenario: Whose network it is.
        compression: How much smaller, as pruned to its target.
        train: Values of the scenario's section of that name.
        tracked: Whether units' contributions are tracked, as a fleet that prunes does; nothing is cut.
    """

    scenario: str
    compression: float
    train: Mapping[str, Any]
    tracked: bool = False


def _steps(batch: int, momentum: float) -> dict[str, Any]:
    return {"batch_size": batch, "momentum": momentum, "learning_rate": 0.1, "local_epochs": 1}


_MLP, _CNN = "fashion_mnist_fleet", "fashion_mnist_cnn_fleet"
CASES = (
    Case(_MLP, 1, _steps(10, 0.0)),
    Case(_MLP, 1, _steps(50, 0.0)),
    Case(_MLP, 10, _steps(10, 0.0)),
    Case(_MLP, 10, _steps(50, 0.0)),
    Case(_MLP, 1, _steps(10, 0.9), tracked=True),
    Case(_MLP, 10, _steps(10, 0.9), tracked=True),
    Case(_CNN, 1, _steps(10, 0.9)),
    Case(_CNN, 10, _steps(10, 0.9)),
    Case(_CNN, 10, _steps(10, 0.9), tracked=True),
)


def run_stack(
    cases: Sequence[Case] = CASES,
    stacks: Sequence[int] = STACKS,
    clients: int = _CLIENTS,
    samples: int = _SAMPLES,
    turns: int = 7,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Times the whole local training of the same clients on one thread, in stacks of several sizes.

    All take turns with a bare loop of autograd and ``torch.optim.SGD`` over the clients.

    Args:
        cases: What is trained.
        stacks: How many clients may be computed at a time.
        clients: How many there are.
        samples: Of each.
        turns: How often each is timed.
        say: Is told of each case that is done.

    Returns:
        One row per case: its network, batch, momentum and tracking; ``bare_milliseconds`` a client;
        ``x1``, ``x2``, ...: how many times faster than the bare loop, medians over the turns; and
        ``same_bits``: whether all stacks end with the same weights to the last bit.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = []
        for number, case in enumerate(cases, 1):
            rows.append(_row(case, stacks, clients, samples, turns))
            say(f"{number} of {len(cases)}: {rows[-1]['network']}, batch {rows[-1]['batch']}")
        return {"clients": clients, "rows": rows}
    finally:
        torch.set_num_threads(threads)


def _row(case: Case, stacks: Sequence[int], clients: int, samples: int, turns: int) -> dict[str, Any]:
    recipe, cohort = _prepared(case, clients, samples)
    results: dict[int, list[Update]] = {}

    def train(stack: int) -> None:
        results[stack] = [_trained(one) for one in train_cohort(recipe, cohort, stack)]

    arms: dict[str, Callable[[], None]] = {"bare": lambda: _train_barely(recipe, cohort)}
    arms |= {f"x{stack}": lambda stack=stack: train(stack) for stack in stacks}
    # A turn more than is counted: in the first one, peaks of memory are measured too.
    timed = [{arm: _seconds(run) for arm, run in arms.items()} for _ in range(turns + 1)][1:]
    first_weights = [update.state.weights for update in results[stacks[0]]]
    return {
        "network": "-".join(map(str, cohort[0].task.state.structure.counts.values())),
        "batch": recipe.train.batch_size,
        "momentum": recipe.train.momentum,
        "tracked": case.tracked,
        "bare_milliseconds": 1e3 * median(turn["bare"] for turn in timed) / clients,
        **{arm: median(turn["bare"] / turn[arm] for turn in timed) for arm in arms if arm != "bare"},
        "same_bits": all(_same(first_weights, results[stack]) for stack in stacks),
    }


def _prepared(case: Case, clients: int, samples: int) -> tuple[Recipe, list[Client]]:
    values = {
        "data.max_train": clients * samples,
        "data.partition.name": "iid",
        "data.partition.min_samples": 1,
        "fleet.num_clients": clients,
        "server.clients_per_round": 0,
        "train": dict(case.train),
        "strategy.name": "mask_intersection" if case.tracked else "dense",
        "simulation.num_workers": 0,
    }
    scenario = load_scenario(case.scenario, values=values)
    recipe = prepare(scenario).recipe
    if case.tracked:  # cuts begin after the only round that is run
        recipe = replace(recipe, prune=replace(recipe.prune, start=0.9, end=1.0), rounds=2)
    state = small_state(scenario, case.compression)
    profile = DeviceProfile("any", None, samples)
    shards = (client_shard(scenario.data, clients, scenario.seed, client) for client in range(clients))
    return recipe, [
        Client(RoundTask(1, client, profile, state), shard) for client, shard in enumerate(shards)
    ]


def _train_barely(recipe: Recipe, cohort: Sequence[Client]) -> None:
    arch, train = recipe.architecture, recipe.train
    for client in cohort:
        state = client.task.state
        module = to_module(arch, state)
        optimizer = torch.optim.SGD(module.parameters(), lr=train.learning_rate, momentum=train.momentum)
        train_plainly(module, optimizer, client.shard, train.batch_size, arch.kept_inputs(state.structure))


def _trained(outcome: Update | Exception) -> Update:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _same(weights: Sequence[Mapping[str, Any]], updates: Sequence[Update]) -> bool:
    pairs = zip(weights, (update.state.weights for update in updates), strict=True)
    return all(np.array_equal(one[name], other[name]) for one, other in pairs for name in one)


def _seconds(function: Callable[[], None]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
