"""What is left of one exchange: tasks to send, answers to read in order. No Ray here."""

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedhp.simulation.tasks import Job, Task

LARGEST_CHUNK = 64
_CHUNKS_AT_ONCE = 2


@dataclass(frozen=True, order=True)
class Span:
    """Tasks ``start`` to ``stop``, and how often they were in a worker's hands when it died."""

    start: int
    stop: int
    strikes: int = 0

    @property
    def num_tasks(self) -> int:
        """How many tasks."""
        return self.stop - self.start

    def split(self, num_first: int) -> "tuple[Span, Span]":
        """Returns the first ``num_first`` tasks and the others."""
        middle = self.start + num_first
        return replace(self, stop=middle), replace(self, start=middle)


class Batch:
    """The tasks of one exchange, cut into spans.

    Attributes:
        tasks: All tasks.
        unread: Index of the next task whose answer is to be read.

    Args:
        tasks: All tasks.
        num_workers: How many workers share them.
        largest_chunk: The most tasks in a span.
    """

    def __init__(self, tasks: Sequence[Task], num_workers: int, largest_chunk: int = LARGEST_CHUNK) -> None:
        self.tasks = tasks
        self.unread = 0
        self._todo = list(_spans(len(tasks), num_workers, largest_chunk))
        # Answers that wait for an earlier one take memory; this bounds how many do.
        largest = max((span.num_tasks for span in self._todo), default=1)
        self._reach = largest * num_workers * _CHUNKS_AT_ONCE
        self._done: dict[int, tuple[Span, Any]] = {}
        self._users = Counter(id(task.content) for task in tasks)
        self._references: dict[int, Any] = {}

    def next(self, suspects: bool = True) -> Span | None:
        """Takes the earliest span to send, unless it lies too far ahead of the reader.

        Args:
            suspects: Whether it may be one in whose hands a worker died.
        """
        if not self._todo or self._todo[0].start >= self.unread + self._reach:
            return None
        return None if self._todo[0].strikes and not suspects else heapq.heappop(self._todo)

    def again(self, span: Span) -> None:
        """Puts a span back."""
        if span.num_tasks:
            heapq.heappush(self._todo, span)

    def again_one_by_one(self, span: Span, strikes: int) -> None:
        """Puts a span's tasks back singly, so that only the culprit among them fails."""
        for index in range(span.start, span.stop):
            self.again(Span(index, index + 1, strikes))

    def finish(self, span: Span, answers: Any) -> None:
        """Keeps a span's answers (or the reference to them) until they are read."""
        self._done[span.start] = (span, answers)

    def ready(self) -> tuple[Span, Any] | None:
        """Takes the span at the reader's place and its answers, if they are there."""
        return self._done.pop(self.unread, None)

    def read(self, answer: Any) -> Any:
        """Counts an answer as read, and forgets a payload that was its task's alone to use."""
        key = id(self.tasks[self.unread].content)
        self._users[key] -= 1
        if not self._users[key]:
            self._references.pop(key, None)
        self.unread += 1
        return answer

    def pack(self, span: Span, put: Any) -> tuple[list[Job], list[Any]]:
        """Returns a span's jobs and the references of the payloads that they count on.

        Args:
            span: Which tasks.
            put: Stores a content and returns its reference; called once per distinct content.
        """
        places: dict[int, int] = {}
        jobs = list[Job]()
        for task in self.tasks[span.start : span.stop]:
            key = id(task.content)
            if key not in self._references:
                self._references[key] = put(task.content)
            jobs.append(task.job(places.setdefault(key, len(places))))
        return jobs, [self._references[key] for key in places]


def _spans(num_tasks: int, num_workers: int, largest_chunk: int) -> Iterator[Span]:
    """Cuts tasks into spans that shrink towards the end, so that no worker waits long for another.

    Each is half of a worker's even part of what is left: large first spans save calls, single tasks at the
    end level the load. With larger ones plain averaging goes through faster, and workers wait twice as long
    for each other at the end of a round of slower clients.
    """
    start = 0
    while start < num_tasks:
        size = max(1, min(largest_chunk, (num_tasks - start) // (2 * num_workers)))
        yield Span(start, start + size)
        start += size
