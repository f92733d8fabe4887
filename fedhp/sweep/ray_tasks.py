"""Calls on Ray, each in a worker process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from fedhp.simulation.cluster import join_ray, leave_ray
from fedhp.simulation.environment import worker_environment
from fedhp.sweep.tasks import LostTaskError

if TYPE_CHECKING:
    from fedhp.scenario.schema import SimulationConfig


class RayTasks:
    """Runs calls as Ray tasks.

    Args:
        options: Ray's options of every task.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._running: dict[Any, Any] = {}

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Starts a call, once a worker is free."""
        reference = ray.remote(function).options(**self._options).remote(*arguments)
        self._running[reference] = arguments[0]

    def next_done(self) -> Any:
        """Waits for the next call that ends."""
        (done,), _ = ray.wait(list(self._running), num_returns=1)
        about = self._running.pop(done)
        try:
            return ray.get(done)
        except RayError as error:
            raise LostTaskError(about) from error


@contextmanager
def open_ray_tasks(config: "SimulationConfig", num_tasks: int) -> Iterator[RayTasks]:
    """Opens workers on a local Ray of our own, or on the cluster that the configuration names."""
    ours = not ray.is_initialized()
    options = {
        "num_cpus": 1,
        "num_gpus": config.gpus_per_worker,
        "max_retries": 0,  # what a dead worker has begun is not to be written over
        "runtime_env": {"env_vars": worker_environment(config.threads_per_worker)},
    }
    try:
        if ours:
            join_ray(config, num_tasks, message_bytes=0)
        yield RayTasks(options)
    finally:
        if ours:
            leave_ray()
