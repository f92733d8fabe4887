"""How fast the simulation moves messages: clients only return 40 KB or so, and the engine is the cost."""

import time
from collections.abc import Iterable
from statistics import median
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedhp.simulation.opening import open_grid

_NUMBERS = 10_000
_MESSAGES_WANTED = 20_000
_FLOWER_NODES_AT_MOST = 1_000
_TIMEOUT_SECONDS = 600.0

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Returns as many float32 numbers as it got, as a client that has trained would."""
    received = message.content.array_records["arrays"]["weights"]
    weights = np.full(received.shape, context.node_id, dtype=np.float32)
    arrays = ArrayRecord({"weights": Array(weights)})
    return Message(RecordDict({"arrays": arrays}), reply_to=message)


def run_engine(
    num_nodes: int,
    num_workers: int,
    vs_flower: bool = False,
    rounds: int | None = None,
    numbers: int = _NUMBERS,
) -> dict[str, Any]:
    """Measures messages per second in steady state: the median round after one to warm up.

    Args:
        num_nodes: Simulated nodes; each gets one message per round.
        num_workers: Workers; 0 runs the clients in this process.
        vs_flower: Also measure Flower's own engine, with as many of Ray's actors and the same client app,
            on at most 1,000 nodes (it slows down with more).
        rounds: Rounds to measure; None takes as many as make about 20,000 messages.
        numbers: float32 numbers in a message, either way.

    Returns:
        Numbers for a JSON file: ``messages_per_second``, ``messages``, ``seconds``,
        ``startup_seconds``, ..., and with ``vs_flower`` also ``flower_messages_per_second`` and
        ``ratio``.
    """
    # Not above: workers import this file for its app, and a scenario's schema brings torch along.
    from fedhp.scenario.schema import SimulationConfig

    rounds = rounds or max(1, _MESSAGES_WANTED // num_nodes)
    config = SimulationConfig(num_workers=num_workers)
    started = time.perf_counter()
    with open_grid(
        config, "fedhp.bench.engine:app", num_nodes, _TIMEOUT_SECONDS, message_bytes=4 * numbers
    ) as grid:
        startup_seconds = time.perf_counter() - started
        _exchange(grid, numbers)
        seconds = [_exchange(grid, numbers) for _ in range(rounds)]
    # The median round: another program that wakes up for a moment is not the engine's doing.
    rate = num_nodes / median(seconds)
    result = {
        "nodes": num_nodes,
        "workers": num_workers,
        "bytes": 4 * numbers,
        "rounds": rounds,
        "messages": num_nodes * rounds,
        "seconds": sum(seconds),
        "messages_per_second": rate,
        "startup_seconds": startup_seconds,
    }
    if vs_flower:
        result |= _run_flower(min(num_nodes, _FLOWER_NODES_AT_MOST), max(1, num_workers), numbers)
        result["ratio"] = rate / result["flower_messages_per_second"]
    return result


def _exchange(grid: Grid, numbers: int, node_ids: Iterable[int] | None = None) -> float:
    """Sends one message to each node, reads every reply, and returns the seconds it took."""
    started = time.perf_counter()
    weights = Array(np.zeros(numbers, dtype=np.float32))
    content = RecordDict({"arrays": ArrayRecord({"weights": weights}), "config": ConfigRecord()})
    nodes = list(grid.get_node_ids() if node_ids is None else node_ids)
    replies = grid.send_and_receive([Message(content, node, "train") for node in nodes])
    num_good = sum(_read(reply) == numbers for reply in replies)
    if num_good != len(nodes):
        raise RuntimeError(f"{len(nodes) - num_good} of {len(nodes)} messages failed")
    return time.perf_counter() - started


def _read(reply: Message) -> int:
    """Reads a reply's numbers, as a strategy would, and returns how many are not NaN."""
    if not reply.has_content():
        return 0
    return int(np.count_nonzero(~np.isnan(reply.content.array_records["arrays"]["weights"].numpy())))


def _run_flower(num_nodes: int, num_workers: int, numbers: int) -> dict[str, Any]:
    """Runs one round on Flower's simulation engine, after a warm-up of a few messages per actor."""
    seconds: list[float] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        nodes = all_nodes(grid, num_nodes)
        _exchange(grid, numbers, nodes[: 4 * num_workers])
        seconds.append(_exchange(grid, numbers, nodes))

    on_flowers_engine(server, app, num_nodes, num_workers)
    return {"flower_nodes": num_nodes, "flower_messages_per_second": num_nodes / seconds[0]}


def on_flowers_engine(server: ServerApp, client: ClientApp, num_nodes: int, num_workers: int) -> None:
    """Runs apps on Flower's own simulation engine, with so many actors."""
    # Only comparisons need it, and importing it costs every worker time and memory.
    from flwr.simulation import run_simulation

    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=num_nodes,
        backend_config={
            "init_args": {"num_cpus": num_workers, "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )


def all_nodes(grid: Grid, num_nodes: int, patience_seconds: float = 60.0) -> list[int]:
    """Waits for Flower's engine to have registered every node."""
    until = time.monotonic() + patience_seconds
    while len(nodes := list(grid.get_node_ids())) < num_nodes:
        if time.monotonic() > until:
            raise RuntimeError(f"Flower registered only {len(nodes)} of {num_nodes} nodes")
        time.sleep(0.1)
    return nodes
