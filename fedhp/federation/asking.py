"""What devices are sent: one payload for all that get the same part of the model."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from flwr.app import Message

from fedhp.federation import wire
from fedhp.federation.device import Device
from fedhp.federation.replies import Sent
from fedhp.model.layout import Layout
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure


class Asked(NamedTuple):
    """Messages, and what each node was sent."""

    messages: list[Message]
    sent: Mapping[int, Sent]


def ask(
    kind: str,
    brief: wire.Brief,
    layout: Layout,
    model: ModelState,
    server_round: int,
    parts: Iterable[tuple[Device, Structure]],
) -> Asked:
    """Returns a message to each device with its part of a model.

    Args:
        kind: Flower's type of message.
        brief: What every message says of the run.
        layout: The model's wiring.
        model: The model.
        server_round: The round that it belongs to.
        parts: The devices, and the structure that each is sent.
    """
    payloads: dict[str, tuple[wire.RecordDict, int, int]] = {}
    messages, sent = list[Message](), dict[int, Sent]()
    for device, structure in parts:
        if structure.digest not in payloads:
            record = wire.pack_state(model.cut(layout, structure))
            size = layout.num_parameters(structure.counts), wire.record_bytes(record)
            payloads[structure.digest] = wire.pack_task(record, brief, server_round), *size
        content, num_parameters, num_bytes = payloads[structure.digest]
        message = Message(content, device.node_id, kind, group_id=str(server_round))
        messages.append(message)
        sent[device.node_id] = Sent(device, structure, num_parameters, num_bytes, message.metadata)
    return Asked(messages, sent)
