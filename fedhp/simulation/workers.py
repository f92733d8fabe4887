"""The Ray actors of a pool and the chunks in their hands."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from fedhp.errors import FedhpError
from fedhp.simulation.batch import Span
from fedhp.simulation.worker import SLICE_SECONDS

START_SECONDS = 180.0


@dataclass
class Dispatched:
    """A chunk of messages in a worker's hands: which, and what it will report and answer."""

    span: Span
    report: Any
    answers: Any


@dataclass
class Lane:
    """One worker and the chunks in its hands: the first is running, a second waits to follow."""

    actor: Any
    queue: deque[Dispatched] = field(default_factory=deque)
    head_since: float = 0.0
    depth: int = 1

    @property
    def holds_suspect(self) -> bool:
        """Whether a worker has died over one of the chunks before."""
        return any(chunk.span.strikes for chunk in self.queue)

    def deadline(self, seconds: float) -> float:
        """Returns until when its first chunk may run, where one client may take so many seconds.

        A worker hands a chunk back at the end of its slice, so more than a slice above the limit means that
        one client is over it. Alone, a client has exactly its time.
        """
        extra = SLICE_SECONDS if self.queue[0].span.num_messages > 1 else 0.0
        return self.head_since + seconds + extra


class Workers:
    """The workers of a pool, each in a lane: started, awaited, replaced and ended.

    Args:
        start: Starts an actor of `fedhp.simulation.worker.Worker`.
        number: How many.

    Attributes:
        lanes: A lane for each.

    Raises:
        FedhpError: If the workers do not start.
    """

    def __init__(self, start: Callable[[], Any], number: int) -> None:
        self._start = start
        self.lanes = [Lane(start()) for _ in range(number)]
        self._await(self.lanes)

    def close(self) -> None:
        """Ends them."""
        for lane in self.lanes:
            ray.kill(lane.actor)

    def replace(self, lane: Lane) -> None:
        """Ends a lane's worker, forgets its chunks, and starts another."""
        ray.kill(lane.actor)
        lane.queue.clear()
        lane.depth = 1
        lane.actor = self._start()
        self._await([lane])

    def _await(self, lanes: Sequence[Lane]) -> None:
        # Before any chunk is sent, so that importing the app counts against nobody's time.
        loads = [lane.actor.load.remote() for lane in lanes]
        ready, late = ray.wait(loads, num_returns=len(loads), timeout=START_SECONDS)
        if late:
            raise FedhpError(
                f"only {len(ready)} of {len(loads)} workers started within {START_SECONDS:g} s: "
                "the Ray cluster has no room for the others; lower simulation.num_workers or "
                "simulation.gpus_per_worker"
            )
        try:
            ray.get(loads)
        except RayTaskError as error:
            raise error.cause from None
        except RayActorError as error:
            raise FedhpError(f"a worker died while it started: {error}") from None
