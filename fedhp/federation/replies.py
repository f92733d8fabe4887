"""Replies as they arrive, put into the one order that results may depend on: that of a round's devices."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain

from flwr.app import Message, Metadata

from fedhp.aggregation.proportion import Change
from fedhp.bounds import one_line
from fedhp.federation.device import Device
from fedhp.federation.questions import Questions
from fedhp.model.layout import Layout
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.records.replied import succeeded
from fedhp.records.rows import ClientReport
from fedhp.training.update import Said


@dataclass(frozen=True)
class Sent:
    """What a sampled device was sent in a round; by a message of its own, or with others by none.

    Attributes:
        device: The device.
        structure: Of its model.
        num_parameters: Of its model.
        num_bytes: Of its model's arrays.
        message: What is known of its message.
        model: Its model, where that is its own and no part of the fleet's.
    """

    device: Device
    structure: Structure
    num_parameters: int
    num_bytes: int
    message: Metadata | None = None
    model: ModelState | None = None


@dataclass(frozen=True)
class Arrived:
    """What came of what a device was sent: an update and how far it moves the model, or a failure.

    Attributes:
        sent: What it answers.
        said: What the checked update says beside its weights; None where it failed.
        changes: The update's, by kind of entries.
        num_bytes: Bytes of the reply's arrays.
        failure: ``"stage: cause"``.
        absent: Whether the device failed because it is not there.
        shares: Of each of the changes, what counts: less than 1 where it is clipped. All of it where empty.
        trained: The samples that it says it has trained on, where it counts for fewer.
    """

    sent: Sent
    said: Said | None = None
    changes: tuple[Change, ...] = ()
    num_bytes: int = 0
    failure: str = ""
    absent: bool = False
    shares: tuple[float, ...] = ()
    trained: int | None = None

    def row(self, server_round: int, layout: Layout, budgeted: bool) -> ClientReport:
        """Returns the device's row of the round."""
        profile = self.sent.device.profile
        shares = self.shares or (1.0,) * len(self.changes)
        counts = bool(self.changes) and not self.failure
        row = ClientReport(
            round=server_round,
            client=self.sent.device.client,
            device_class=profile.device_class,
            status="failed",
            failure=one_line(self.failure) if self.failure else "",
            num_examples=profile.num_examples,
            memory_budget_bytes=profile.memory_bytes if budgeted else None,
            params_received=self.sent.num_parameters,
            bytes_down=self.sent.num_bytes,
            bytes_up=self.num_bytes,
            update_norm=self.changes[0].norm if self.changes else None,
            update_share=shares[0] if counts else None,
            statistics_share=shares[1] if counts and len(shares) > 1 else None,
            num_examples_said=self.trained,
        )
        return row if self.said is None or self.failure else succeeded(row, self.said, layout)

    def refused(self, flaw: str) -> "Arrived":
        """Returns it as a failure, where there is a flaw."""
        return replace(self, failure=f"reply: {flaw}") if flaw else self


def in_order(sent: Mapping[int, Sent], replies: Iterable[Message]) -> Iterator[tuple[Sent, Message | None]]:
    """Yields each sampled device with its reply, in the order of ``sent``, as soon as that allows.

    Only replies that overtook an earlier device's wait in memory. A device without a reply is yielded with
    None at the end of the stream; replies that do not answer what their sender was asked, or a second one,
    are dropped and noted.
    """

    def name(node: int) -> str:
        return f"client {sent[node].device.client} (node {node})" if node in sent else f"node {node}"

    questions = Questions((one.message for one in sent.values() if one.message is not None), name)
    awaited = deque(sent)
    early: dict[int, Message] = {}

    def read(reply: Message) -> Iterator[tuple[Sent, Message]]:
        node = questions.first_from(reply)
        if node is not None:
            early[node] = reply
        while awaited and awaited[0] in early:
            yield sent[awaited[0]], early.pop(awaited.popleft())

    def missing() -> Iterator[tuple[Sent, Message | None]]:
        for node in awaited:
            yield sent[node], early.pop(node, None)

    return chain(chain.from_iterable(map(read, replies)), missing())
