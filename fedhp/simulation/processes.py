"""Workers that are processes of this machine, beside the server's."""

import pickle
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from flwr.app import RecordDict

from fedhp.errors import FedhpError
from fedhp.simulation.environment import START_SECONDS
from fedhp.simulation.lines import Line
from fedhp.simulation.nursery import Nursery, open_nursery
from fedhp.simulation.pool import Pool, largest_chunk
from fedhp.simulation.serving import Order
from fedhp.simulation.tasks import Job
from fedhp.simulation.worker import Report
from fedhp.simulation.workers import LostChunkError, WorkerDiedError
from fedhp.threads import cores

if TYPE_CHECKING:
    from fedhp.scenario.schema import SimulationConfig


@contextmanager
def open_processes(
    config: "SimulationConfig",
    apps: tuple[str, str, int],
    message_bytes: int,
    on_note: Callable[[str], None],
) -> Iterator[Pool]:
    """Opens as many workers as the configuration says, each a process; they make their `Apps` of ``apps``.

    Raises:
        FedhpError: If the workers do not start.
    """
    num_threads = config.threads_per_worker
    num_workers = min(cores() if config.num_workers < 0 else config.num_workers, apps[-1])
    with open_nursery(apps[1] or apps[0], num_threads) as nursery:  # the cohort app imports more
        crew = ProcessCrew(nursery, (*apps, num_threads))
        pool = Pool(crew, num_workers, on_note, largest_chunk(message_bytes))
        try:
            yield pool
        finally:
            pool.close()


@dataclass(eq=False)
class _Content:
    """What many messages share, as it is sent; forgotten by the workers once nobody holds it here."""

    key: int
    data: bytes


@dataclass(eq=False)
class _Process:
    """A worker: its process, the line to it, and which contents it holds."""

    process: int
    line: Line
    holds: set[int] = field(default_factory=set)


@dataclass(eq=False)
class _Chunk:
    """A chunk in a worker's hands, and its answers once they have come; unpacked when they are read."""

    worker: _Process
    answers: "_Answers"


@dataclass(eq=False)
class _Answers:
    data: bytes | bytearray = b""


class ProcessCrew:
    """See `fedhp.simulation.workers.Crew`.

    Args:
        nursery: Where workers are born.
        making: The arguments of `fedhp.simulation.worker.Worker`.
    """

    def __init__(self, nursery: Nursery, making: tuple[str, str, int, int]) -> None:
        self._nursery, self._making = nursery, making
        self._keys = count()
        self._shared: WeakValueDictionary[int, _Content] = WeakValueDictionary()

    def start(self) -> _Process:
        """See `fedhp.simulation.workers.Crew`."""
        worker = _Process(*self._nursery.bear())
        with suppress(OSError):  # whoever awaits it will see that it has died
            worker.line.send(pickle.dumps(self._making))
        return worker

    def await_ready(self, workers: Sequence[_Process]) -> None:
        """See `fedhp.simulation.workers.Crew`."""
        until = time.monotonic() + START_SECONDS
        for worker in workers:
            if not worker.line.comes_within(max(0.0, until - time.monotonic())):
                raise FedhpError(f"the workers did not start within {START_SECONDS:g} s")
            try:
                failure = pickle.loads(worker.line.receive())
            except OSError as error:
                raise FedhpError(f"a worker died while it started: {error}") from None
            if failure is not None:
                raise failure

    def end(self, worker: _Process) -> None:
        """See `fedhp.simulation.workers.Crew`."""
        self._nursery.end(worker.process)
        worker.line.close()

    def put(self, content: RecordDict) -> _Content:
        """See `fedhp.simulation.workers.Crew`."""
        shared = _Content(next(self._keys), pickle.dumps(content, protocol=5))
        self._shared[shared.key] = shared
        return shared

    def send(
        self, worker: _Process, jobs: list[Job], seconds: float, contents: Sequence[_Content]
    ) -> tuple[_Chunk, _Answers]:
        """See `fedhp.simulation.workers.Crew`."""
        gone = worker.holds.difference(self._shared.keys())
        fresh = {one.key: one.data for one in contents if one.key not in worker.holds}
        worker.holds = (worker.holds | fresh.keys()) - gone
        order = Order(jobs, seconds, [one.key for one in contents], fresh, list(gone))
        with suppress(OSError):  # whoever asks for the report will see that it has died
            worker.line.send(pickle.dumps(order, protocol=5))
        chunk = _Chunk(worker, _Answers())
        return chunk, chunk.answers

    def wait(self, reports: Sequence[_Chunk], seconds: float) -> Collection[_Chunk]:
        """See `fedhp.simulation.workers.Crew`."""
        ready = wait([chunk.worker.line for chunk in reports], seconds)  # pyright: ignore[reportArgumentType]
        return {chunk for chunk in reports if chunk.worker.line in ready}

    def get(self, thing: _Chunk | _Answers) -> Report | list[Any]:
        """See `fedhp.simulation.workers.Crew`."""
        if isinstance(thing, _Answers):
            return pickle.loads(thing.data)
        try:
            report = pickle.loads(thing.worker.line.receive())
            thing.answers.data = thing.worker.line.receive()
        except OSError:
            raise WorkerDiedError("the process died while the client ran") from None
        if isinstance(report, str):
            raise LostChunkError(report)
        return report
