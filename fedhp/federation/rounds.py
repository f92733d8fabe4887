"""A round as a function: what the server held and what came back make what it holds next."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby, repeat, starmap
from typing import Protocol

from flwr.app import Message
from flwr.common.constant import ErrorCode

from fedhp.aggregation.agreement import agreements
from fedhp.aggregation.proportion import Proportion, Reference
from fedhp.aggregation.reconcile import Reconciliation
from fedhp.aggregation.regrowth import remembered, scheduled
from fedhp.aggregation.server_optimizer import cut, step
from fedhp.errors import FedhpError, WireError
from fedhp.federation import wire
from fedhp.federation.checks import check_values
from fedhp.federation.growing import unpack_gradients
from fedhp.federation.questions import content_of
from fedhp.federation.replies import Arrived, Sent, in_order
from fedhp.federation.rules import Rules
from fedhp.federation.server_state import Outcome, ServerState
from fedhp.model.layout import spread
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.records.rows import ClientReport
from fedhp.training.update import Update

_notes = logging.getLogger("fedhp.notes")


class Part(Protocol):
    """What came of one message, or of several devices that were asked together.

    Attributes:
        arrived: What came of each device.
    """

    @property
    def arrived(self) -> Sequence[Arrived]:
        """See above."""
        ...

    def add(self, reconciliation: Reconciliation, counted: Sequence[Arrived]) -> None:
        """Adds the updates of those devices that count; their numbers of samples are as they count."""
        ...


def close_round(rules: Rules, state: ServerState, parts: Iterable[Part]) -> tuple[ServerState, Outcome]:
    """Holds each update against the others as it arrives, and adds it; then decides what survives.

    Below ``server.min_replies`` valid replies the model stays as it is.

    Args:
        rules: The strategy's.
        state: What the server held when it asked.
        parts: What came of asking each device, as it comes, in an order on which alone the round depends.

    Returns:
        What the server holds after the round, and what else came of it.
    """
    proportion = Proportion(rules.scenario.server.max_times_median, state.update_norms)
    reconciliation = rules.reconciliation(state.model)
    some_absent, rows, sources = False, list[ClientReport](), set[str]()
    items = chain.from_iterable(map(_devices_of, parts))
    judged = proportion.judged(items, lambda item: item[1].changes)
    for part, ones in groupby(judged, key=lambda one: one[0][0]):
        said = list(starmap(partial(_as_it_counts, rules), ones))
        counted = [one for one in said if one.said is not None and not one.failure]
        if counted:
            part.add(reconciliation, counted)
        sources.update(one.said.held.digest for one in counted if one.said is not None)
        some_absent |= any(one.absent for one in said)
        number = state.round + 1
        clocks = [rules.clock(one.sent.device, number) for one in said]
        rows += (
            replace(one.row(number, rules.layout, rules.budgeted), clock=clock)
            for one, clock in zip(said, clocks, strict=True)
        )
    rows.sort(key=lambda row: row.client)
    after = replace(
        state,
        round=state.round + 1,
        update_norms=proportion.norms,
        in_vain=() if sources else (*state.in_vain, tuple(rows)),
        some_absent=some_absent,
    )
    return _concluded(rules, after, Outcome(tuple(rows), sources=frozenset(sources)), reconciliation)


def _devices_of(part: Part) -> Iterator[tuple[Part, Arrived]]:
    return zip(repeat(part), part.arrived, strict=False)


def _as_it_counts(rules: Rules, item: tuple[Part, Arrived], flaw: str, times: tuple[float, ...]) -> Arrived:
    """Returns an answer as a failure where there is a flaw, and else with the samples and shares that count.

    ``times`` is how many times the others' the norm of each of its changes is.
    """
    one = item[1]
    if one.said is None or flaw:
        return one.refused(flaw)
    shares, trained = rules.robust.shares(times), one.said.num_examples
    number = rules.claims.held(one.sent.device, trained, max(times, default=1.0))
    if min(shares, default=1.0) == 1 and number == trained:
        return one
    said = replace(one.said, num_examples=number)
    return replace(one, said=said, shares=shares, trained=trained if number < trained else None)


@dataclass(frozen=True, eq=False)
class _Alone:
    """A device that was asked by a message of its own."""

    arrived: tuple[Arrived]
    reference: Reference
    update: Update | None = None

    def add(self, reconciliation: Reconciliation, counted: Sequence[Arrived]) -> None:
        """See `Part`."""
        (one,), update = counted, self.update
        assert update is not None
        assert one.said is not None
        update = self.reference.scaled(update, one.shares) if one.shares else update
        reconciliation.add(replace(update, num_examples=one.said.num_examples))

    def refused(self, flaw: str) -> "_Alone":
        """Returns it as one that brought no update, for a flaw."""
        (one,) = self.arrived
        return _Alone((replace(one.refused(flaw), said=None, changes=()),), self.reference)


def opened(
    rules: Rules, model: ModelState, sent: Mapping[int, Sent], replies: Iterable[Message]
) -> Iterator[Part]:
    """Checks each reply to a message, and yields what came of each device, in the order of ``sent``.

    As they come, but where they are held against each other's direction: all are waited for then.

    Args:
        rules: The strategy's.
        model: The global model that was sent, or parts of it.
        sent: What each node was sent.
        replies: Whatever comes back, as it comes.
    """
    model = model.over(rules.layout)
    reference = Reference(rules.layout, model)
    parts = starmap(partial(_open, rules, reference), in_order(sent, replies))
    return _without_opposed(rules, model, list(parts)) if rules.robust.refuse_opposed else parts


def _open(rules: Rules, reference: Reference, sent: Sent, reply: Message | None) -> _Alone:
    """Checks one reply, or names the failure."""
    if sent.model is not None:
        reference = Reference(rules.layout, sent.model)
    if reply is None:
        return _Alone((Arrived(sent, failure="timeout: no reply arrived in time"),), reference)
    device = sent.device
    absent = reply.has_error() and reply.error.code == ErrorCode.NODE_UNAVAILABLE
    try:
        content = content_of(reply)
        asked = rules.moving(rules.server.round + 1)
        update = wire.unpack_update(content, rules.layout, device.client, sent.structure, device.profile)
        update = replace(update, gradients=unpack_gradients(content, sent.structure, asked))
    except WireError as error:
        return _Alone((Arrived(sent, failure=f"reply: {error}"),), reference)
    except FedhpError as error:
        return _Alone((Arrived(sent, failure=str(error), absent=absent),), reference)
    said = rules.believed(device, update.said)
    arrived = Arrived(sent, said, reference.changes(update), wire.update_bytes(content))
    return _Alone((arrived,), reference, update)


def _without_opposed(rules: Rules, model: ModelState, parts: Sequence[_Alone]) -> Iterator[_Alone]:
    """Yields the parts, those as failures whose update points against the others'."""
    moved = [one.update.state for one in parts if one.update is not None]
    cosines = iter(agreements(rules.layout, model, moved))
    for one in parts:
        cosine = 0.0 if one.update is None else next(cosines)
        yield one if cosine >= 0 else one.refused(_opposed(cosine))


