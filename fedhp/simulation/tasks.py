"""What an exchange is made of: messages to single nodes, and cohorts of nodes that are asked one thing."""

import logging
from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from flwr.app import Message, Metadata, RecordDict
from flwr.app.message.message import make_message
from flwr.common.constant import ErrorCode

from fedhp.simulation.answering import (
    Answer,
    CohortApp,
    Lost,
    Value,
    answer,
    cause,
    failure,
    node_config,
    too_late,
)
from fedhp.simulation.loading import load_app, load_cohort_app

logger = logging.getLogger(__name__)


class Apps:
    """What nodes run, found by reference: alone, and where there is one, several together."""

    def __init__(self, one: str, together: str, num_nodes: int) -> None:
        self.one = load_app(one)
        self.together: CohortApp | None = load_cohort_app(together) if together else None
        self.num_nodes = num_nodes


class Job(Protocol):
    """A task as it travels to a worker.

    Attributes:
        payload: Which of the contents that travel along is its own: many tasks share one.
    """

    @property
    def payload(self) -> int:
        """See above."""
        ...

    def copied(self) -> "Job":
        """Returns it without anything that the server goes on using."""
        ...

    def run(self, apps: Apps, seconds: float, content: RecordDict) -> Any:
        """Returns the answer, which says its ``payload_bytes``."""
        ...


class Task(Protocol):
    """One thing to be done, by one worker, whole.

    Attributes:
        nodes: Whose it is.
        content: What they are sent.
    """

    @property
    def nodes(self) -> Sequence[int]:
        """See above."""
        ...

    @property
    def content(self) -> RecordDict:
        """See above."""
        ...

    def job(self, payload: int) -> Job:
        """Returns it as it travels."""
        ...

    def failed(self, reason: str) -> Any:
        """Returns the answer where its worker died."""
        ...

    def late(self, seconds: float) -> Any:
        """Returns the answer where it took too long."""
        ...


class MessageJob(NamedTuple):
    """A message, and what its node's context held after its last answer."""

    payload: int
    metadata: Metadata
    state: RecordDict | None

    def copied(self) -> "MessageJob":
        """Metadata holds nothing that can be changed."""
        return MessageJob(self.payload, copy(self.metadata), deepcopy(self.state))

    def run(self, apps: Apps, seconds: float, content: RecordDict) -> Answer:
        """Has the client answer."""
        message = make_message(metadata=self.metadata, content=content)
        return answer(apps.one, apps.num_nodes, seconds, message, self.state)


@dataclass(frozen=True)
class MessageTask:
    """A message to a node, answered by an `Answer`; ``state`` is as in its job."""

    message: Message
    state: RecordDict | None = None

    @property
    def nodes(self) -> Sequence[int]:
        """Its receiver."""
        return (self.message.metadata.dst_node_id,)

    @property
    def content(self) -> RecordDict:
        """What it holds."""
        return self.message.content

    def job(self, payload: int) -> MessageJob:
        """See `Task`."""
        return MessageJob(payload, self.message.metadata, self.state)

    def failed(self, reason: str) -> Answer:
        """See `Task`."""
        return failure(self.message, ErrorCode.CLIENT_APP_CRASHED, reason)

    def late(self, seconds: float) -> Answer:
        """See `Task`."""
        return failure(self.message, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, too_late(seconds))


class CohortJob(NamedTuple):
    """Nodes that answer together."""

    payload: int
    nodes: tuple[int, ...]

    def copied(self) -> "CohortJob":
        """Nothing in it can be changed."""
        return self

    def run(self, apps: Apps, seconds: float, content: RecordDict) -> Value:
        """Has the clients answer; what their app does not foresee is lost for all of them."""
        assert apps.together is not None
        try:
            return apps.together(content, [node_config(one, apps.num_nodes) for one in self.nodes], seconds)
        except (Exception, SystemExit) as error:
            logger.debug("the clients of nodes %s failed together", self.nodes, exc_info=True)
            return Lost(cause(error))


@dataclass(frozen=True)
class Cohort:
    """Nodes that are sent the same and answer together: by one value of their app's, or a `Lost`."""

    content: RecordDict
    nodes: tuple[int, ...]

    def job(self, payload: int) -> CohortJob:
        """See `Task`."""
        return CohortJob(payload, self.nodes)

    def failed(self, reason: str) -> Lost:
        """See `Task`."""
        return Lost(reason)

    def late(self, seconds: float) -> Lost:
        """See `Task`."""
        return Lost(too_late(seconds))
