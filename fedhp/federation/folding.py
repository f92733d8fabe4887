"""Arrays on their way through Flower, folded into one value.

Flower sends every array as two objects, each by a request of its own, signed and of a kilobyte: those of a
small model's would be many times what its weights take.
"""

from collections.abc import Iterable
from itertools import accumulate, pairwise
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedhp.federation.arrays import NUMPY

_FOLDED = "folded"
_MOST_BYTES = (
    5 * 2**20
)  # of one of Flower's own objects: what is larger goes in several, and arrives more surely


def fold(content: RecordDict) -> RecordDict:
    """Returns records with the arrays of each in one value, unless they are large."""
    return RecordDict({key: _folded(record) for key, record in content.items()})


def unfold(content: RecordDict) -> RecordDict:
    """Returns what `fold` was given; what `fold` did not make, as it is, which later checks refuse."""
    return RecordDict({key: _unfolded(record) for key, record in content.items()})


def is_folded(content: RecordDict) -> bool:
    """Says whether there is anything to unfold."""
    return any(_FOLDED in record for record in content.config_records.values())


def _folded(record: Any) -> Any:
    if not isinstance(record, ArrayRecord) or sum(len(one.data) for one in record.values()) > _MOST_BYTES:
        return record
    sizes = [len(one.data) for one in record.values()]
    data = b"".join(one.data for one in record.values())
    return ConfigRecord({"names": list(record), "sizes": sizes, _FOLDED: data})


def _unfolded(record: Any) -> Any:
    if not isinstance(record, ConfigRecord) or _FOLDED not in record:
        return record
    told: list[Any] = [record.get(key) for key in ("names", "sizes", _FOLDED)]
    names, sizes, data = told
    if not (isinstance(names, list) and isinstance(sizes, list) and isinstance(data, bytes)):
        return record
    named = all(isinstance(name, str) for name in names) and len({*names}) == len(names) == len(sizes)
    if not named or any(type(size) is not int or size < 0 for size in sizes) or sum(sizes) != len(data):
        return record
    parts = pairwise(accumulate(sizes, initial=0))
    # Type and shape are those of the header within, by which arrays are read.
    arrays = {name: Array("", (), NUMPY, data[a:b]) for name, (a, b) in zip(names, parts, strict=True)}
    return ArrayRecord(arrays)


class GridAround(Grid):
    """A grid that passes on to another.

    Args:
        grid: The other.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def set_run(self, run: Run) -> None:
        """See the grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """See the grid."""
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """See the grid."""
        return self._grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        """See the grid."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Any:
        """See the grid."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See the grid."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See the grid."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See the grid."""
        return self._grid.send_and_receive(messages, timeout=timeout)


class FoldingGrid(GridAround):
    """A grid over which arrays go folded; devices fold theirs where they were sent such."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Returns what the grid's does, unfolded as it comes."""
        sent, folded = list(messages), dict[int, RecordDict]()
        contents = [message.content for message in sent]  # of which many messages share one
        for message, content in zip(sent, contents, strict=True):
            if id(content) not in folded:
                folded[id(content)] = fold(content)
            message.content = folded[id(content)]
        return map(_opened, self._grid.send_and_receive(sent, timeout=timeout))


def _opened(reply: Message) -> Message:
    if reply.has_content():
        reply.content = unfold(reply.content)
    return reply
