"""One client answers one message: what counts as an answer, and what as which failure."""

import logging
import time
from typing import NamedTuple, Protocol

from flwr.app import Context, Error, Message, Metadata, RecordDict
from flwr.app.message.message import make_message
from flwr.common.constant import ErrorCode

from fedhp.simulation.identity import RUN_ID, acting_as

logger = logging.getLogger(__name__)


class App(Protocol):
    """What a ``flwr.clientapp.ClientApp`` is to the simulation."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answers a message."""
        ...


class Job(NamedTuple):
    """One message for one node; ``state`` is what the node's context held after its last answer.

    ``payload`` says which of the contents that travel along is the message's: many nodes share one.
    """

    payload: int
    metadata: Metadata
    state: RecordDict | None

    def message(self, payloads: "tuple[RecordDict, ...]") -> Message:
        """Returns the message as the client gets it."""
        return make_message(metadata=self.metadata, content=payloads[self.payload])


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
        reason = f"{getattr(error, 'stage', 'client')}: {type(error).__name__}: {error}"
        result = failure(message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
    else:
        result = _checked(message, reply, context.state if context.state or state is not None else None)
    late = time.monotonic() - started > seconds
    return timed_out(message, seconds) if late else result


def _context(node_id: int, num_nodes: int, state: RecordDict | None) -> Context:
    return Context(
        run_id=RUN_ID,
        node_id=node_id,
        node_config={"partition-id": node_id - 1, "num-partitions": num_nodes, "fedhp-simulation": True},
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


def timed_out(message: Message, seconds: float) -> Answer:
    """Returns the error reply of a client that took too long."""
    reason = f"timeout: client took longer than {seconds:g} s"
    return failure(message, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason)
