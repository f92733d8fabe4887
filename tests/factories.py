"""Small values that several tests build on: layouts, structures, states, updates, replies, a grid."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from fedhp.bench.forged import altered as altered
from fedhp.federation import wire
from fedhp.federation.device import Device
from fedhp.federation.roster import Places, find_fleet
from fedhp.federation.wire import Brief
from fedhp.model.axes import AxisRef
from fedhp.model.layout import Layout
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.simulation.identity import acting_as
from fedhp.training.statistics import Statistics
from fedhp.training.update import Update


def dense_layout(width: int = 3, floor: int = 1) -> Layout:
    """One input, one hidden group ``a`` and one output: small enough to compute with by hand."""
    a = AxisRef("a")
    return Layout(
        widths={"a": width},
        shapes={"in.weight": (width, 1), "in.bias": (width,), "out.weight": (1, width)},
        axes={"in.weight": (a, None), "in.bias": (a,), "out.weight": (None, a)},
        floors={"a": floor},
    )


def conv_layout(floor: int = 1) -> Layout:
    """A convolution of 3 channels, flattened from 2x2 maps into 5 dense units, and 2 classes."""
    c, f = AxisRef("c"), AxisRef("f")
    return Layout(
        widths={"c": 3, "f": 5},
        shapes={"c.weight": (3, 2, 3, 3), "c.bias": (3,), "f.weight": (5, 12), "head.weight": (2, 5)},
        axes={
            "c.weight": (c, None, None, None),
            "c.bias": (c,),
            "f.weight": (f, AxisRef("c", 4)),
            "head.weight": (None, f),
        },
        floors={"c": floor, "f": floor},
    )


def two_convs_layout() -> Layout:
    """Two convolutions in a row: a 4-D parameter that two groups index."""
    c, d = AxisRef("c"), AxisRef("d")
    return Layout(
        widths={"c": 3, "d": 4},
        shapes={"c.weight": (3, 1, 2, 2), "d.weight": (4, 3, 2, 2), "d.bias": (4,)},
        axes={"c.weight": (c, None, None, None), "d.weight": (d, c, None, None), "d.bias": (d,)},
        floors={"c": 1, "d": 1},
    )


def structure(layout: Layout, **kept: Sequence[int]) -> Structure:
    """Keeps the named units; a group that is not named stays whole."""
    masks = {}
    for group, width in layout.widths.items():
        masks[group] = np.isin(np.arange(width), list(kept.get(group, range(width))))
    return Structure(masks)


def random_state(layout: Layout, kept: Structure, seed: int = 0) -> ModelState:
    """Standard normal weights of the compact shapes."""
    stream = np.random.default_rng(seed)
    weights = {
        name: stream.standard_normal(layout.shape(name, kept.counts)).astype(np.float32)
        for name in layout.shapes
    }
    return ModelState(weights, kept)


def filled_state(layout: Layout, kept: Structure, **weights: Sequence[float]) -> ModelState:
    """Takes each parameter's values flat, by its name with ``_`` for the dot."""
    return ModelState(
        {
            name: np.array(weights[name.replace(".", "_")], np.float32).reshape(
                layout.shape(name, kept.counts)
            )
            for name in layout.shapes
        },
        kept,
    )


STATISTICS = Statistics(
    train_loss=0.5,
    accuracy=0.25,
    gradient_norm=1.5,
    memory_predicted_bytes=1000,
    memory_measured_bytes=900,
    memory_mean_bytes=800,
    batch_size_first=8,
    batch_size_last=16,
    seconds=0.125,
)


def update(
    state: ModelState, assigned: Structure | None = None, num_examples: int = 10, client: int = 0
) -> Update:
    """An update whose assignment is, unless given, what it still holds."""
    return Update(client, assigned or state.structure, state, num_examples, STATISTICS)


def reply(message: Message, content: Update | RecordDict | str) -> Message:
    """A node's reply: an update, any records, or (a text) an error with that reason."""
    with acting_as(message.metadata.dst_node_id):
        if isinstance(content, str):
            return Message(Error(code=1, reason=content), reply_to=message)
        records = wire.pack_update(content) if isinstance(content, Update) else content
        return Message(records, reply_to=message)


def trained(layout: Layout, message: Message, num_examples: int, num_cut: int = 0) -> Update:
    """What a client might make of a task: other weights, and the last ``num_cut`` units of a group gone.

    A function of the message and the node alone, whoever asks and whenever.
    """
    node = message.metadata.dst_node_id
    _, state = wire.unpack_task(message.content, layout)
    stream = np.random.default_rng(node)
    moved = {
        name: (w + 0.1 * stream.standard_normal(w.shape)).astype(np.float32)
        for name, w in state.weights.items()
    }
    kept = state.structure
    for group, floor in layout.floors.items():
        spare = min(num_cut, kept.counts[group] - floor)
        kept = kept.without(group, stream.permutation(kept.kept(group))[:spare])
    cut = ModelState(moved, state.structure).cut(layout, kept)
    return update(cut, state.structure, num_examples)


def stamped(messages: Iterable[Message]) -> list[Message]:
    """Messages with ids of their own, as a grid gives them when it sends."""
    messages = list(messages)
    for message in messages:
        node, group = message.metadata.dst_node_id, message.metadata.group_id
        message.metadata.__dict__["_message_id"] = f"{group}:{node}"  # as Flower's own grids write it
    return messages


class MemoryGrid(Grid):
    """A grid without processes: a function answers each message.

    Args:
        answer: Returns a message's reply, or None where none will come.
        nodes: What each successive `get_node_ids` returns; the last is returned from then on.
    """

    def __init__(
        self, answer: Callable[[Message], Message | None], nodes: Sequence[Sequence[int]] = ((),)
    ) -> None:
        self._answer = answer
        self._nodes = list(nodes)

    def get_node_ids(self) -> Iterable[int]:
        return self._nodes.pop(0) if len(self._nodes) > 1 else self._nodes[0]

    def send_and_receive(self, messages, *, timeout=None):
        return [answer for message in stamped(messages) if (answer := self._answer(message)) is not None]

    def set_run(self, run) -> None:
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, *args, **kwargs):
        raise NotImplementedError

    def push_messages(self, messages):
        raise NotImplementedError

    def pull_messages(self, message_ids):
        raise NotImplementedError


def same_bits(one: ModelState, other: ModelState) -> bool:
    """Says whether two states are equal to the last bit."""
    return one.structure == other.structure and all(
        one.weights[name].tobytes() == other.weights[name].tobytes() for name in one.weights
    )


def num_parameters(layout: Layout, counts: Mapping[str, int]) -> int:
    """Counts parameters from the shapes alone, independently of `Layout.num_parameters`."""
    return sum(
        math.prod(
            size if not runs else sum(counts[run.group] * run.span for run in runs)
            for size, runs in zip(shape, layout.axes[name], strict=True)
        )
        for name, shape in layout.shapes.items()
    )


def query_fleet(
    grid: Grid, brief: Brief, num_clients: int, timeout: float, parts: Sequence[int] | None = None
) -> tuple[list[Device], list[str]]:
    """Finds a fleet of so many nodes."""
    found = find_fleet(grid, brief, Places(num_clients, parts), timeout)
    return found.devices, found.left_out


# Three units between two layers, and a model in which every weight tells its place.
LAYOUT = dense_layout(3)
GLOBAL = filled_state(
    LAYOUT, LAYOUT.full(), in_weight=[10, 20, 30], in_bias=[1, 2, 3], out_weight=[100, 200, 300]
)
