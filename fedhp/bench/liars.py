"""Clients that lie, on their side of the wire: for benchmarks and tests, and of no scenario's making."""

from collections.abc import Collection, Iterable, Iterator

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedhp.federation import wire
from fedhp.federation.arrays import write_array
from fedhp.federation.folding import GridAround
from fedhp.model.layout import Layout
from fedhp.model.running import MEAN, SQUARE

_MODEL = "model"


class LyingGrid(GridAround):
    """A grid whose liars send back what they were sent and many times what they have made of it.

    They lie about running statistics too, where they train and where they are asked for those of a new model,
    and so that no check of single values could tell.

    Args:
        grid: The grid, whose clients are honest.
        layout: The model's wiring.
        liars: The nodes that lie.
        factor: What their changes are multiplied by.
    """

    def __init__(self, grid: Grid, layout: Layout, liars: Collection[int], factor: float) -> None:
        super().__init__(grid)
        self._layout, self._liars = layout, liars
        self._factor = np.float32(factor)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Returns what the grid's does; of liars, what they made of it."""
        sent = list(messages)
        models = {one.metadata.dst_node_id: one.content for one in sent if _MODEL in one.content}

        def told(reply: Message) -> Message:
            node = reply.metadata.src_node_id
            if node in self._liars and node in models and reply.has_content():
                reply.content[_MODEL] = self._lie(models[node], reply.content.array_records[_MODEL])
            return reply

        return map(told, self._grid.send_and_receive(sent, timeout=timeout))

    def _lie(self, task: RecordDict, made: ArrayRecord) -> ArrayRecord:
        layout, (_, sent) = self._layout, wire.unpack_task(task, self._layout)
        is_update = all(name in made for name in layout.shapes)
        held = wire.unpack_state(made, layout).structure if is_update else sent.structure
        before, told = layout.slice(sent.weights, sent.structure, held), dict[str, NDArray[np.float32]]()
        for name in (name for name in before if name in made):
            told[name] = before[name] + self._factor * (_read(made, name) - before[name])
        for name in layout.buffers & told.keys():
            if name.endswith(SQUARE):  # no samples have a smaller one
                told[name] = np.maximum(told[name], told[name.removesuffix(SQUARE) + MEAN] ** 2)
        return ArrayRecord({**made, **{name: write_array(values) for name, values in told.items()}})


def _read(record: ArrayRecord, name: str) -> NDArray[np.float32]:
    return record[name].numpy().astype(np.float32)
