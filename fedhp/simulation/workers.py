"""The workers of a pool, the chunks in their hands, and what a pool asks of whoever runs them."""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flwr.app import RecordDict

from fedhp.simulation.batch import Span
from fedhp.simulation.tasks import Job
from fedhp.simulation.worker import SLICE_SECONDS


class LostChunkError(Exception):
    """A chunk that comes back without answers; says why."""


class WorkerDiedError(LostChunkError):
    """The worker's process has ended meanwhile."""


class Crew(Protocol):
    """Runs workers (see `fedhp.simulation.worker.Worker`), in processes of whatever kind."""

    def start(self) -> Any:
        """Starts a worker, and returns it without waiting until it is ready."""
        ...

    def await_ready(self, workers: Sequence[Any]) -> None:
        """Waits until workers that were just started have loaded the app.

        Raises:
            FedhpError: If one does not start within `START_SECONDS`, or dies.
            Exception: What a worker raised while it loaded the app.
        """
        ...

    def end(self, worker: Any) -> None:
        """Ends a worker, whatever it does."""
        ...

    def put(self, content: RecordDict) -> Any:
        """Takes in a content that many messages share, and returns what stands for it in `send`."""
        ...

    def send(self, worker: Any, jobs: list[Job], seconds: float, contents: Sequence[Any]) -> tuple[Any, Any]:
        """Hands a chunk to a worker; returns what stands for its report and for its answers in `get`."""
        ...

    def wait(self, reports: Sequence[Any], seconds: float) -> Collection[Any]:
        """Returns those of the reports that are there; waits for one, but no longer than so many seconds.

        Of each worker the report of its first chunk, in the order of sending.
        """
        ...

    def get(self, thing: Any) -> Any:
        """Returns a report, or answers.

        Raises:
            LostChunkError: If there are none.
        """
        ...


@dataclass
class Dispatched:
    """A chunk of tasks in a worker's hands: which, of at most how many clients each, and what it will say."""

    span: Span
    most_clients: int
    report: Any
    answers: Any


@dataclass
class Lane:
    """One worker and the chunks in its hands: the first is running, a second waits to follow."""

    worker: Any
    queue: deque[Dispatched] = field(default_factory=deque)
    head_since: float = 0.0
    depth: int = 1

    @property
    def holds_suspect(self) -> bool:
        """Whether a worker has died over one of the chunks before."""
        return any(chunk.span.strikes for chunk in self.queue)

    def deadline(self, seconds: float) -> float:
        """Returns until when its first chunk may run, where one client may take so many seconds.

        A worker hands a chunk back at the end of its slice, so more than a slice above what one task's
        clients may take means that one is over it. Alone, a client has exactly its time.
        """
        head = self.queue[0]
        extra = SLICE_SECONDS if head.span.num_tasks > 1 or head.most_clients > 1 else 0.0
        return self.head_since + head.most_clients * seconds + extra


class Workers:
    """The workers of a pool, each in a lane: started, awaited, replaced and ended.

    Args:
        crew: Runs them.
        number: How many.

    Attributes:
        lanes: A lane for each.

    Raises:
        FedhpError: If the workers do not start.
    """

    def __init__(self, crew: Crew, number: int) -> None:
        self._crew = crew
        self.lanes: list[Lane] = []
        try:
            for _ in range(number):
                self.lanes.append(Lane(crew.start()))
            crew.await_ready([lane.worker for lane in self.lanes])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends them."""
        for lane in self.lanes:
            self._crew.end(lane.worker)

    def replace(self, lane: Lane) -> None:
        """Ends a lane's worker, forgets its chunks, and starts another."""
        self._crew.end(lane.worker)
        lane.queue.clear()
        lane.depth = 1
        lane.worker = self._crew.start()
        # Before any chunk is sent, so that importing the app counts against nobody's time.
        self._crew.await_ready([lane.worker])