def _opposed(cosine: float) -> str:
    return (
        f"the change of its weights points against the others' (cosine {cosine:.2f} with their median); if "
        f"it is honest, set strategy.robust.refuse_opposed to false"
    )


def _concluded(
    rules: Rules, state: ServerState, outcome: Outcome, reconciliation: Reconciliation
) -> tuple[ServerState, Outcome]:
    """Returns the state with the model that the round makes, unless it stays."""
    stays, wanted = Outcome(outcome.rows), rules.scenario.server.min_replies
    if len(outcome.valid) < wanted:
        _notes.warning(
            "round %d: %d valid replies, fewer than server.min_replies = %d; the model stays",
            state.round,
            len(outcome.valid),
            wanted,
        )
        return state, stays
    after = _next(rules, state, reconciliation)
    try:
        for name, weights in after.model.weights.items():
            check_values(name, weights)
    except WireError as error:
        _notes.warning("round %d: the new model is none (%s); the model stays", state.round, error)
        return state.undone(state), stays
    votes = reconciliation.votes() if rules.prunes() else {}
    return after, replace(outcome, votes=votes)


def _survivors(rules: Rules, reconciliation: Reconciliation, number: int) -> Structure:
    """Returns the units that survive a round: a client method may say so, by the fleet's scores alone."""
    recipe, within = rules.recipe, reconciliation.structure
    for kind in recipe.methods:
        said = kind.survivors(recipe, reconciliation.scores, within, number / recipe.rounds)
        if said is not None:
            return said
    return rules.survivors(reconciliation, number)


def _next(rules: Rules, state: ServerState, reconciliation: Reconciliation) -> ServerState:
    """Returns the state with the model that the updates make, cut to the units that survive."""
    layout, before = rules.layout, state.model.over(rules.layout)
    within = before.structure
    survivors = _survivors(rules, reconciliation, state.round)
    mean, optimizer = rules.average(reconciliation), rules.scenario.strategy.optimizer
    known = tuple(spread(layout, arrays, state.model.structure, within) for arrays in state.moments)
    model, moments = step(optimizer, layout, state.round, before, mean, known)
    dormant = state.dormant
    if dormant is not None:
        dormant = remembered(layout, dormant, model)
        progress = state.round / rules.recipe.rounds
        survivors = scheduled(layout, model, survivors, rules.recipe.schedule.counts(progress))
    moments = cut(moments, layout, within, survivors)
    personal = rules.personal(state, reconciliation)
    return replace(
        state, model=model.cut(layout, survivors), moments=moments, dormant=dormant, personal=personal
    )
