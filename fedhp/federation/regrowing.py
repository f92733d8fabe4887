"""Before and after a round in which units come back: see `fedhp.aggregation.regrowth`."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedhp.aggregation.regrowth import placed, remembered, returning
from fedhp.aggregation.server_optimizer import Moments
from fedhp.federation.server_state import ServerState
from fedhp.model.layout import Layout
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

    def grown(name: str, known: NDArray[np.float32]) -> NDArray[np.float32]:
        nothing = np.zeros(layout.shape(name, begun.counts), known.dtype)
        return placed(layout, name, nothing, known, begun, held)

    return tuple({name: grown(name, known) for name, known in arrays.items()} for arrays in moments)
