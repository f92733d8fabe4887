"""Plain federated averaging beside a bare PyTorch loop: what the federation costs on top of training."""

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from statistics import median
from typing import Any

from flwr.serverapp import Grid

from fedhp.bench.bare_loop import bare_workers
from fedhp.bench.plain import plain_averaging, small_state
from fedhp.errors import require
from fedhp.federation.roster import Places, find_fleet
from fedhp.federation.rounds import close_round
from fedhp.federation.strategy import FleetStrategy
from fedhp.references import CLIENT_APP, COHORT_APP
from fedhp.run.setup import prepare
from fedhp.scenario.schema import Scenario
from fedhp.simulation.opening import open_grid

_MEBIBYTE = 2**20
_CLIENTS_WANTED = 1000
_LOOK_SECONDS = 0.2
_FLOWER_ROUNDS = 4


def run_round(
    num_workers: int = 2,
    clients: int = 1000,
    per_round: int = 50,
    compression: float = 1.0,
    vs_flower: bool = False,
    rounds: int | None = None,
    repeats: int | None = None,
) -> dict[str, Any]:
    """Measures clients per second of the federation and of a bare loop, in turn, and takes medians.

    The bare loop runs in as many processes as the federation has workers; both do the same training and
    end each round with the mean of the clients' models. Neither evaluates.

    Args:
        num_workers: Workers of the federation, processes of the bare loop; 0 runs the clients in this
            process, and the bare loop in one: what is left of the difference then is no transport.
        clients: Clients of the fleet, among whom 50,000 samples are divided.
        per_round: Clients in a round.
        compression: How much smaller the network is than the MLP, as pruned to its target: fewer units of
            every group, inputs among them.
        vs_flower: Also measure the bare loop's clients under Flower's own engine and strategy, once.
        rounds: Rounds in each measurement; None takes as many as make 1,000 clients.
        repeats: Measurements of each, in turn; None takes five, or fewer of more than 1,000 clients.

    Returns:
        ``clients_per_second``, ``bare_clients_per_second``, ``ratio`` (median of the pairs' ratios) and
        ``pss_mebibytes``: the most that the run's processes, workers included, hold in a round that is not
        timed, by proportional set size. With ``vs_flower`` also ``flower_clients_per_second`` and
        ``times_flower``.
    """
    with require("the benchmark of rounds", "server"):
        import psutil
    rounds = rounds or max(1, _CLIENTS_WANTED // per_round)
    repeats = repeats or max(1, min(5, 5 * _CLIENTS_WANTED // per_round))
    scenario = plain_averaging(num_workers, clients, per_round)
    setup = prepare(scenario)
    strategy = setup.strategy
    strategy.start_from(small_state(scenario, compression).structure)
    fleet, bare = [], []
    with (
        bare_workers(scenario, compression, max(1, num_workers)) as bare_loop,
        open_grid(
            scenario.simulation,
            CLIENT_APP,
            clients,
            600.0,
            message_bytes=setup.message_bytes,
            cohort_app=COHORT_APP,
        ) as grid,
    ):
        strategy.enlist(find_fleet(grid, strategy.brief, Places(clients), 600.0).devices)
        warm_up = min(3, rounds)
        _hold_rounds(strategy, grid, warm_up)
        bare_loop.run(warm_up)
        for _ in range(repeats):
            fleet.append(rounds * per_round / _seconds(_hold_rounds, strategy, grid, rounds))
            bare.append(rounds * per_round / _seconds(bare_loop.run, rounds))
        with _most_held(psutil, {worker.pid for worker in bare_loop.processes}) as held:
            _hold_rounds(strategy, grid, warm_up)
    result = {
        "workers": num_workers,
        "clients": clients,
        "clients_per_round": per_round,
        "parameters": setup.recipe.architecture.layout.num_parameters(strategy.state.structure.counts),
        "clients_per_second": median(fleet),
        "bare_clients_per_second": median(bare),
        "ratio": median(a / b for a, b in zip(fleet, bare, strict=True)),
        "pss_mebibytes": max(held) / _MEBIBYTE,
    }
    if vs_flower:
        result |= _beside_flower(scenario, compression, num_workers, result["clients_per_second"])
    return result


def _beside_flower(
    scenario: Scenario, compression: float, num_workers: int, clients_per_second: float
) -> dict[str, Any]:
    # Only this comparison needs it.
    from fedhp.bench.flower_round import run_flower

    flower = run_flower(scenario, compression, max(1, num_workers), _FLOWER_ROUNDS)
    return flower | {"times_flower": clients_per_second / flower["flower_clients_per_second"]}


def _seconds(function: Callable[..., object], *given: object) -> float:
    started = time.perf_counter()
    function(*given)
    return time.perf_counter() - started


def _hold_rounds(strategy: FleetStrategy, grid: Grid, number: int) -> None:
    for _ in range(number):
        _, parts = strategy.exchange(grid, 600.0)
        strategy.server, strategy.outcome = close_round(strategy, strategy.server, parts)


@contextmanager
def _most_held(psutil: Any, without: Collection[int]) -> Iterator[list[int]]:
    """Yields what the run's processes hold, as it is again and again until the block ends."""
    held, over = [], threading.Event()

    def look() -> None:
        while True:
            held.append(_pss_bytes(psutil, without))
            if over.wait(_LOOK_SECONDS):
                return

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield held
    finally:
        over.set()
        looking.join()


def _pss_bytes(psutil: Any, without: Collection[int]) -> int:
    """Returns what this process and its descendants hold."""
    total, here = 0, psutil.Process()
    for process in [here, *here.children(recursive=True)]:
        with suppress(psutil.Error):  # it ended meanwhile
            total += process.memory_full_info().pss if process.pid not in without else 0
    return total
