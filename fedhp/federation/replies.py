"""Replies as they arrive, put into the one order that results may depend on: by partition id."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from flwr.app import Message, Metadata

from fedhp.aggregation.proportion import Change
from fedhp.bounds import one_line
from fedhp.federation.questions import Questions
from fedhp.federation.roster import Device
from fedhp.model.layout import Layout
from fedhp.model.structure import Structure
from fedhp.records.rows import ClientReport
from fedhp.training.update import Update


@dataclass(frozen=True)
class Sent:
    """What a sampled device was sent in a round."""

    device: Device
    structure: Structure
    num_parameters: int
    num_bytes: int
    message: Metadata


@dataclass(frozen=True)
class Arrived:
    """What came of what a device was sent: an update and how far it moves the model, or a failure.

    Attributes:
        sent: What it answers.
        update: The checked update; None where it failed.
        changes: The update's, by kind of entries.
        num_bytes: Bytes of the reply's arrays.
        failure: ``"stage: cause"``.
        absent: Whether the device failed because it is not there.
    """

    sent: Sent
    update: Update | None = None
    changes: tuple[Change, ...] = ()
    num_bytes: int = 0
    failure: str = ""
    absent: bool = False

    def row(self, server_round: int, layout: Layout, budgeted: bool) -> ClientReport:
        """Returns the device's row of the round."""
        profile = self.sent.device.profile
        row = ClientReport(
            round=server_round,
            client=self.sent.device.client,
            device_class=profile.device_class,
            status="failed",
            failure=one_line(self.failure),
            num_examples=profile.num_examples,
            memory_budget_bytes=profile.memory_bytes if budgeted else None,
            params_received=self.sent.num_parameters,
            bytes_down=self.sent.num_bytes,
            bytes_up=self.num_bytes,
            update_norm=self.changes[0].norm if self.changes else None,
        )
        return row if self.update is None or self.failure else row.succeeded(self.update, layout)

    def refused(self, flaw: str) -> "Arrived":
        """Returns it as a failure, where there is a flaw."""
        return replace(self, failure=f"reply: {flaw}") if flaw else self


def in_order(sent: Mapping[int, Sent], replies: Iterable[Message]) -> Iterator[tuple[Sent, Message | None]]:
    """Yields each sampled device with its reply, by partition id, as soon as the order allows.

    Only replies that overtook an earlier device's wait in memory. A device without a reply is yielded with
    None at the end of the stream; replies that do not answer what their sender was asked, or a second one,
    are dropped and noted.
    """
    order = sorted(sent, key=lambda node: sent[node].device.client)
    early: dict[int, Message] = {}
    next_up = 0
    for node, reply in _answers(sent, replies):
        early[node] = reply
        while next_up < len(order) and order[next_up] in early:
            yield sent[order[next_up]], early.pop(order[next_up])
            next_up += 1
    for node in order[next_up:]:
        yield sent[node], early.pop(node, None)


def _answers(sent: Mapping[int, Sent], replies: Iterable[Message]) -> Iterator[tuple[int, Message]]:
    """Returns the first answer of each device that was asked, under its node, as they arrive."""

    def name(node: int) -> str:
        return f"client {sent[node].device.client} (node {node})" if node in sent else f"node {node}"

    return Questions(one.message for one in sent.values()).answers(replies, name)
