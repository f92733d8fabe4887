"""The actor that answers messages, chunk by chunk, in a process of its own."""

import time
from typing import NamedTuple

from flwr.app import RecordDict

from fedhp.simulation.answering import Answer, Job, answer
from fedhp.simulation.environment import SLICE_BYTES
from fedhp.simulation.loading import limit_threads, load_app

SLICE_SECONDS = 1.0


class Report(NamedTuple):
    """How much of a chunk a worker did, and in how many seconds."""

    num_done: int
    seconds: float


class Worker:
    """Holds the app and answers messages with it."""

    def __init__(self, reference: str, num_nodes: int, num_threads: int) -> None:
        self._reference = reference
        self._num_nodes = num_nodes
        self._num_threads = num_threads

    def load(self) -> None:
        """Imports the app; apart from the constructor so that a failure arrives as what it is."""
        self._app = load_app(self._reference)
        limit_threads(self._num_threads)

    def answer(self, jobs: list[Job], limit: float, *payloads: RecordDict) -> tuple[Report, list[Answer]]:
        """Answers a chunk, or only its first jobs if they are slow or their replies large.

        ``limit`` is the seconds that one client may take.
        A chunk handed back early can go on elsewhere, costs little if a worker dies, and keeps a
        timeout about one client; small chunks for all would cost the quick clients their speed.
        """
        started = time.monotonic()
        answers: list[Answer] = []
        num_bytes = 0
        for job in jobs:
            message = job.message(payloads)
            result = answer(self._app, self._num_nodes, limit, message, job.state)
            answers.append(result)
            num_bytes += result.payload_bytes
            if time.monotonic() - started > SLICE_SECONDS or num_bytes > SLICE_BYTES:
                break
        return Report(len(answers), time.monotonic() - started), answers
