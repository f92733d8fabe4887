"""Simulation: a Flower ``Grid`` of our own over many nodes, in this process, beside it or on Ray.

Flower's engine sends one message per actor call and polls; this one sends chunks to long-lived
workers, shares what many clients get, and yields replies in the order of the messages, so that
results do not depend on the number of workers.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from fedhp.errors import require
from fedhp.simulation.grid import Executor, SimulatedGrid
from fedhp.simulation.identity import SERVER_NODE_ID, acting_as
from fedhp.simulation.loading import limit_threads, load_app
from fedhp.simulation.local import LocalExecutor
from fedhp.simulation.nursery import AVAILABLE
from fedhp.simulation.signals import keeping_handlers
from fedhp.simulation.tasks import Apps
from fedhp.simulation.turn import TURN

if TYPE_CHECKING:
    from fedhp.scenario.schema import SimulationConfig

__all__ = ["load_app", "need_ray", "open_grid"]


@contextmanager
def open_grid(
    config: "SimulationConfig",
    client_app: str,
    num_nodes: int,
    timeout_seconds: float,
    on_note: Callable[[str], None] | None = None,
    message_bytes: int = 0,
    cohort_app: str = "",
) -> Iterator[SimulatedGrid]:
    """Opens a grid of simulated nodes that run a client app.

    Inside the block this process writes messages as the server; after it, the workers are gone, and a
    Ray that was started for them. Another thread that opens one waits until then.

    Args:
        config: Where the clients run.
        client_app: The ``flwr.clientapp.ClientApp``, as ``"module:attr"``.
        num_nodes: Nodes 1 to ``num_nodes``; node ``i`` is given ``partition-id`` ``i - 1``.
        timeout_seconds: How long one client may take. Not a round: how many clients a round gets
            through in a given time depends on the workers, and results must not.
        on_note: Called with a line for the user when a worker had to be replaced.
        message_bytes: What the largest messages are expected to hold. By it workers are handed fewer at a
            time, and a local Ray makes room for them.
        cohort_app: What answers for several nodes that are asked together, a function as
            `fedhp.simulation.answering.CohortApp`, as ``"module:attr"``; empty where none is.

    Raises:
        FedhpError: If an app cannot be found or the workers do not start.
        MissingExtraError: If the workers are to be Ray's, and it is not installed.
    """
    apps = client_app, cohort_app, num_nodes
    if config.num_workers == 0:
        opener = _local(config, apps)
    else:
        opener = _pool(config)(config, apps, message_bytes, on_note or _silent)
    with TURN, opener as executor, acting_as(SERVER_NODE_ID), _quiet_flower():
        yield SimulatedGrid(executor, num_nodes, timeout_seconds, bool(cohort_app))


def need_ray(purpose: str) -> None:
    """Imports Ray, which is an extra.

    Raises:
        MissingExtraError: If it is not installed.
    """
    # An import that is cut short leaves half a Ray behind.
    with require(f"{purpose} (or set simulation.num_workers=0)", "sim", "ray"), keeping_handlers():
        import ray  # noqa: F401


@contextmanager
def _local(config: "SimulationConfig", apps: tuple[str, str, int]) -> Iterator[Executor]:
    loaded = Apps(*apps)
    before = limit_threads(config.threads_per_worker)
    try:
        yield LocalExecutor(loaded)
    finally:
        if before is not None:
            limit_threads(before)


def _pool(config: "SimulationConfig") -> Callable[..., AbstractContextManager[Executor]]:
    """Returns what opens the workers: Ray where its cluster or its GPUs are asked for, or it is there."""
    if runs_in_processes(config):
        from fedhp.simulation.processes import open_processes

        return open_processes
    need_ray("simulation with workers")
    from fedhp.simulation.cluster import open_pool

    return open_pool


def runs_in_processes(config: "SimulationConfig") -> bool:
    """Says whether workers are processes of this machine, without Ray."""
    ray = sys.modules.get("ray")
    joined = ray is not None and ray.is_initialized()
    return AVAILABLE and not (config.num_workers == 0 or config.address or config.gpus_per_worker or joined)


@contextmanager
def _quiet_flower() -> Iterator[None]:
    """Silences Flower's lines per round, which fedhp's display says better, unless fedhp is debugged."""
    flower = logging.getLogger("flwr")
    before = flower.level
    if not logging.getLogger("fedhp").isEnabledFor(logging.DEBUG):
        flower.setLevel(logging.ERROR)
    try:
        yield
    finally:
        flower.setLevel(before)


def _silent(_: str) -> None:
    pass
