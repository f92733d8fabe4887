"""The server's list of devices: asked once, at the start."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message, MessageType, Metadata
from flwr.serverapp import Grid

from fedhp import wire
from fedhp.devices import DeviceProfile
from fedhp.errors import DataError, TrainingError, WireError

_POLL_SECONDS = 0.5

_notes = logging.getLogger("fedhp.notes")


@dataclass(frozen=True)
class Device:
    """A device as the server knows it.

    Attributes:
        node_id: Flower's name for it, different in every run.
        client: Its partition id, which names it in records and fixes its place in every order.
        profile: What it said of itself.
    """

    node_id: int
    client: int
    profile: DeviceProfile


def query_fleet(grid: Grid, brief: wire.Brief, num_clients: int, timeout_seconds: float) -> list[Device]:
    """Asks every node for its profile and returns the devices by partition id.

    Waits until the number of nodes that the scenario names is connected: Flower registers them one by one.

    Raises:
        TrainingError: If too few nodes connect in time, or too many, or a device does not answer.
        DataError: If a device has no data.
        WireError: If an answer is not as it must be, or two devices claim the same partition.
    """
    nodes = _wait_for_nodes(grid, num_clients, timeout_seconds)
    content = wire.pack_query(brief)
    messages = [Message(content, node, MessageType.QUERY, group_id="query") for node in nodes]
    asked = {message.metadata.dst_node_id: message.metadata for message in messages}
    replies = grid.send_and_receive(messages, timeout=timeout_seconds)
    answers = [_read(reply, node_of(reply, asked)) for reply in replies]
    if len(answers) < num_clients:
        raise TrainingError(
            f"{num_clients - len(answers)} of {num_clients} devices did not answer the first query "
            f"within {timeout_seconds:g} s; check that their processes run"
        )
    return _numbered(answers)


def node_of(reply: Message, asked: Mapping[int, Metadata]) -> int:
    """Returns the node that a reply belongs to, given by node what was asked.

    For a node that is gone, the SuperLink answers in its own name: only what it answers to tells for whom.
    """
    node, question = reply.metadata.src_node_id, reply.metadata.reply_to_message_id
    if node in asked or not question:
        return node
    return next((other for other, sent in asked.items() if sent.message_id == question), node)


def _wait_for_nodes(grid: Grid, num_clients: int, timeout_seconds: float) -> list[int]:
    deadline = time.monotonic() + timeout_seconds
    told = -1
    while len(nodes := list(grid.get_node_ids())) < num_clients:
        if time.monotonic() > deadline:
            raise TrainingError(
                f"{len(nodes)} of {num_clients} devices connected within {timeout_seconds:g} s; start the "
                f"missing ones or lower fleet.num_clients"
            )
        if len(nodes) != told:
            told = len(nodes)
            _notes.info("waiting for devices: %d of %d connected", told, num_clients)
        time.sleep(_POLL_SECONDS)
    if len(nodes) > num_clients:
        raise TrainingError(
            f"{len(nodes)} devices are connected, and fleet.num_clients is {num_clients}: set "
            f"fleet.num_clients={len(nodes)}, or stop the others, which count for about a minute more; in "
            f"Flower's simulation, set num-supernodes={num_clients}"
        )
    return sorted(nodes)


def _read(reply: Message, node: int) -> tuple[int, DeviceProfile, int | None]:
    if reply.has_error():
        raise TrainingError(f"node {node} failed to describe itself: {reply.error.reason}")
    try:
        profile, client = wire.unpack_profile(reply.content)
    except WireError as error:
        raise WireError(f"node {node}: {error}") from None
    if not profile.num_examples:
        name = f"node {node}" if client is None else f"client {client} (node {node})"
        raise DataError(f"{name} has no training samples; give it some, or leave it out of the fleet")
    return node, profile, client


def _numbered(answers: Sequence[tuple[int, DeviceProfile, int | None]]) -> list[Device]:
    """Gives devices without a partition id the free numbers, in the order of what they say of themselves.

    Node ids are different in every run, and so decide only between devices that are alike in all else.
    """
    claimed = [client for _, _, client in answers if client is not None]
    twice = sorted(client for client, count in Counter(claimed).items() if count > 1)
    if twice:
        raise WireError(f"several devices claim the same partition-id: {twice}")
    free = _free_numbers(claimed)
    devices = [
        Device(node, next(free) if client is None else client, profile)
        for node, profile, client in sorted(answers, key=_likeness)
    ]
    return sorted(devices, key=lambda device: device.client)


def _likeness(answer: tuple[int, DeviceProfile, int | None]) -> tuple[str, int, int, int]:
    node, profile, _ = answer
    return profile.device_class, profile.memory_bytes or 0, profile.num_examples, node


def _free_numbers(claimed: Iterable[int]) -> Iterator[int]:
    taken = set(claimed)
    number = 0
    while True:
        if number not in taken:
            yield number
        number += 1
