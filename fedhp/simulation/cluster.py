"""Starting, joining and leaving Ray."""

import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import ray
from ray._private import ray_constants
from ray._private import services as ray_services
from ray._private import utils as ray_utils

from fedhp.bounds import one_line
from fedhp.errors import FedhpError
from fedhp.simulation.environment import SLICE_BYTES, worker_environment
from fedhp.simulation.pool import Pool, largest_chunk
from fedhp.simulation.process_group import OwnGroup
from fedhp.simulation.ray_crew import RayCrew
from fedhp.simulation.signals import keeping_handlers
from fedhp.simulation.worker import Worker
from fedhp.threads import cores

if TYPE_CHECKING:
    from fedhp.scenario.schema import SimulationConfig

_LOCAL = "local"  # Ray's own word for one that is started for this process
_ANSWER_SECONDS = 5.0
_SMALLEST_STORE_BYTES = 80 * 2**20  # Ray takes no less than 75 MiB
_groups: list[OwnGroup] = []  # of the Ray that this process has started


@contextmanager
def open_pool(
    config: "SimulationConfig",
    apps: tuple[str, str, int],
    message_bytes: int,
    on_note: Callable[[str], None],
) -> Iterator[Pool]:
    """Opens workers on a local Ray of our own, or on the cluster that the configuration names.

    A Ray that this process has already joined is used, and left as it is. What workers make their `Apps` of
    is ``apps``.

    Raises:
        FedhpError: If the workers do not start, or the cluster has too few GPUs.
    """
    ours, num_nodes = not ray.is_initialized(), apps[-1]
    try:
        if ours:
            join_ray(config, num_nodes, message_bytes)
        num_workers = min(_num_workers(config), num_nodes)
        _check_gpus(config, num_workers)
        crew = RayCrew(_starter(config, apps, num_workers))
        pool = Pool(crew, num_workers, on_note, largest_chunk(message_bytes))
        try:
            yield pool
        finally:
            pool.close()
    finally:
        if ours:
            leave_ray()


def leave_ray() -> None:
    """Ends what `join_ray` began; a signal waits until it is done."""
    with _undisturbed():
        ray.shutdown()
        while _groups:
            _groups.pop().end()


@contextmanager
def _on_the_loopback() -> Iterator[None]:
    """Lets a Ray that starts in the block listen on this machine's loopback alone.

    It does where the node's address is 127.0.0.1, which it replaces by the machine's outer one wherever it
    takes clusters for possible: everywhere but on Windows and macOS.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _in_a_group_of_its_own() -> Iterator[None]:
    """Lets a Ray that starts in the block form a process group of its own, which ends with this process.

    In ours, a signal to it, as `timeout` and service managers send it, would end Ray's processes before this
    one: a Ray that just starts then waits for them for a minute, and Ray's own code ends this process. And
    where this one is killed, Ray's agents, if they have just started, would look for the others for a minute.
    """
    popen = ray_services.ConsolePopen
    if sys.platform != "win32":
        _groups.append(OwnGroup())
        ray_services.ConsolePopen = partial(popen, process_group=_groups[-1].group)
    try:
        yield
    finally:
        ray_services.ConsolePopen = popen


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Lets Ray start or end undisturbed: signals wait, and Ray, which would take SIGTERM, takes none.

    Its own handler raises wherever Ray is: in a destructor, where that is lost, or within C++, where it ends
    the process. And a Ray that is interrupted while it starts or ends leaves processes behind.
    """
    take = ray_utils.set_sigterm_handler
    wanted: list[Callable[..., object]] = []
    ray_utils.set_sigterm_handler = wanted.append
    try:
        with keeping_handlers(hold=True):
            yield
    finally:
        ray_utils.set_sigterm_handler = take
    if wanted and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        take(wanted[0])  # a script without a handler of its own ends cleanly by Ray's


def join_ray(config: "SimulationConfig", num_nodes: int, message_bytes: int) -> None:
    """Joins the Ray cluster that the configuration names, or starts one of as many cores as workers.

    Raises:
        FedhpError: If no cluster answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    verbose = logging.getLogger("fedhp").isEnabledFor(logging.DEBUG)
    logs = {"log_to_driver": verbose, "logging_level": logging.INFO if verbose else logging.ERROR}
    if config.address not in ("", _LOCAL):
        _join(config.address, logs)
        return
    num_workers = min(cores() if config.num_workers < 0 else config.num_workers, num_nodes)
    with _undisturbed(), _on_the_loopback(), _in_a_group_of_its_own():
        ray.init(
            # Named, or Ray joins whatever cluster RAY_ADDRESS or a file in /tmp names.
            address=_LOCAL,
            _node_ip_address="127.0.0.1",
            num_cpus=num_workers,
            include_dashboard=False,
            object_store_memory=_store_bytes(num_workers, message_bytes),
            **logs,
        )


def _join(address: str, logs: Mapping[str, Any]) -> None:
    try:
        _check_answer(address)
        with keeping_handlers(hold=False):
            ray.init(address=address, **logs)
    except (OSError, ValueError, RuntimeError) as error:
        raise FedhpError(
            f"no Ray cluster answers at simulation.address = '{address}': {one_line(str(error))}; start one "
            f"by 'ray start --head', or leave the key out"
        ) from None


def _check_answer(address: str) -> None:
    """Raises OSError where nothing listens: Ray would try for minutes. What names no port is left to Ray."""
    place = urlsplit(address if "://" in address else f"//{address}")
    if place.port:
        socket.create_connection((place.hostname, place.port), _ANSWER_SECONDS).close()


def _store_bytes(num_workers: int, message_bytes: int) -> int:
    """Returns the size of the store in which replies wait until the server reads them.

    Two chunks per worker, which end with the message that passes the limit, and as much for what goes down.
    Ray puts on disk what does not fit, as when many wait for one slow client. A larger store costs memory:
    sooner or later every page of it is touched.
    """
    return max(_SMALLEST_STORE_BYTES, 2 * (num_workers + 1) * (SLICE_BYTES + message_bytes))


def _num_workers(config: "SimulationConfig") -> int:
    if config.num_workers > 0:
        return config.num_workers
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _check_gpus(config: "SimulationConfig", num_workers: int) -> None:
    if not config.gpus_per_worker:
        return
    there = ray.cluster_resources().get("GPU", 0.0)
    # Ray gives out shares of one GPU, or whole ones, never a share that spans two.
    per_gpu = math.floor(1 / config.gpus_per_worker + 1e-9)
    room = there * per_gpu if per_gpu else there // config.gpus_per_worker
    if num_workers > room:
        raise FedhpError(
            f"{num_workers} workers with simulation.gpus_per_worker = {config.gpus_per_worker:g} "
            f"do not fit on {there:g} GPUs; lower simulation.num_workers or gpus_per_worker"
        )


def _starter(
    config: "SimulationConfig", apps: tuple[str, str, int], num_workers: int
) -> Callable[[], object]:
    # More workers than cores is the user's choice; reserving cores then would wait for ever.
    crowded = num_workers > ray.cluster_resources().get("CPU", 0)
    actor = ray.remote(Worker).options(
        num_cpus=0 if crowded else 1,
        num_gpus=config.gpus_per_worker,
        scheduling_strategy="SPREAD",
        runtime_env={"env_vars": worker_environment(config.threads_per_worker)},
    )
    return lambda: actor.remote(*apps, config.threads_per_worker)
