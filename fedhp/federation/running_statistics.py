"""The global model's running statistics, taken anew by the devices of a round that can hold it.

What comes back from a round are the statistics of the networks that its clients had. Where those are others
than the network that the server makes of them, because it cuts or because small devices train parts, their
means are no network's. The server has no samples to take any from, so it asks, in Flower's evaluation phase,
as HeteroFL does before it evaluates (Diao et al. 2021, arXiv 2010.01264: static batch normalisation); that
those who cannot answer count on with what they sent is our choice.
"""

import logging
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace

from flwr.app import Message

from fedhp.aggregation.options import RobustConfig
from fedhp.aggregation.proportion import Change, Proportion, norm
from fedhp.aggregation.statistics_mean import statistics_mean
from fedhp.costs.memory import MemoryModel
from fedhp.errors import BudgetError, FedhpError
from fedhp.federation import wire
from fedhp.federation.device import Device
from fedhp.federation.questions import content_of
from fedhp.federation.replies import Sent
from fedhp.federation.server_state import Outcome, ServerState
from fedhp.model.layout import Layout
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.records.rows import ClientReport
from fedhp.training.moments import ENOUGH
from fedhp.training.recipe import Recipe, choose_batch
from fedhp.training.update import Moments

_notes = logging.getLogger("fedhp.notes")


@dataclass(frozen=True)
class Taken:
    """What came of asking a device: running statistics and how far they are off the model's, or a failure."""

    sent: Sent
    moments: Moments | None = None
    changes: tuple[Change, ...] = ()
    num_bytes: int = 0
    failure: str = ""


class RunningStatistics:
    """Says when the global model's running statistics are not its own, whom to ask, and what they become.

    Args:
        recipe: How clients train.
        memory: The memory model that devices are measured by.
        budgeted: Whether devices keep to their memory budgets.
        factor: How many times the median an answer may be off the model's statistics; 0 for any number.
        robust: What is done besides against answers that are meant to ruin them, as against updates.
    """

    def __init__(
        self, recipe: Recipe, memory: MemoryModel, budgeted: bool, factor: float, robust: RobustConfig
    ) -> None:
        self._recipe, self._memory, self._budgeted = recipe, memory, budgeted
        self._layout, self._factor, self._robust = recipe.architecture.layout, factor, robust
        self._has_noted = False

    def are_of(self, structure: Structure, sources: Set[str]) -> bool:
        """Says whether statistics are of networks of this structure, or there are none.

        Where they are `static`, they are always taken of the global model, as in HeteroFL.

        Args:
            structure: The global model's.
            sources: Digests of the structures of the updates that the model is made of.
        """
        return not self._layout.buffers or (sources <= {structure.digest} and not self._layout.static)

    def holders(self, devices: Sequence[Device], structure: Structure, server_round: int) -> list[Device]:
        """Returns those of a round's devices that can hold the whole model, and notes once if none can."""
        holders = [device for device in devices if self._batch(device, structure)]
        if not holders and not self._has_noted:
            self._has_noted = True
            _notes.warning(
                "round %d: none of its devices has room for the global model, and so nobody could take its "
                "running statistics; they are the means over those of its parts, and it is shown less "
                "accurate than its weights are. Raise a budget, have more devices take part in a round, or "
                "choose group normalisation",
                server_round,
            )
        return holders

    def taken(
        self, state: ServerState, outcome: Outcome, answers: Iterable[tuple[Sent, Message | None]]
    ) -> tuple[ServerState, Outcome]:
        """Returns the state with what devices answer, and the rows with what asking them cost.

        Statistics are means over the samples of all the round's devices: for those of a device that has no
        room for the model, or fails, the means of the round stay. So few devices do not speak for all. By a
        robust rule they are what it makes of them, each device counting once.

        Args:
            state: What the server held when it asked about its model.
            outcome: The round's; by its rows' numbers of examples the answers are weighted.
            answers: The devices that were asked, each with its reply if one came.
        """
        model, rows, causes = state.model, {row.client: row for row in outcome.rows}, list[str]()
        old = {name: model.weights[name] for name in sorted(self._layout.buffers)}
        taken = statistics_mean(self._robust, old)
        found = (opened(self._layout, model, sent, reply) for sent, reply in answers)
        proportion = Proportion(self._factor, state.statistics_norms)
        for one, flaw, times in proportion.judged(found, lambda one: one.changes):
            client = one.sent.device.client
            one = replace(one, moments=None, failure=f"reply: {flaw}") if flaw else one
            share = 0.0 if one.moments is None else self._robust.shares(times)[0]
            rows[client] = row = replace(self._with_costs(rows[client], one), statistics_share=share)
            if one.moments is None:
                causes.append(f"client {client}: {one.failure}")
            else:
                taken.add(one.moments.weights, share, row.num_examples)
        if causes:
            _notes.warning(
                "round %d: no running statistics of the new model from %d of the devices asked; %s",
                state.round,
                len(causes),
                causes[0],
            )
        valid = [row.num_examples for row in outcome.valid]
        model = replace(model, weights={**model.weights, **taken.over(sum(valid), len(valid))})
        after = replace(state, model=model, statistics_norms=proportion.norms)
        return after, replace(outcome, rows=tuple(rows.values()))

    def _with_costs(self, row: ClientReport, one: Taken) -> ClientReport:
        row = replace(
            row, bytes_down=row.bytes_down + one.sent.num_bytes, bytes_up=row.bytes_up + one.num_bytes
        )
        if one.moments is None or row.statistics is None:
            return row
        device = one.sent.device
        batch = min(self._batch(device, one.sent.structure), ENOUGH, device.profile.num_examples)
        predicted = self._memory.training_bytes(one.sent.structure.counts, batch)
        said, measured = row.statistics, one.moments.memory_measured_bytes
        statistics = replace(
            said,
            memory_predicted_bytes=max(said.memory_predicted_bytes, predicted),
            memory_measured_bytes=max(said.memory_measured_bytes, measured),
        )
        return replace(row, statistics=statistics)

    def _batch(self, device: Device, structure: Structure) -> int:
        """Returns in batches of how many samples a device looks at a model; 0 where it has no room for it."""
        budget = device.profile.memory_bytes if self._budgeted else None
        try:
            return choose_batch(self._recipe, self._memory, structure, budget)
        except BudgetError:
            return 0


def opened(layout: Layout, state: ModelState, sent: Sent, reply: Message | None) -> Taken:
    """Checks what a device answers when it was asked for a model's running statistics."""
    if reply is None:
        return Taken(sent, failure="timeout: no reply arrived in time")
    try:
        content = content_of(reply)
        moments = wire.unpack_moments(content, layout, state.structure)
    except FedhpError as error:
        return Taken(sent, failure=str(error))
    change = Change(
        "running statistics",
        norm(values - state.weights[name] for name, values in moments.weights.items()),
        norm(state.weights[name] for name in moments.weights),
    )
    return Taken(sent, moments, (change,), wire.update_bytes(content))
