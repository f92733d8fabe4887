"""Plain federated averaging beside a bare PyTorch loop: what the federation costs on top of training."""

import multiprocessing
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from statistics import median
from typing import Any

import numpy as np
import torch
from flwr.serverapp import Grid
from torch import nn

from fedhp.data.parts import client_shard
from fedhp.errors import require
from fedhp.federation.roster import query_fleet
from fedhp.federation.rounds import close_round
from fedhp.federation.strategy import FleetStrategy
from fedhp.model.building import initial_state
from fedhp.model.zoo import architecture
from fedhp.references import CLIENT_APP
from fedhp.run.setup import prepare
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.schema import Scenario
from fedhp.simulation.opening import open_grid

_CLIENTS_PER_ROUND = 50
_MEBIBYTE = 2**20


def plain_averaging(num_workers: int) -> Scenario:
    """Returns the benchmark's scenario: FedAvg of the MLP, 1,000 clients of 50 IID samples, 50 a round."""
    return load_scenario(
        "fashion_mnist_fleet",
        values={
            "name": "plain_averaging",
            "data.max_train": 50_000,
            "data.partition.name": "iid",
            "fleet.num_clients": 1000,
            "train": {
                "local_epochs": 1,
                "batch_size": 10,
                "learning_rate": 0.1,
                "momentum": 0.0,
                "lr_schedule": "constant",
            },
            "strategy.name": "dense",
            "server.clients_per_round": _CLIENTS_PER_ROUND,
            "simulation.num_workers": num_workers,
        },
    )


def run_round(num_workers: int = 2, rounds: int = 20, repeats: int = 5) -> dict[str, Any]:
    """Measures clients per second of the federation and of a bare loop, in turn, and takes medians.

    The bare loop runs in as many processes as the federation has workers; both do the same training and
    end each round with the mean of the clients' models. Neither evaluates.

    Args:
        num_workers: Workers of the federation, processes of the bare loop; 0 runs the clients in this
            process, and the bare loop in one: what is left of the difference then is no transport.
        rounds: Rounds of 50 clients in each measurement.
        repeats: Measurements of each, in turn.

    Returns:
        ``clients_per_second``, ``bare_clients_per_second``, ``ratio`` (median of the pairs' ratios) and
        ``pss_mebibytes``: the proportional set size of the run's processes, Ray's included, while it trains.
    """
    with require("the benchmark of rounds", "server"):
        import psutil
    scenario = plain_averaging(num_workers)
    setup = prepare(scenario)
    strategy = setup.strategy
    fleet, bare = [], []
    with (
        _bare_workers(scenario, max(1, num_workers)) as bare_workers,
        open_grid(
            scenario.simulation,
            CLIENT_APP,
            scenario.fleet.num_clients,
            600.0,
            message_bytes=setup.message_bytes,
        ) as grid,
    ):
        bare_pids = {worker.pid for worker in bare_workers.processes}
        devices, _ = query_fleet(grid, strategy.brief, scenario.fleet.num_clients, 600.0)
        strategy.enlist(devices)
        _hold_rounds(strategy, grid, 3)  # warm-up
        bare_workers.run(3)
        for _ in range(repeats):
            started = time.perf_counter()
            _hold_rounds(strategy, grid, rounds)
            fleet.append(rounds * _CLIENTS_PER_ROUND / (time.perf_counter() - started))
            started = time.perf_counter()
            bare_workers.run(rounds)
            bare.append(rounds * _CLIENTS_PER_ROUND / (time.perf_counter() - started))
        pss = _pss_bytes(psutil, without=bare_pids)
    return {
        "workers": num_workers,
        "clients_per_second": median(fleet),
        "bare_clients_per_second": median(bare),
        "ratio": median(a / b for a, b in zip(fleet, bare, strict=True)),
        "pss_mebibytes": pss / _MEBIBYTE,
    }


def _hold_rounds(strategy: FleetStrategy, grid: Grid, number: int) -> None:
    for _ in range(number):
        before, asked = strategy.server, strategy.ask(grid)
        replies = grid.send_and_receive(asked.messages, timeout=600.0)
        strategy.server, strategy.outcome = close_round(strategy, before, asked.sent, replies)


class _BareWorkers:
    """Processes that train clients with nothing but PyTorch; they exchange sums through pipes."""

    def __init__(self, scenario: Scenario, num_workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes, self.processes = [], []
        for _ in range(num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_bare_loop, args=(theirs, scenario.to_json()), daemon=True)
            process.start()
            self._pipes.append(ours)
            self.processes.append(process)
        setup = _architecture(scenario)
        self._state = dict(initial_state(setup, scenario.seed).weights)
        self._num_clients = scenario.fleet.num_clients

    def run(self, rounds: int) -> None:
        """Runs rounds of federated averaging."""
        for number in range(rounds):
            first = number * _CLIENTS_PER_ROUND
            for index, pipe in enumerate(self._pipes):
                numbers = range(first + index, first + _CLIENTS_PER_ROUND, len(self._pipes))
                pipe.send((self._state, [number % self._num_clients for number in numbers]))
            sums = [pipe.recv() for pipe in self._pipes]
            self._state = {name: sum(part[name] for part in sums[1:]) + sums[0][name] for name in self._state}
            self._state = {name: weights / _CLIENTS_PER_ROUND for name, weights in self._state.items()}

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self._pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(timeout=10)


@contextmanager
def _bare_workers(scenario: Scenario, num_workers: int) -> Iterator[_BareWorkers]:
    workers = _BareWorkers(scenario, num_workers)
    try:
        yield workers
    finally:
        workers.close()


def _bare_loop(pipe: Any, scenario_json: str) -> None:
    """Trains the clients it is sent and returns the sum of their models. Runs in its own process."""
    from fedhp.scenario.loading import from_json

    torch.set_num_threads(1)
    scenario = from_json(scenario_json)
    arch = _architecture(scenario)
    while (order := pipe.recv()) is not None:
        state, clients = order
        sums = {name: np.zeros_like(weights) for name, weights in state.items()}
        module = arch.build(arch.layout.widths)
        for client in clients:
            shard = client_shard(scenario.data, scenario.fleet.num_clients, scenario.seed, client)
            module.load_state_dict({name: torch.from_numpy(w) for name, w in state.items()})
            _train_plainly(module, shard, scenario)
            for name, parameter in module.named_parameters():
                sums[name] += parameter.detach().numpy()
        pipe.send(sums)


def _train_plainly(module: nn.Module, shard: Any, scenario: Scenario) -> None:
    train = scenario.train
    optimizer = torch.optim.SGD(module.parameters(), lr=train.learning_rate)
    order = torch.randperm(len(shard)).numpy()
    for start in range(0, len(shard), train.batch_size):
        images, labels = shard.batch(order[start : start + train.batch_size])
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images), labels).backward()
        optimizer.step()


def _architecture(scenario: Scenario) -> Any:
    return architecture(scenario.model, (1, 28, 28), 10)


def _pss_bytes(psutil: Any, without: Collection[int]) -> int:
    """Returns what this process and its descendants hold, Ray's daemons among them."""
    total, here = 0, psutil.Process()
    for process in [here, *here.children(recursive=True)]:
        with suppress(psutil.Error):  # it ended meanwhile
            total += process.memory_full_info().pss if process.pid not in without else 0
    return total
