"""Replies as they arrive, put into the one order that results may depend on: by partition id."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from flwr.app import Message, Metadata

from fedhp.structure import Structure

from .roster import Device, node_of

_notes = logging.getLogger("fedhp.notes")


@dataclass(frozen=True)
class Sent:
    """What a sampled device was sent in a round."""

    device: Device
    structure: Structure
    num_parameters: int
    num_bytes: int
    message: Metadata


def in_order(sent: Mapping[int, Sent], replies: Iterable[Message]) -> Iterator[tuple[Sent, Message | None]]:
    """Yields each sampled device with its reply, by partition id, as soon as the order allows.

    Only replies that overtook an earlier device's wait in memory. A device without a reply is yielded with
    None at the end of the stream; replies from devices that were not asked, or a second one, are dropped.
    """
    order = sorted(sent, key=lambda node: sent[node].device.client)
    asked = {node: one.message for node, one in sent.items()}
    early: dict[int, Message] = {}
    seen: set[int] = set()
    next_up = 0
    for reply in replies:
        node = node_of(reply, asked)
        if node not in sent:
            _notes.warning("dropped a reply from node %d, which was not asked", node)
            continue
        if node in seen:
            _notes.warning("dropped a second reply from client %d (node %d)", sent[node].device.client, node)
            continue
        seen.add(node)
        early[node] = reply
        while next_up < len(order) and order[next_up] in early:
            yield sent[order[next_up]], early.pop(order[next_up])
            next_up += 1
    for node in order[next_up:]:
        yield sent[node], early.pop(node, None)
