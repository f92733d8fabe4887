"""Who has not said yet who it is, told while a run waits to begin."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping

from flwr.app import Message, MessageType

from fedhp.federation.folding import GridAround

_POLL_SECONDS = 1.0
_QUIET_SECONDS = 10.0  # most devices answer sooner
_MOST_NAMED = 10

_notes = logging.getLogger("fedhp.notes")


class FirstAnswers(GridAround):
    """A grid that says for whose answers to the first question it waits, where that takes a while."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Returns what the grid's does, of a first question each reply as it comes."""
        sent = list(messages)
        if timeout is None or any(one.metadata.message_type != MessageType.QUERY for one in sent):
            return self._grid.send_and_receive(sent, timeout=timeout)
        ids = self._grid.push_messages(sent)
        nodes = [message.metadata.dst_node_id for message in sent]
        return self._replies({key: node for key, node in zip(ids, nodes, strict=False) if key}, timeout)

    def _replies(self, awaited: Mapping[str, int], timeout: float) -> Iterator[Message]:
        missing, begun, told = dict(awaited), time.monotonic(), 0
        while missing and (waited := time.monotonic() - begun) < timeout:
            for reply in self._grid.pull_messages(list(missing)):
                missing.pop(reply.metadata.reply_to_message_id, None)
                yield reply
            if missing and waited >= _QUIET_SECONDS and told != len(missing):
                told = len(missing)
                _tell(list(missing.values()), len(awaited), timeout)
            if missing:
                time.sleep(_POLL_SECONDS)


def _tell(missing: list[int], asked: int, timeout: float) -> None:
    named = ", ".join(map(str, sorted(missing)[:_MOST_NAMED]))
    more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
    _notes.warning(
        "waiting for the first answers of %d of %d devices, for %g s at most (server.timeout_seconds): "
        "node %s%s; check what their processes say",
        *(len(missing), asked, timeout, named, more),
    )
