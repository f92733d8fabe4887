"""The server's list of devices: asked once, at the start."""

import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import NamedTuple

from flwr.app import Message, MessageType, Metadata
from flwr.serverapp import Grid

from fedhp.bounds import one_line
from fedhp.errors import FedhpError, TrainingError
from fedhp.federation import wire
from fedhp.federation.device import Device
from fedhp.federation.questions import Questions, content_of
from fedhp.fleet.devices import DeviceProfile

_POLL_SECONDS = 0.5

_notes = logging.getLogger("fedhp.notes")


def query_fleet(
    grid: Grid,
    brief: wire.Brief,
    num_clients: int,
    timeout_seconds: float,
    parts: Sequence[int] | None = None,
) -> tuple[list[Device], list[str]]:
    """Asks every node for its profile; whoever does not say a right one is left out.

    Waits until the number of nodes that the scenario names is connected: Flower registers them one by one.

    Args:
        grid: Where the nodes are.
        brief: What they are told of the run.
        num_clients: How many nodes the fleet has.
        timeout_seconds: How long to wait for them, and then for their answers.
        parts: The number of samples in each part of the scenario's data, where they are known.

    Returns:
        The devices by partition id, and of each that is left out a line that names it and says why.

    Raises:
        TrainingError: If too few nodes connect in time, or too many, or none describes itself rightly.
    """
    nodes = _wait_for_nodes(grid, num_clients, timeout_seconds)
    content = wire.pack_query(brief)
    messages = [Message(content, node, MessageType.QUERY, group_id="query") for node in nodes]
    replies = grid.send_and_receive(messages, timeout=timeout_seconds)
    answers = _answers([message.metadata for message in messages], replies)
    heard: list[_Answer] = []
    left_out: list[str] = []
    for node in nodes:
        answer = answers.get(node, _SILENT)
        if isinstance(answer, _Answer):
            heard.append(answer)
        else:
            left_out.append(f"node {node} is left out: {one_line(str(answer))}")
    claims = Counter(answer.client for answer in heard)
    flaws = [_flaw(answer, num_clients, parts, claims) for answer in heard]
    left_out += [f"{answer} is left out: {flaw}" for answer, flaw in zip(heard, flaws, strict=True) if flaw]
    right = [answer for answer, flaw in zip(heard, flaws, strict=True) if not flaw]
    if not right:
        raise TrainingError(f"none of {len(nodes)} devices can take part; the first: {left_out[0]}")
    return _numbered(right), left_out


class _Answer(NamedTuple):
    node: int
    profile: DeviceProfile
    client: int | None

    def __str__(self) -> str:
        """Names the device."""
        return f"node {self.node}" if self.client is None else f"client {self.client} (node {self.node})"


_SILENT = TrainingError("it did not answer the first query; check that its process runs")


def _answers(asked: Sequence[Metadata], replies: Iterable[Message]) -> dict[int, _Answer | FedhpError]:
    """Returns the first answer of each node; what answers nothing that its sender was asked is dropped.

    Each is read as it arrives: the messages of a large fleet take ten times as much memory as what they say.
    """
    questions, answers = Questions(asked), {}
    for reply in replies:
        node = questions.first_from(reply)
        if node is not None:
            answers[node] = _read(reply, node)
    return answers


def wait_for(grid: Grid, nodes: Collection[int], number: int, seconds: float) -> bool:
    """Waits until so many of these nodes are connected, and returns whether they are before time is over."""
    deadline = time.monotonic() + seconds
    told = -1
    while (connected := len(set(nodes).intersection(grid.get_node_ids()))) < number:
        if time.monotonic() > deadline:
            return False
        if connected != told:
            told = connected
            _notes.warning("waiting for devices to come back: %d of %d connected", connected, number)
        time.sleep(_POLL_SECONDS)
    return True


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


def _read(reply: Message, node: int) -> _Answer | FedhpError:
    """Returns what a device says of itself, or why that is no profile."""
    try:
        profile, client = wire.unpack_profile(content_of(reply))
    except FedhpError as error:
        return error
    return _Answer(node, profile, client)


def _flaw(
    answer: _Answer, num_clients: int, parts: Sequence[int] | None, claims: Mapping[int | None, int]
) -> str:
    """Says why a device cannot take part; empty if it can."""
    profile, client = answer.profile, answer.client
    if not profile.num_examples:
        return "it has no training samples; give it some"
    if client is None:
        return ""
    if client >= num_clients:
        return f"the fleet has clients 0 to {num_clients - 1}"
    if claims[client] > 1:
        return "several devices claim this partition-id; give each its own"
    told = profile.num_examples + profile.num_local_test
    if parts is not None and not profile.own_data and told > parts[client]:
        return f"it says that it has {told:,} samples; this part of the scenario's data has {parts[client]:,}"
    return ""


def _numbered(answers: Sequence[_Answer]) -> list[Device]:
    """Gives devices without a partition id the free numbers, in the order of what they say of themselves.

    Node ids are different in every run, and so decide only between devices that are alike in all else.
    """
    free = _free_numbers(answer.client for answer in answers if answer.client is not None)
    devices = [
        Device(node, next(free) if client is None else client, profile)
        for node, profile, client in sorted(answers, key=_likeness)
    ]
    return sorted(devices, key=lambda device: device.client)


def _likeness(answer: _Answer) -> tuple[str, int, int, int]:
    profile = answer.profile
    return profile.device_class, profile.memory_bytes or 0, profile.num_examples, answer.node


def _free_numbers(claimed: Iterable[int]) -> Iterator[int]:
    taken = set(claimed)
    return (number for number in count() if number not in taken)
