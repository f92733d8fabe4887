"""What a few liars cannot move: order statistics over each entry's holders.

A client's value counts once, however many examples it claims. Yin et al. 2018 (arXiv 1803.01498) have both
rules for clients of one structure; here each entry has holders of its own, and so a number of its own that is
cut off.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from fedhp.aggregation.options import RobustConfig
from fedhp.aggregation.reconcile import Reconciliation
from fedhp.model.layout import Layout
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.training.update import Update

# Of the clients' values, what is sorted at a time at most.
_BYTES = 16 * 2**20
_FLOAT_BYTES = 4

Values = NDArray[np.float32]


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
        held = [(one.state.structure, one.state.weights) for one in self._updates]
        elsewhere = _ELSEWHERE[uncovered]
        weights = {
            name: self._middle(name, held, np.atleast_1d(old), elsewhere).reshape(old.shape)
            for name, old in state.weights.items()
        }
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
        held: list[tuple[Structure, Mapping[str, Values]]],
        old: Values,
        elsewhere: Callable[[Values], tuple[Values | float, Values | float]],
    ) -> Values:
        missing, nowhere = elsewhere(old)
        found = np.array(np.broadcast_to(nowhere, old.shape), np.float32)
        compact = [
            (np.atleast_1d(weights[name]), dict(self._layout.indices(name, self.structure, structure)))
            for structure, weights in held
        ]
        for some in _blocks(old.shape, len(held)):
            rows = np.empty((len(held), *old[some].shape), np.float32)
            rows[:] = missing[some] if isinstance(missing, np.ndarray) else missing
            for place, (weights, takes) in enumerate(compact):
                _put(rows[place], weights, takes, some)
            found[some] = middle(rows, found[some], self._config)
        return found


# By ``uncovered``: what clients count for that do not hold an entry (NaN: not at all), and what it is where
# none counts.
_ELSEWHERE: dict[str, Callable[[Values], tuple[Values | float, Values | float]]] = {
    "keep": lambda old: (np.nan, old),
    "zero": lambda old: (np.nan, 0.0),
    "residual": lambda old: (old, old),
    "zero_filled": lambda old: (0.0, 0.0),
}


def _blocks(shape: tuple[int, ...], clients: int) -> Iterator[slice]:
    """Yields parts of a parameter's first axis whose values of all clients are sorted at a time."""
    per_row = max(1, clients) * int(np.prod(shape[1:], dtype=np.int64)) * _FLOAT_BYTES
    size = max(1, _BYTES // per_row)
    return (slice(start, start + size) for start in range(0, shape[0], size))


def _put(row: Values, weights: Values, places: Mapping[int, NDArray[np.intp]], some: slice) -> None:
    """Puts a client's compact weights where they stand in some rows of the parameter."""
    if 0 in places:
        first = places[0]
        chosen = (first >= some.start) & (first < some.stop)
        weights, first = weights[chosen], first[chosen] - some.start
    else:
        weights, first = weights[some], np.arange(len(row))
    others = [
        places[axis] if axis in places else np.arange(size) for axis, size in enumerate(row.shape[1:], 1)
    ]
    row[np.ix_(first, *others)] = weights


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
