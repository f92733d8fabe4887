"""Who takes part: the devices that a run begins with, and what each says of itself."""

import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flwr.app import Message, MessageType, Metadata
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from fedhp.bounds import one_line
from fedhp.errors import FedhpError, TrainingError
from fedhp.federation import wire
from fedhp.federation.device import Device
from fedhp.federation.numbers import Answer, Numbers
from fedhp.federation.questions import BEYOND_SECONDS, Questions, content_of
from fedhp.records.wording import left_out

_POLL_SECONDS = 0.5

_notes = logging.getLogger("fedhp.notes")


class Found(NamedTuple):
    """What a run begins with.

    Attributes:
        devices: Those that take part, by number.
        left_out: Of each that does not, a line that names it and says why.
        nodes: All that were asked, as they were then; whoever came later is not among them.
    """

    devices: list[Device]
    left_out: list[str]
    nodes: dict[int, NodeInfo]


def find_fleet(
    grid: Grid, brief: wire.Brief, places: "Places", timeout_seconds: float, numbers: Numbers | None = None
) -> Found:
    """Asks every node for its profile; whoever does not say a right one is left out.

    Waits until as many nodes as a run begins with are connected: Flower registers them one by one.

    Args:
        grid: Where the nodes are.
        brief: What they are told of the run.
        places: Who can take part.
        timeout_seconds: How long to wait for them, and then for their answers.
        numbers: Gives them their numbers, those that they had before if any.

    Raises:
        TrainingError: If too few nodes connect in time, or too many, or none describes itself rightly.
    """
    there = _wait_for_nodes(grid, places, timeout_seconds)
    nodes = sorted(there)
    content, ttl = wire.pack_query(brief), timeout_seconds + BEYOND_SECONDS
    messages = [Message(content, node, MessageType.QUERY, ttl=ttl, group_id="query") for node in nodes]
    replies = grid.send_and_receive(messages, timeout=timeout_seconds)
    answers = _answers([message.metadata for message in messages], replies)
    heard: list[Answer] = []
    others: list[str] = []
    for node in nodes:
        answer = answers.get(node, _SILENT)
        if isinstance(answer, Answer):
            heard.append(answer)
        else:
            others.append(left_out(f"node {node}", one_line(str(answer))))
    claims = Counter(answer.client for answer in heard)
    flaws = [places.flaw(answer) or _double(answer, claims) for answer in heard]
    others += [left_out(answer, flaw) for answer, flaw in zip(heard, flaws, strict=True) if flaw]
    right = [answer for answer, flaw in zip(heard, flaws, strict=True) if not flaw]
    if not right:
        raise TrainingError(f"none of {len(nodes)} devices can take part; the first: {others[0]}")
    return Found((numbers or Numbers()).give_all(right), others, there)


_SILENT = TrainingError("it did not answer the first query; check that its process runs")


@dataclass(frozen=True)
class Places:
    """Who can take part.

    Attributes:
        num_clients: Parts of the scenario's data.
        parts: The number of samples in each, where they are known.
        min_devices: With how many a run begins, of any number; 0 for as many as there are parts, and no more.
    """

    num_clients: int
    parts: Sequence[int] | None = None
    min_devices: int = 0

    @property
    def wanted(self) -> int:
        """The devices that a run begins with at least."""
        return self.min_devices or self.num_clients

    @property
    def most(self) -> int | None:
        """The devices that can take part at a time; None for any number."""
        return None if self.min_devices else self.num_clients

    def flaw(self, answer: Answer) -> str:
        """Says why a device cannot take part, whoever else does; empty if it can."""
        profile, client = answer.profile, answer.client
        if not profile.num_examples:
            return "it has no training samples; give it some"
        if client is None:
            alone = "it has neither data of its own nor a part of the scenario's; give it a partition-id"
            return "" if profile.own_data else alone
        if client >= self.num_clients:
            return f"the fleet has clients 0 to {self.num_clients - 1}"
        told, parts = profile.num_examples + profile.num_local_test, self.parts
        if parts is not None and not profile.own_data and told > parts[client]:
            there = f"this part of the scenario's data has {parts[client]:,}"
            return f"it says that it has {told:,} samples; {there}"
        return ""


def _double(answer: Answer, claims: Mapping[int | None, int]) -> str:
    several = answer.client is not None and claims[answer.client] > 1
    return "several devices claim this partition-id; give each its own" if several else ""


def _answers(asked: Sequence[Metadata], replies: Iterable[Message]) -> dict[int, Answer | FedhpError]:
    """Returns the first answer of each node; what answers nothing that its sender was asked is dropped.

    Each is read as it arrives: the messages of a large fleet take ten times as much memory as what they say.
    """
    questions, answers = Questions(asked), {}
    for reply in replies:
        node = questions.first_from(reply)
        if node is not None:
            answers[node] = read_answer(reply, node)
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


def _wait_for_nodes(grid: Grid, places: Places, timeout_seconds: float) -> dict[int, NodeInfo]:
    deadline = time.monotonic() + timeout_seconds
    told, wanted, num_clients = -1, places.wanted, places.num_clients
    while len(nodes := {node.node_id: node for node in grid.get_nodes()}) < wanted:
        if time.monotonic() > deadline:
            key = "server.min_devices" if places.min_devices else "fleet.num_clients"
            raise TrainingError(
                f"{len(nodes)} of {wanted} devices connected within {timeout_seconds:g} s; start the "
                f"missing ones or lower {key}"
            )
        if len(nodes) != told:
            told = len(nodes)
            _notes.info("waiting for devices: %d of %d connected", told, wanted)
        time.sleep(_POLL_SECONDS)
    if places.most is not None and len(nodes) > places.most:
        raise TrainingError(
            f"{len(nodes)} devices are connected, and fleet.num_clients is {num_clients}: set "
            f"fleet.num_clients={len(nodes)}, or server.min_devices for a fleet of any number, or stop the "
            f"others, which count for about a minute more; in Flower's simulation, set "
            f"num-supernodes={num_clients}"
        )
    return nodes


def read_answer(reply: Message, node: int) -> Answer | FedhpError:
    """Returns what a device says of itself, or why that is no profile."""
    try:
        profile, client = wire.unpack_profile(content_of(reply))
    except FedhpError as error:
        return error
    return Answer(node, profile, client)
