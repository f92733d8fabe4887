"""Clients in the server's own process: no Ray, no interruption, good for debugging."""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy, deepcopy
from functools import partial
from itertools import starmap

from flwr.app import Message, RecordDict
from flwr.app.message.message import make_message

from fedhp.simulation.answering import Answer, App, answer


class LocalExecutor:
    """Runs one client after the other, here.

    A client that takes too long cannot be interrupted; it fails after the fact.
    """

    def __init__(self, app: App, num_nodes: int) -> None:
        self._app = app
        self._num_nodes = num_nodes

    def run(
        self, messages: Sequence[Message], states: Mapping[int, RecordDict], seconds: float
    ) -> Iterator[Answer]:
        """See `fedhp.simulation.grid.Executor`."""
        return starmap(partial(answer, self._app, self._num_nodes, seconds), _copies(messages, states))


def _copies(
    messages: Sequence[Message], states: Mapping[int, RecordDict]
) -> Iterator[tuple[Message, RecordDict | None]]:
    """Yields each message and its node's state as a worker would get them.

    A client must not reach into the server's values. Arrays hold immutable bytes, which deepcopy shares; all
    that metadata holds is immutable.
    """
    payloads: dict[int, RecordDict] = {}
    for message in messages:
        content = message.content
        if id(content) not in payloads:
            payloads[id(content)] = deepcopy(content)
        asked = make_message(copy(message.metadata), payloads[id(content)])
        yield asked, deepcopy(states.get(message.metadata.dst_node_id))
