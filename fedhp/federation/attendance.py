"""Who is there between rounds: devices that join, leave and come back."""

import logging
from collections.abc import Iterator

from flwr.app import Message, MessageType, Metadata
from flwr.serverapp import Grid

from fedhp.bounds import one_line
from fedhp.errors import FedhpError, WireError
from fedhp.federation import wire
from fedhp.federation.device import Device
from fedhp.federation.numbers import Answer, Given, Numbers
from fedhp.federation.questions import Questions
from fedhp.federation.roster import Found, Places, read_answer
from fedhp.records.wording import BACK, JOINED, LEFT, gives_way, left_out

_notes = logging.getLogger("fedhp.notes")


class Attendance:
    """Asks whoever is new, or was away, who it is; nobody is waited for.

    Args:
        grid: Where the nodes are.
        brief: What they are told of the run.
        places: Who can take part.
        found: Who was asked when the run began. Those of them that do not take part are left out until they
            are started again; who has come since is new.
        seconds: How long an answer counts.
        numbers: Which number each device has.
    """

    def __init__(
        self, grid: Grid, brief: wire.Brief, places: Places, found: Found, seconds: float, numbers: Numbers
    ) -> None:
        self._grid, self._brief, self._places, self._seconds = grid, brief, places, seconds
        self._nodes = found.nodes
        self._there = {device.node_id: device for device in found.devices}
        self._numbers = numbers
        self._left_out = self._nodes.keys() - self._there.keys()
        self._asked: dict[str, Metadata] = {}
        self._waiting: dict[int, Answer] = {}
        self._told = set[tuple[int, str]]()

    @property
    def devices(self) -> list[Device]:
        """Those that are connected and have said who they are, by number."""
        return sorted(self._there.values(), key=lambda device: device.client)

    @property
    def given(self) -> tuple[Given, ...]:
        """The numbers that devices have, or had."""
        return self._numbers.given

    def look(self) -> Iterator[str]:
        """Sees who has come and gone since the last look.

        Yields:
            A line of each, and one of whoever cannot take part.
        """
        away = self._away()
        for node in sorted(away & self._there.keys()):
            yield f"{self._there.pop(node)} {LEFT}"
        self._left_out -= away
        self._waiting = {node: answer for node, answer in self._waiting.items() if node not in away}
        self._asked = {key: one for key, one in self._asked.items() if one.dst_node_id not in away}
        yield from self._listen()
        self._ask()
        for answer in self._numbers.in_turn(self._waiting.values()):
            flaw = self._numbers.conflict(answer, self._there)
            if not flaw:
                yield from self._seated(answer)
            elif (answer.node, flaw) not in self._told:
                self._told.add((answer.node, flaw))
                yield left_out(answer, flaw)

    def _away(self) -> set[int]:
        """Returns the nodes that are gone, or were, since the last look."""
        before, self._nodes = self._nodes, {node.node_id: node for node in self._grid.get_nodes()}
        return {
            node
            for node, info in before.items()
            if node not in self._nodes or self._nodes[node].last_activated_at != info.last_activated_at
        }

    def _ask(self) -> None:
        asked = {question.dst_node_id for question in self._asked.values()}
        known = asked | self._there.keys() | self._waiting.keys() | self._left_out
        content, kind, ttl = wire.pack_query(self._brief), MessageType.QUERY, self._seconds
        new = sorted(self._nodes.keys() - known)
        messages = [Message(content, node, kind, ttl=ttl, group_id="query") for node in new]
        if messages:
            ids = self._grid.push_messages(messages)
            pairs = zip(ids, (message.metadata for message in messages), strict=False)
            self._asked.update((key, question) for key, question in pairs if key)

    def _listen(self) -> Iterator[str]:
        """Takes in the answers that are there by now, and yields a line of those that are none."""
        if not self._asked:
            return
        questions = Questions(self._asked.values())
        for reply in list(self._grid.pull_messages(list(self._asked))):
            try:
                node = questions.node_of(reply)
            except WireError as error:
                _notes.warning("dropped a reply from node %d: %s", reply.metadata.src_node_id, error)
                continue
            self._asked.pop(reply.metadata.reply_to_message_id)
            answer = read_answer(reply, node)
            flaw = str(answer) if isinstance(answer, FedhpError) else self._places.flaw(answer)
            if isinstance(answer, Answer) and not flaw:
                self._waiting[node] = answer
            else:
                self._left_out.add(node)
                yield left_out(f"node {node}", one_line(flaw))

    def _seated(self, answer: Answer) -> Iterator[str]:
        """Lets a device take part, and yields which, and who gives way to it."""
        known = len(self.given)
        other = self._numbers.stand_in(answer, self._there)
        if other is not None:
            del self._there[other.node_id]
            if not other.profile.own_data:  # else it is asked anew, and takes part under another number
                self._left_out.add(other.node_id)
            yield gives_way(other, other.node_id, answer.node)
        device = self._numbers.give(answer, self._there)
        del self._waiting[answer.node]
        self._there[answer.node] = device
        yield f"{device} {JOINED if len(self.given) > known else BACK}"
