"""A round as a function: what the server held and what came back make what it holds next."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import starmap
from operator import attrgetter

from flwr.app import Message
from flwr.common.constant import ErrorCode

from fedhp.aggregation.proportion import Proportion, changes
from fedhp.aggregation.reconcile import Reconciliation
from fedhp.aggregation.server_optimizer import Moments, cut, step
from fedhp.errors import FedhpError, WireError
from fedhp.federation import wire
from fedhp.federation.claims import with_servers_memory
from fedhp.federation.questions import content_of
from fedhp.federation.replies import Arrived, Sent, in_order
from fedhp.federation.rules import Rules
from fedhp.federation.server_state import Outcome, ServerState
from fedhp.model.state import ModelState
from fedhp.records.rows import ClientReport

_notes = logging.getLogger("fedhp.notes")


def close_round(
    rules: Rules, state: ServerState, sent: Mapping[int, Sent], replies: Iterable[Message]
) -> tuple[ServerState, Outcome]:
    """Checks each reply as it arrives and adds it, by partition id; then decides what survives.

    Below ``server.min_replies`` valid replies the model stays as it is.

    Args:
        rules: The strategy's.
        state: What the server held when it asked.
        sent: What each node was sent.
        replies: Whatever comes back, as it comes.

    Returns:
        What the server holds after the round, and what else came of it.
    """
    proportion = Proportion(rules.scenario.server.max_times_median, state.update_norms)
    reconciliation = Reconciliation(rules.layout, state.model)
    arrived = starmap(partial(_open, rules, state.model), in_order(sent, replies))
    some_absent, rows, sources = False, list[ClientReport](), set[str]()
    for one, flaw, times in proportion.judged(arrived, attrgetter("changes")):
        if one.update is not None and not flaw:
            update = rules.claims.held(one.sent.device, one.update, times)
            one = replace(one, update=update)
            reconciliation.add(update)
            sources.add(update.state.structure.digest)
        some_absent |= one.absent
        rows.append(one.refused(flaw).row(state.round + 1, rules.layout, rules.budgeted))
    after = replace(
        state,
        round=state.round + 1,
        update_norms=proportion.norms,
        in_vain=() if sources else (*state.in_vain, tuple(rows)),
        some_absent=some_absent,
    )
    return _concluded(rules, after, Outcome(tuple(rows), sources=frozenset(sources)), reconciliation)


def _open(rules: Rules, model: ModelState, sent: Sent, reply: Message | None) -> Arrived:
    """Checks one reply, or names the failure."""
    if reply is None:
        return Arrived(sent, failure="timeout: no reply arrived in time")
    device = sent.device
    absent = reply.has_error() and reply.error.code == ErrorCode.NODE_UNAVAILABLE
    try:
        content = content_of(reply)
        update = wire.unpack_update(content, rules.layout, device.client, sent.structure, device.profile)
    except WireError as error:
        return Arrived(sent, failure=f"reply: {error}")
    except FedhpError as error:
        return Arrived(sent, failure=str(error), absent=absent)
    budget = device.profile.memory_bytes if rules.budgeted else None
    update = with_servers_memory(rules.recipe, rules.memory, budget, update)
    return Arrived(sent, update, changes(rules.layout, model, update), wire.update_bytes(content))


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
    model, moments = _next_model(rules, state, reconciliation)
    try:
        for name, weights in model.weights.items():
            wire.check_values(name, weights)
    except WireError as error:
        _notes.warning("round %d: the new model is none (%s); the model stays", state.round, error)
        return state.undone(state), stays
    votes = reconciliation.votes() if rules.prunes() else {}
    return replace(state, model=model, moments=moments), replace(outcome, votes=votes)


def _next_model(
    rules: Rules, state: ServerState, reconciliation: Reconciliation
) -> tuple[ModelState, Moments]:
    """Returns the model that the updates make, cut to the units that survive, and the optimiser's moments."""
    within, layout = state.model.structure, rules.layout
    survivors = rules.survivors(reconciliation, state.round)
    mean, optimizer = rules.average(reconciliation), rules.scenario.strategy.optimizer
    model, moments = step(optimizer, layout, state.round, state.model, mean, state.moments)
    return model.cut(layout, survivors), cut(moments, layout, within, survivors)
