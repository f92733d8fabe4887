"""What devices are sent: one payload for all that get the same part of the model."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from flwr.app import Message, RecordDict

from fedhp.federation import wire
from fedhp.federation.device import Device
from fedhp.federation.questions import BEYOND_SECONDS
from fedhp.federation.replies import Sent
from fedhp.model.layout import Layout
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure


class Asked(NamedTuple):
    """Messages, and what each node was sent."""

    messages: list[Message]
    sent: Mapping[int, Sent]


class Payload(NamedTuple):
    """What devices are sent that get the same part of a model, and how much of it there is."""

    content: RecordDict
    num_parameters: int
    num_bytes: int
    model: ModelState | None = None  # where it is a device's own


class Payloads:
    """The parts of a model, each packed once.

    Args:
        brief: What every message says of the run.
        layout: The model's wiring.
        model: The model.
        server_round: The round that it belongs to.
        own: Returns a device's model, which is this one unless it has its own.
    """

    def __init__(
        self,
        brief: wire.Brief,
        layout: Layout,
        model: ModelState,
        server_round: int,
        own: Callable[[Device], ModelState] | None = None,
    ) -> None:
        self.server_round = server_round
        self._own = own or (lambda _: model)
        self._brief, self._layout, self._model = brief, layout, model
        self._packed: dict[str, Payload] = {}

    def of(self, structure: Structure) -> Payload:
        """Returns the part of a structure."""
        if structure.digest not in self._packed:
            self._packed[structure.digest] = self._pack(self._model.cut(self._layout, structure))
        return self._packed[structure.digest]

    def to(self, device: Device, structure: Structure) -> Payload:
        """Returns what a device is sent of a structure: its own model, whole, where it has one."""
        own = self._own(device)
        return self.of(structure) if own is self._model else self._pack(own)._replace(model=own)

    def _pack(self, state: ModelState) -> Payload:
        record = wire.pack_state(state)
        size = self._layout.num_parameters(state.structure.counts), wire.record_bytes(record)
        return Payload(wire.pack_task(record, self._brief, self.server_round), *size)


def by_work(layout: Layout, parts: Iterable[tuple[Device, Structure]]) -> list[tuple[Device, Structure]]:
    """Returns a round's devices in its order, by which they are asked, and their updates judged and added.

    Who does most comes first, so that others fill up the rest of the time; those that are sent the same stand
    together, so that they can train together.
    """
    sizes: dict[str, int] = {}

    def place(part: tuple[Device, Structure]) -> tuple[int, str, int, int]:
        device, structure = part
        if structure.digest not in sizes:
            sizes[structure.digest] = layout.num_parameters(structure.counts)
        return -sizes[structure.digest], structure.digest, -device.profile.num_examples, device.client

    return sorted(parts, key=place)


def ask(kind: str, payloads: Payloads, parts: Iterable[tuple[Device, Structure]], seconds: float) -> Asked:
    """Returns a message to each device with its part of a model.

    Flower cancels nothing, but hands out no message whose time is over: a device that is late does not find
    the questions of rounds that are over meanwhile.

    Args:
        kind: Flower's type of message.
        payloads: The parts.
        parts: The devices, and the structure that each is sent.
        seconds: How long answers are waited for.
    """
    ttl = seconds + BEYOND_SECONDS
    messages, sent = list[Message](), dict[int, Sent]()
    for device, structure in parts:
        payload = payloads.to(device, structure)
        message = Message(payload.content, device.node_id, kind, ttl=ttl, group_id=str(payloads.server_round))
        messages.append(message)
        sent[device.node_id] = Sent(
            device, structure, payload.num_parameters, payload.num_bytes, message.metadata, payload.model
        )
    return Asked(messages, sent)
