"""Which question a reply answers: nobody's word counts for another device, round or run."""

import logging
from collections.abc import Callable, Iterable

from flwr.app import Message, Metadata, RecordDict

from fedhp.errors import TrainingError, WireError

# A message outlives the wait for its answer a little: what is over before the wait is an error of Flower's.
BEYOND_SECONDS = 5.0

_notes = logging.getLogger("fedhp.notes")


class Questions:
    """The messages that were sent at one time, one to a node, each to be answered by that node alone.

    Args:
        sent: Their metadata, with the ids that the grid has given them.
        name: Names a sender in notes.
    """

    def __init__(self, sent: Iterable[Metadata], name: Callable[[int], str] = "node {}".format) -> None:
        sent = list(sent)
        self._by_id = {question.message_id: question for question in sent if question.message_id}
        self._nodes = {question.dst_node_id for question in sent}
        self._name = name
        self._answered: set[int] = set()

    def first_from(self, reply: Message) -> int | None:
        """Returns the node whose first answer a reply is; None, and a note, where it is none."""
        sender = self._name(reply.metadata.src_node_id)
        try:
            node = self.node_of(reply)
        except WireError as error:
            _notes.warning("dropped a reply from %s: %s", sender, error)
            return None
        if node in self._answered:
            _notes.warning("dropped a second reply from %s", sender)
            return None
        self._answered.add(node)
        return node

    def node_of(self, reply: Message) -> int:
        """Returns the node whose question a reply answers.

        For a node that is gone, the SuperLink answers with an error in the server's own name.

        Raises:
            WireError: If it answers nothing that was asked of its sender.
        """
        said = reply.metadata
        question = self._by_id.get(said.reply_to_message_id)
        if question is None:
            asked = said.src_node_id in self._nodes
            raise WireError("it answers no question of this round" if asked else "the node was not asked")
        if said.run_id != question.run_id:
            raise WireError(f"it belongs to run {said.run_id}, not to {question.run_id}")
        in_its_place = reply.has_error() and said.src_node_id == question.src_node_id
        if not in_its_place:
            _check_sender(said, question)
        return question.dst_node_id


def _check_sender(said: Metadata, question: Metadata) -> None:
    if said.src_node_id != question.dst_node_id:
        raise WireError(f"it answers what node {question.dst_node_id} was asked")
    for key in ("group_id", "message_type"):
        expected, got = getattr(question, key), getattr(said, key)
        if got != expected:
            raise WireError(f"its {key.replace('_', ' ')} is {got!r:.40}, expected {expected!r}")


def content_of(reply: Message) -> RecordDict:
    """Returns what a reply holds.

    Raises:
        TrainingError: If its sender failed, with the cause that it gives.
        WireError: If it holds neither content nor an error.
    """
    if reply.has_error():
        # Flower's own begin so, which names no stage that anything failed in.
        reason = (reply.error.reason or "").removeprefix("Error: ")
        raise TrainingError(reason or "client: no reason given")
    if not reply.has_content():
        raise WireError("holds neither content nor an error")
    return reply.content
