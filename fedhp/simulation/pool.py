"""Long-lived workers that share the clients of a round: who does what, and what if one dies."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fedhp.simulation.batch import LARGEST_CHUNK, Batch, Span
from fedhp.simulation.environment import SLICE_BYTES
from fedhp.simulation.tasks import Task
from fedhp.simulation.worker import Report
from fedhp.simulation.workers import Crew, Dispatched, Lane, LostChunkError, WorkerDiedError, Workers

logger = logging.getLogger(__name__)

# What a worker does in less is followed by a chunk that it has already: to hand it one takes about 1 ms. What
# takes longer waits for whoever is free first.
_QUICK_SECONDS = 0.02
_MOST_STRIKES = 2


class Pool:
    """Runs clients on workers.

    Args:
        crew: Runs the workers.
        num_workers: How many.
        on_note: Called with a line for the user whenever a worker had to be replaced.
        largest_chunk: The most tasks that a worker is handed at a time.

    Raises:
        FedhpError: If the workers do not start.
    """

    def __init__(
        self,
        crew: Crew,
        num_workers: int,
        on_note: Callable[[str], None],
        largest_chunk: int = LARGEST_CHUNK,
    ) -> None:
        self._crew, self._on_note, self._largest_chunk = crew, on_note, largest_chunk
        self._workers = Workers(crew, num_workers)
        self._lanes = self._workers.lanes

    def close(self) -> None:
        """Ends the workers."""
        self._workers.close()

    def run(self, tasks: Sequence[Task], seconds: float) -> Iterator[Any]:
        """See `fedhp.simulation.grid.Executor`."""
        for lane in self._lanes:
            if lane.queue:  # a reader went away before the end of its stream
                self._workers.replace(lane)
        batch = Batch(tasks, len(self._lanes), self._largest_chunk)
        while batch.unread < len(tasks):
            self._collect(batch, seconds, wait=False)
            self._dispatch(batch, seconds)
            if done := batch.ready():
                yield from self._read(batch, *done)
            else:
                self._collect(batch, seconds, wait=True)

    def _dispatch(self, batch: Batch, seconds: float) -> None:
        for depth in (1, 2):  # nobody gets a second chunk while somebody has none
            for lane in self._lanes:
                if len(lane.queue) >= min(depth, lane.depth) or lane.holds_suspect:
                    continue
                # Alone in its lane: where a worker dies, what it had just finished may be lost on the way,
                # and the one before would be taken for the culprit.
                if span := batch.next(suspects=not lane.queue):
                    self._send(lane, batch, span, seconds)

    def _send(self, lane: Lane, batch: Batch, span: Span, seconds: float) -> None:
        jobs, payloads = batch.pack(span, self._crew.put)
        report, answers = self._crew.send(lane.worker, jobs, seconds, payloads)
        if not lane.queue:
            lane.head_since = time.monotonic()
        most = max(len(batch.tasks[index].nodes) for index in range(span.start, span.stop))
        lane.queue.append(Dispatched(span, most, report, answers))

    def _read(self, batch: Batch, span: Span, answers: Any) -> Iterator[Any]:
        if not isinstance(answers, list):
            try:
                answers = self._crew.get(answers)
            except LostChunkError as error:  # the node that held them is gone
                self._strike(batch, span, error)
                return
        for answer in answers:
            yield batch.read(answer)

    def _collect(self, batch: Batch, seconds: float, wait: bool) -> None:
        """Takes in what the workers have finished, then deals with those that are late.

        With ``wait``, first sleeps until a worker finishes or becomes late.
        """
        heads = [lane.queue[0].report for lane in self._lanes if lane.queue]
        patience = 0.0
        if wait:
            soonest = min(lane.deadline(seconds) for lane in self._lanes if lane.queue)
            patience = max(0.0, soonest - time.monotonic())
        finished = self._crew.wait(heads, patience) if heads else ()
        for lane in self._lanes:
            if lane.queue and lane.queue[0].report in finished:
                self._finish(lane, batch)
            elif lane.queue and time.monotonic() > lane.deadline(seconds):
                self._expire(lane, batch, seconds)

    def _finish(self, lane: Lane, batch: Batch) -> None:
        chunk = lane.queue[0]
        try:
            report: Report = self._crew.get(chunk.report)
        except WorkerDiedError as error:
            _return_waiting(lane, batch)
            self._workers.replace(lane)
            self._on_note(f"a worker died at {_clients(batch, chunk.span)} and was replaced")
            self._strike(batch, chunk.span, error)
            return
        except LostChunkError as error:
            lane.queue.popleft()
            self._strike(batch, chunk.span, error)
            return
        lane.queue.popleft()
        lane.head_since = time.monotonic()
        lane.depth = 2 if report.seconds < _QUICK_SECONDS else 1
        done, rest = chunk.span.split(report.num_done)
        batch.finish(done, chunk.answers)
        batch.again(rest)

    def _expire(self, lane: Lane, batch: Batch, seconds: float) -> None:
        span = lane.queue[0].span
        _return_waiting(lane, batch)
        self._workers.replace(lane)
        self._on_note(f"a worker took longer than {seconds:g} s at {_clients(batch, span)} and was replaced")
        if span.num_tasks > 1:
            batch.again_one_by_one(span, span.strikes)
        else:
            batch.finish(span, [batch.tasks[span.start].late(seconds)])

    def _strike(self, batch: Batch, span: Span, error: LostChunkError) -> None:
        """Gives tasks whose worker failed another chance, alone; a second failure is theirs."""
        logger.debug("a chunk failed", exc_info=error)
        if span.strikes + 1 < _MOST_STRIKES:
            batch.again_one_by_one(span, span.strikes + 1)
            return
        reason = f"worker: {error}"
        for index in range(span.start, span.stop):
            batch.finish(Span(index, index + 1), [batch.tasks[index].failed(reason)])


def _return_waiting(lane: Lane, batch: Batch) -> None:
    for chunk in list(lane.queue)[1:]:
        batch.again(chunk.span)


def _clients(batch: Batch, span: Span) -> str:
    """Names clients as records do: by partition id, which is one less than the node's."""
    nodes = [node for task in batch.tasks[span.start : span.stop] for node in task.nodes]
    first, last = min(nodes) - 1, max(nodes) - 1
    return f"client {first}" if len(nodes) == 1 else f"{len(nodes)} of the clients {first} to {last}"


def largest_chunk(message_bytes: int) -> int:
    """Returns how many messages go to a worker at a time, of replies of about this size.

    No more than it answers in one slice. A worker that hands the rest of a chunk back does the next slice of
    it at once, while another works far ahead of the reader; what that one has done fills memory, and Ray's
    store until it is written to disk: half of all messages a second, for those of 1 MB.
    """
    return max(1, min(LARGEST_CHUNK, SLICE_BYTES // max(1, message_bytes)))
