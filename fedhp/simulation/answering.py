"""Clients answer, one alone or several together: what counts as an answer, and what as which failure."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from fedhp.simulation.identity import RUN_ID, acting_as

logger = logging.getLogger(__name__)


class App(Protocol):
    """What a ``flwr.clientapp.ClientApp`` is to the simulation."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answers a message."""
        ...


class Value(Protocol):
    """What several clients come to together, as their app has it."""

    @property
    def payload_bytes(self) -> int:
        """Bytes of the arrays inside."""
        ...


class CohortApp(Protocol):
    """Answers for several clients that are sent the same; opaque to the simulation, as what it returns is."""

    def __call__(self, content: RecordDict, nodes: Sequence[Mapping[str, Any]], seconds: float) -> Value:
        """Answers.

        Args:
            content: What each of the clients is sent.
            nodes: Their node configurations.
            seconds: How long one of them may take; whoever takes longer has failed.
        """
        ...


class Lost(NamedTuple):
    """What stands for an answer that there is none: ``"stage: cause"``."""

    reason: str

    @property
    def payload_bytes(self) -> int:
        """None."""
        return 0


class Answer(NamedTuple):
    """A reply, and the node's new context state (None: unchanged)."""

    reply: Message
    state: RecordDict | None = None

    @property
    def payload_bytes(self) -> int:
        """Bytes of the arrays inside."""
        records = [self.state] if self.state is not None else []
        if self.reply.has_content():
            records.append(self.reply.content)
        return sum(
            len(array.data)
            for record in records
            for arrays in record.array_records.values()
            for array in arrays.values()
        )


def answer(app: App, num_nodes: int, seconds: float, message: Message, state: RecordDict | None) -> Answer:
    """Runs the app on a message; whatever goes wrong inside becomes an error reply.

    A client that took longer than ``seconds`` has failed too, even where nobody cuts it off. A
    failed client leaves its node's state as it was.
    """
    started, node_id = time.monotonic(), message.metadata.dst_node_id
    context = _context(node_id, num_nodes, state)
    try:
        with acting_as(node_id):
            reply = app(message, context)
    except (Exception, SystemExit) as error:
        logger.debug("the client of node %d failed", node_id, exc_info=True)
        result = failure(message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, cause(error))
    else:
        result = _checked(message, reply, context.state if context.state or state is not None else None)
    late = time.monotonic() - started > seconds
    return failure(message, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, too_late(seconds)) if late else result


def node_config(node_id: int, num_nodes: int) -> dict[str, Any]:
    """Returns what a simulated node knows of itself."""
    return {"partition-id": node_id - 1, "num-partitions": num_nodes, "fedhp-simulation": True}


def cause(error: BaseException) -> str:
    """Says what a client raised, after the stage that it names."""
    return f"{getattr(error, 'stage', 'client')}: {type(error).__name__}: {error}"


def too_late(seconds: float) -> str:
    """Says that a client took longer than it may."""
    return f"timeout: client took longer than {seconds:g} s"


def _context(node_id: int, num_nodes: int, state: RecordDict | None) -> Context:
    return Context(
        run_id=RUN_ID,
        node_id=node_id,
        node_config=node_config(node_id, num_nodes),
        state=RecordDict() if state is None else state,
        run_config={},
    )


def _checked(message: Message, reply: object, state: RecordDict | None) -> Answer:
    """Returns what a client returned, or, where that is no reply to the message, the failure."""
    if not isinstance(reply, Message):
        flaw = f"client returned a {type(reply).__name__}, not a flwr.app.Message"
    elif reply.metadata.reply_to_message_id != message.metadata.message_id:
        flaw = "client returned a message that does not reply to the one it got (use reply_to=)"
    else:
        return Answer(reply, state)
    return failure(message, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, f"reply: {flaw}")


def failure(message: Message, code: int, reason: str) -> Answer:
    """Returns an error reply."""
    return Answer(Message(Error(code=code, reason=reason), reply_to=message))
