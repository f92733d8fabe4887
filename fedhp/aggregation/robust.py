"""What a few liars cannot move: order statistics over each entry's holders.

A client's value counts once, however many examples it claims. Yin et al. 2018 (arXiv 1803.01498) have both
rules for clients of one structure; here each entry has holders of its own, and so a number of its own that is
cut off.
"""

from collections.abc import Callable

import numpy as np

from fedhp.aggregation.options import RobustConfig
from fedhp.aggregation.reconcile import Reconciliation
from fedhp.aggregation.spread import Values, spread
from fedhp.model.layout import Layout
from fedhp.model.state import ModelState
from fedhp.training.update import Update


class RobustReconciliation(Reconciliation):
    """Keeps all updates of a round, and makes of each entry its holders' trimmed mean or median.

    It holds as many models as there are updates. Votes are counted as ever: a strategy by whose quorum one
    client's vote cuts a unit stays open to liars there.

    Args:
        layout: The model's wiring.
        state: The global model at the start of the round.
        config: Which rule.
    """

    def __init__(self, layout: Layout, state: ModelState, config: RobustConfig) -> None:
        super().__init__(layout, state)
        self._layout, self._config = layout, config
        self._updates: list[Update] = []

    def add(self, update: Update) -> None:
        """Adds one update, whose structures must be contained in the global one."""
        super().add(update)
        self._updates.append(update)

    def mean(self, uncovered: str = "keep") -> ModelState:
        """See `Reconciliation.mean`: the same choices for what nobody held, or some did not."""
        state = self._state
        elsewhere = _ELSEWHERE[uncovered]
        weights = {name: self._middle(name, old, elsewhere) for name, old in state.weights.items()}
        return ModelState(weights, state.structure, self.scores())

    def scores(self) -> dict[str, Values]:
        """Returns the same of a unit's scores over its assignees, 0 for those that pruned it."""
        middles = {}
        for group, old in self._state.scores.items():
            rows = np.full((len(self._updates), len(old)), np.nan, np.float32)
            for row, update in zip(rows, self._updates, strict=True):
                row[self.structure.positions(update.assigned, group)] = 0
                row[self.structure.positions(update.state.structure, group)] = update.state.scores[group]
            middles[group] = middle(rows, old, self._config)
        return middles

    def _middle(
        self,
        name: str,
        old: Values,
        elsewhere: Callable[[Values], tuple[Values | float, Values | float]],
    ) -> Values:
        missing, nowhere = elsewhere(np.atleast_1d(old))
        found = np.array(np.broadcast_to(nowhere, np.atleast_1d(old).shape), np.float32)
        states = [one.state for one in self._updates]
        for some, rows in spread(self._layout, self.structure, name, old.shape, states, missing):
            found[some] = middle(rows, found[some], self._config)
        return found.reshape(old.shape)


# By ``uncovered``: what clients count for that do not hold an entry (NaN: not at all), and what it is where
# none counts.
_ELSEWHERE: dict[str, Callable[[Values], tuple[Values | float, Values | float]]] = {
    "keep": lambda old: (np.nan, old),
    "zero": lambda old: (np.nan, 0.0),
    "residual": lambda old: (old, old),
    "zero_filled": lambda old: (0.0, 0.0),
}


def middle(rows: Values, otherwise: Values, config: RobustConfig) -> Values:
    """Returns the trimmed mean or median of each entry over the clients that have one.

    Args:
        rows: Of shape ``(clients, ...)``; NaN where a client has none.
        otherwise: What an entry is that nobody has.
        config: Which rule.

    Returns:
        Float32 of one client's shape.
    """
    rows = np.sort(rows, axis=0)  # NaN last
    number = np.sum(~np.isnan(rows), axis=0)
    most = np.maximum(number - 1, 0) // 2  # or nothing would be left
    cut = most if config.rule == "median" else np.floor(config.trim * number).astype(np.intp)
    place = np.arange(len(rows)).reshape(-1, *(1,) * (rows.ndim - 1))
    counts = (place >= cut) & (place < number - cut)
    total = np.sum(rows, axis=0, where=counts, dtype=np.float64)
    left = counts.sum(axis=0)
    mean = np.divide(total, left, out=otherwise.astype(np.float64), where=left > 0)
    return mean.astype(np.float32)
