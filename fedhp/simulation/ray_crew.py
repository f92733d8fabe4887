"""Workers that are Ray's actors, on a Ray of this machine or a cluster."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import ray
from flwr.app import RecordDict
from ray.exceptions import RayActorError, RayError, RayTaskError

from fedhp.errors import FedhpError
from fedhp.simulation.environment import START_SECONDS
from fedhp.simulation.tasks import Job
from fedhp.simulation.workers import LostChunkError, WorkerDiedError


class RayCrew:
    """See `fedhp.simulation.workers.Crew`.

    Args:
        start: Starts an actor of `fedhp.simulation.worker.Worker`.
    """

    def __init__(self, start: Callable[[], Any]) -> None:
        self.start = start

    def await_ready(self, workers: Sequence[Any]) -> None:
        """See `fedhp.simulation.workers.Crew`."""
        loads = [worker.load.remote() for worker in workers]
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

    def end(self, worker: Any) -> None:
        """See `fedhp.simulation.workers.Crew`."""
        ray.kill(worker)

    def put(self, content: RecordDict) -> Any:
        """See `fedhp.simulation.workers.Crew`."""
        return ray.put(content)

    def send(self, worker: Any, jobs: list[Job], seconds: float, contents: Sequence[Any]) -> tuple[Any, Any]:
        """See `fedhp.simulation.workers.Crew`."""
        report, answers = worker.answer.options(num_returns=2).remote(jobs, seconds, *contents)
        return report, answers

    def wait(self, reports: Sequence[Any], seconds: float) -> Collection[Any]:
        """See `fedhp.simulation.workers.Crew`."""
        if seconds:
            ray.wait(list(reports), timeout=seconds)
        return set(ray.wait(list(reports), num_returns=len(reports), timeout=0)[0])

    def get(self, thing: Any) -> Any:
        """See `fedhp.simulation.workers.Crew`."""
        try:
            return ray.get(thing)
        except RayActorError as error:
            raise WorkerDiedError("the process died while the client ran") from error
        except RayTaskError as error:
            raise LostChunkError(f"{type(error.cause).__name__}: {error.cause}") from error
        except RayError as error:
            raise LostChunkError(str(error)) from error
