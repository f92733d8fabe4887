"""A Flower ``Grid`` over simulated nodes; who runs the clients is the executor's business."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any, Protocol

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedhp.simulation.answering import Answer, failure
from fedhp.simulation.identity import RUN_ID
from fedhp.simulation.tasks import Cohort, MessageTask, Task


class Executor(Protocol):
    """Runs clients, here or elsewhere."""

    def run(self, tasks: Sequence[Task], seconds: float) -> Iterator[Any]:
        """Yields one answer per task, in the order of the tasks.

        Args:
            tasks: At most one per node.
            seconds: How long one client may take.
        """
        ...


class SimulatedGrid(Grid):
    """Nodes 1 to ``num_nodes``; node ``i`` holds partition ``i - 1``.

    Replies come in the order of the messages, whoever is faster, so that a run depends neither on
    the number of workers nor on the machine. One stream of replies at a time.

    Attributes:
        takes_cohorts: Whether several nodes can be asked together: whether there is an app for them.
    """

    def __init__(
        self, executor: Executor, num_nodes: int, timeout_seconds: float, takes_cohorts: bool = False
    ) -> None:
        self.takes_cohorts = takes_cohorts
        self._executor = executor
        self._num_nodes = num_nodes
        self._timeout_seconds = timeout_seconds
        self._run = Run.create_empty(RUN_ID)
        self._states: dict[int, RecordDict] = {}
        self._pushed: dict[str, Message] = {}
        self._message_ids = map(str, count(1))

    def set_run(self, run: Run) -> None:
        """Sets what `run` returns; the simulation itself has only one run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run's description."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Returns a message from the server."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Returns all node ids, in order: simulated nodes are always there."""
        return list(range(1, self._num_nodes + 1))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Takes messages in; they run when their replies are pulled."""
        stamped = self._stamp(messages)
        self._pushed.update((message.metadata.message_id, message) for message in stamped)
        return [message.metadata.message_id for message in stamped]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Runs the pushed messages of these ids and returns their replies; ignores other ids."""
        known = [key for key in dict.fromkeys(message_ids) if key in self._pushed]
        wanted = [self._pushed.pop(key) for key in known]
        return list(self._stream(wanted, self._timeout_seconds))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Returns a stream of replies, in the order of the messages, read as they become ready.

        Args:
            messages: Messages to nodes of this grid; the clients run while the replies are read.
            timeout: Seconds that ONE client may take, if less than the grid's own limit. A limit on
                the whole exchange would let the outcome depend on the number of workers.
        """
        return self._stream(self._stamp(messages), self._seconds(timeout))

    def ask_together(self, cohorts: Sequence[Cohort], timeout: float | None = None) -> Iterator[Any]:
        """Returns a stream of answers, in the order of the cohorts: values of their app, or `Lost`.

        A cohort is never divided: one worker answers for all of it. Nodes asked so keep no state.

        Args:
            cohorts: Nodes of this grid, each in one cohort at most.
            timeout: As of `send_and_receive`.
        """
        return self._executor.run(cohorts, self._seconds(timeout))

    def _seconds(self, timeout: float | None) -> float:
        return min(self._timeout_seconds, timeout or self._timeout_seconds)

    def _stamp(self, messages: Iterable[Message]) -> list[Message]:
        stamped = list(messages)
        for message in stamped:
            _set_id(message, next(self._message_ids))
        return stamped

    def _stream(self, messages: Sequence[Message], seconds: float) -> Iterator[Message]:
        for wave in _waves(messages):
            yield from map(self._take, wave, self._answers(wave, seconds))

    def _answers(self, wave: Sequence[Message], seconds: float) -> Iterator[Answer]:
        known = [message for message in wave if self._has_node_of(message)]
        tasks = [MessageTask(one, self._states.get(one.metadata.dst_node_id)) for one in known]
        answers = self._executor.run(tasks, seconds)
        if len(known) == len(wave):
            return answers
        return (next(answers) if self._has_node_of(message) else self._nobody(message) for message in wave)

    def _has_node_of(self, message: Message) -> bool:
        return 1 <= message.metadata.dst_node_id <= self._num_nodes

    def _nobody(self, message: Message) -> Answer:
        node_id = message.metadata.dst_node_id
        reason = f"node: no node {node_id}, this simulation has 1 to {self._num_nodes}"
        return failure(message, ErrorCode.NODE_UNAVAILABLE, reason)

    def _take(self, message: Message, answer: Answer) -> Message:
        if answer.state is not None:
            self._states[message.metadata.dst_node_id] = answer.state
            if not answer.state:
                del self._states[message.metadata.dst_node_id]
        _set_id(answer.reply, f"{message.metadata.message_id}.reply")
        return answer.reply


def _set_id(message: Message, message_id: str) -> None:
    # Message ids have no setter: Flower's own grids write them this way too.
    message.metadata.__dict__["_message_id"] = message_id


def _waves(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Splits the messages so that a node's second one starts from the state its first one left."""
    start, seen = 0, set[int]()
    for index, message in enumerate(messages):
        if message.metadata.dst_node_id in seen:
            yield messages[start:index]
            start, seen = index, set()
        seen.add(message.metadata.dst_node_id)
    yield messages[start:]
