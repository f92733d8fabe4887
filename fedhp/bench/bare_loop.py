"""Plain averaging by processes that train with nothing but PyTorch, and send one sum each a round."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fedhp.bench.plain import BareClient, small_state
from fedhp.scenario.arrived import from_json
from fedhp.scenario.schema import Scenario


class BareWorkers:
    """The processes; they exchange sums through pipes."""

    def __init__(self, scenario: Scenario, compression: float, num_workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes, self.processes = [], []
        for _ in range(num_workers):
            ours, theirs = context.Pipe()
            given = theirs, scenario.to_json(), compression
            process = context.Process(target=_train, args=given, daemon=True)
            process.start()
            self._pipes.append(ours)
            self.processes.append(process)
        self._weights = dict(small_state(scenario, compression).weights)
        self._num_clients, self._per_round = scenario.fleet.num_clients, scenario.server.clients_per_round

    def run(self, rounds: int) -> None:
        """Runs rounds of federated averaging."""
        for number in range(rounds):
            first = number * self._per_round
            for index, pipe in enumerate(self._pipes):
                numbers = range(first + index, first + self._per_round, len(self._pipes))
                pipe.send((self._weights, [number % self._num_clients for number in numbers]))
            sums = [pipe.recv() for pipe in self._pipes]
            totals = {name: sum(part[name] for part in sums[1:]) + sums[0][name] for name in self._weights}
            self._weights = {name: total / self._per_round for name, total in totals.items()}

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self._pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(timeout=10)


@contextmanager
def bare_workers(scenario: Scenario, compression: float, num_workers: int) -> Iterator[BareWorkers]:
    """Opens so many processes."""
    workers = BareWorkers(scenario, compression, num_workers)
    try:
        yield workers
    finally:
        workers.close()


def _train(pipe: Any, scenario_json: str, compression: float) -> None:
    """Trains the clients it is sent and returns the sum of their models. Runs in its own process."""
    torch.set_num_threads(1)
    bare = BareClient(from_json(scenario_json), compression)
    while (order := pipe.recv()) is not None:
        weights, clients = order
        sums = {name: np.zeros_like(array) for name, array in weights.items()}
        for client in clients:
            bare.train(weights, client)
            for name, parameter in bare.module.named_parameters():
                sums[name] += parameter.detach().numpy()
        pipe.send(sums)
