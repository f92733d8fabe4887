"""Simulated devices that are sent the same model: trained together, and summed up."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flwr.app import RecordDict

from fedhp.aggregation.proportion import Reference
from fedhp.aggregation.reconcile import Reconciliation, Sums
from fedhp.errors import WireError
from fedhp.federation import wire
from fedhp.federation.checks import UpdateChecks
from fedhp.federation.cohorts import CohortAnswer, Member, stack_of
from fedhp.fleet.devices import DeviceProfile
from fedhp.model.layout import Layout
from fedhp.model.state import ModelState
from fedhp.scenario.arrived import from_json
from fedhp.simulation.answering import cause, too_late
from fedhp.training.cohort import Client, train_cohort
from fedhp.training.update import Update

from .client_app import recipe_for, round_task
from .device import open_device

logger = logging.getLogger("fedhp.clients")


class _Opened(NamedTuple):
    """A device that is to train, and how long it took to open its data."""

    client: Client
    profile: DeviceProfile
    seconds: float


def answer(content: RecordDict, nodes: Sequence[Mapping[str, Any]], seconds: float) -> CohortAnswer:
    """Answers for a cohort: see `fedhp.simulation.answering.CohortApp`. Whoever fails fails alone."""
    brief = wire.unpack_brief(content)
    recipe = recipe_for(brief)
    layout = recipe.architecture.layout
    server_round, state = wire.unpack_task(content, layout)
    opened = [_open(brief, node, server_round, state) for node in nodes]
    clients = [one.client for one in opened if isinstance(one, _Opened)]
    asked, size = from_json(brief.scenario).simulation.stack, layout.num_parameters(state.structure.counts)
    most = stack_of(asked, size, recipe.train.state_slots)
    outcomes = iter(train_cohort(recipe, clients, _even(len(clients), most)))
    summing = _Summing(layout, state, seconds, is_alone=len(nodes) == 1)
    members = [one if isinstance(one, str) else summing.taken(one, next(outcomes)) for one in opened]
    return CohortAnswer(tuple(members), summing.sums())


def _even(number: int, most: int) -> int:
    """Returns the largest of as few equal stacks as there can be."""
    return -(-number // max(1, -(-number // most)))


def _open(brief: wire.Brief, node: Mapping[str, Any], server_round: int, state: ModelState) -> _Opened | str:
    started = time.monotonic()
    try:
        device = open_device(brief, node)
    except Exception as error:
        return _failure(node["partition-id"], error)
    client = Client(round_task(brief, device, server_round, state), device.shard, device.held_out)
    return _Opened(client, device.profile, time.monotonic() - started)


def _failure(client: int, error: Exception) -> str:
    """Says how a client failed; where fedhp is debugged, with the traceback."""
    logger.debug("client %d failed", client, exc_info=error)
    return cause(error)


class _Summing:
    """Takes what came of each client of a cohort, as a server takes a message, and adds up the updates."""

    def __init__(self, layout: Layout, state: ModelState, seconds: float, is_alone: bool) -> None:
        self._layout, self._seconds, self._is_alone = layout, seconds, is_alone
        self._checks, self._reference = UpdateChecks(layout, state.structure), Reference(layout, state)
        self._reconciliation = Reconciliation(layout, state)
        self._bytes: dict[str, int] = {}

    def taken(self, opened: _Opened, outcome: Update | Exception) -> Member | str:
        """Returns what a client brings beside its part of the sums, or how it failed.

        Raises:
            TimeoutError: If it took too long beside others: its seconds are an even part of what all took, so
                that only alone it shows whose they were.
        """
        if isinstance(outcome, Exception):
            return _failure(opened.client.task.client, outcome)
        if opened.seconds + outcome.statistics.seconds > self._seconds:
            if not self._is_alone:
                raise TimeoutError(too_late(self._seconds))
            return too_late(self._seconds)
        try:
            self._checks.check(outcome, opened.profile)
        except WireError as error:
            return f"reply: {error}"
        self._reconciliation.add(outcome)
        structure = outcome.state.structure
        if structure.digest not in self._bytes:
            self._bytes[structure.digest] = wire.state_bytes(self._layout, structure)
        num_bytes = self._bytes[structure.digest]
        return Member(outcome.said, self._reference.changes(outcome), num_bytes)

    def sums(self) -> Sums | None:
        """Returns what the updates come to; None where there are none."""
        return self._reconciliation.sums() if self._bytes else None
