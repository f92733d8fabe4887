"""What does tasks, chunk by chunk, in a process of its own."""

import logging
import os
import time
from typing import Any, NamedTuple

from flwr.app import RecordDict

from fedhp.simulation.environment import LOG_LEVEL, SLICE_BYTES
from fedhp.simulation.loading import limit_threads
from fedhp.simulation.tasks import Apps, Job

SLICE_SECONDS = 1.0


class Report(NamedTuple):
    """How much of a chunk a worker did, and in how many seconds."""

    num_done: int
    seconds: float


class Worker:
    """Holds the apps and does tasks with them."""

    def __init__(self, client_app: str, cohort_app: str, num_nodes: int, num_threads: int) -> None:
        self._references = client_app, cohort_app
        self._num_nodes = num_nodes
        self._num_threads = num_threads

    def load(self) -> None:
        """Imports the apps; apart from the constructor so that a failure arrives as what it is."""
        level, logger = int(os.environ[LOG_LEVEL]), logging.getLogger("fedhp")
        if level <= logging.DEBUG:
            logger.setLevel(level)
            logger.addHandler(logging.StreamHandler())
        self._apps = Apps(*self._references, self._num_nodes)
        limit_threads(self._num_threads)

    def answer(self, jobs: list[Job], limit: float, *payloads: RecordDict) -> tuple[Report, list[Any]]:
        """Answers a chunk, or only its first jobs if they are slow or their replies large.

        ``limit`` is the seconds that one client may take.
        A chunk handed back early can go on elsewhere, costs little if a worker dies, and keeps a
        timeout about one task; small chunks for all would cost the quick clients their speed.
        """
        started = time.monotonic()
        answers: list[Any] = []
        num_bytes = 0
        for job in jobs:
            result = job.run(self._apps, limit, payloads[job.payload])
            answers.append(result)
            num_bytes += result.payload_bytes
            if time.monotonic() - started > SLICE_SECONDS or num_bytes > SLICE_BYTES:
                break
        return Report(len(answers), time.monotonic() - started), answers
