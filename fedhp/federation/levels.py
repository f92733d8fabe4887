"""The narrower networks that a model stands for, each with running statistics of its own."""

from collections.abc import Mapping
from dataclasses import replace

from flwr.serverapp import Grid

from fedhp.federation.replies import Sent, in_order
from fedhp.federation.server_state import Outcome, ServerState
from fedhp.federation.strategy import FleetStrategy
from fedhp.model.state import ModelState


def level_states(strategy: FleetStrategy, state: ServerState) -> dict[str, ModelState]:
    """Returns the networks that the server's model stands for, by their names."""
    return {
        name: _own(state.model.cut(strategy.layout, structure), state.level_statistics.get(name, {}))
        for name, structure in strategy.levels(state.model).items()
    }


def _own(model: ModelState, statistics: Mapping[str, object]) -> ModelState:
    return replace(model, weights={**model.weights, **statistics}) if statistics else model


def with_level_statistics(
    strategy: FleetStrategy,
    grid: Grid,
    timeout: float,
    state: ServerState,
    outcome: Outcome,
    sent: Mapping[int, Sent],
) -> tuple[ServerState, Outcome]:
    """Asks devices of a round for the running statistics of each level, as for those of the model.

    Where the model stays, so do they; what nobody answers for are the model's own.

    Args:
        strategy: Says which levels there are.
        grid: Where devices are.
        timeout: Seconds to wait for those that are asked for a level.
        state: What the server holds after the round.
        outcome: What else came of it.
        sent: Who took part.

    Returns:
        The state with the statistics, and the rows with what asking for them cost.
    """
    if not strategy.layout.buffers or not outcome.sources:
        return state, outcome
    found = {}
    for name, structure in strategy.levels(state.model).items():
        if structure == state.model.structure:
            continue
        # Norms of statistics are those of the model: a narrower network's are others.
        level = replace(state, model=state.model.cut(strategy.layout, structure), statistics_norms=())
        asked = strategy.ask_for_statistics(level, outcome, sent)
        if asked.messages:
            replies = grid.send_and_receive(asked.messages, timeout=timeout)
            level, outcome = strategy.statistics.taken(level, outcome, in_order(asked.sent, replies))
        found[name] = {buffer: level.model.weights[buffer] for buffer in sorted(strategy.layout.buffers)}
    return replace(state, level_statistics=found), outcome
