"""Before and after a round in which units come back: see `fedhp.aggregation.regrowth`."""

from dataclasses import replace

from fedhp.aggregation.regrowth import remembered, returning
from fedhp.aggregation.server_optimizer import Moments
from fedhp.federation.server_state import ServerState
from fedhp.model.layout import Layout, spread
from fedhp.model.structure import Structure
from fedhp.pruning.schedule import spare
from fedhp.training.recipe import Recipe


def with_returned(recipe: Recipe, state: ServerState) -> ServerState:
    """Returns the state from which the next round is held: with some of the units that were cut, if any."""
    progress = state.round / recipe.rounds
    if not spare(recipe.prune.regrow, progress):
        return state if state.dormant is None else replace(state, dormant=None, judged=None)
    layout, held = recipe.architecture.layout, state.model.structure
    dormant = state.dormant or state.model
    begun = returning(dormant, held, recipe.schedule.held(progress), state.judged)
    model = remembered(layout, dormant.cut(layout, begun), state.model)
    moments = _grown(layout, state.moments, held, begun)
    return replace(state, model=model, moments=moments, dormant=dormant, judged=begun)


def _grown(layout: Layout, moments: Moments, held: Structure, begun: Structure) -> Moments:
    """Returns the moments of a server's optimiser that remembers nothing of what has come back."""
    return tuple(spread(layout, arrays, held, begun) for arrays in moments)
