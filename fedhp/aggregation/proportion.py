"""Whether an update is in proportion to the others': one reply must not ruin the model of all."""

import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedhp.model.layout import Layout
from fedhp.model.state import ModelState, Weights
from fedhp.training.update import Update

# A median of fewer norms says nothing; until so many are known, replies wait for each other; and of so many
# accepted updates the norms are kept from round to round, so that later rounds need not wait.
_FEWEST = 3
_HELD = 8
_REMEMBERED = 32
# Towards the end of a training, updates come to nothing: one that changes so little harms nobody, however
# large beside the others'.
_HARMLESS = 0.1

_Item = TypeVar("_Item")

# An item, what is out of proportion in it, and how many times the usual each of its changes is.
Judged = tuple[_Item, str, tuple[float, ...]]
# Of each update, the norm of its change by kind of entries.
Norms = tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class Change:
    """Euclidean norms over the entries that a client sent back.

    Attributes:
        kind: Which entries: those of weights, or of running statistics.
        norm: Of the difference to what they were.
        before: Of what they were.
    """

    kind: str
    norm: float
    before: float


class Reference:
    """A global model, by which it is measured how far updates move it.

    Args:
        layout: The model's wiring.
        state: The model.
    """

    def __init__(self, layout: Layout, state: ModelState) -> None:
        self._layout, self._state = layout, state
        # Statistics are of another scale than weights, so that beside them a change of weights could hide.
        kinds = {"weights": layout.trained, "running statistics": tuple(sorted(layout.buffers))}
        self._kinds = {kind: names for kind, names in kinds.items() if names}
        self._norms = self._norms_of(state.weights)

    def changes(self, update: Update) -> tuple[Change, ...]:
        """Returns how far an update moves the model: its weights, and its running statistics if any."""
        before, norms, held = self._state.weights, self._norms, update.state.structure
        if held != self._state.structure:
            before = self._layout.slice(before, self._state.structure, held)
            norms = self._norms_of(before)
        moved = update.state.weights
        return tuple(
            Change(kind, norm(moved[name] - before[name] for name in names), norms[kind])
            for kind, names in self._kinds.items()
        )

    def scaled(self, update: Update, shares: Sequence[float]) -> Update:
        """Returns the update with a share alone of each of its `changes`."""
        held, moved = update.state.structure, update.state.weights
        before = self._layout.slice(self._state.weights, self._state.structure, held)
        share_of = {
            name: np.float32(share)
            for names, share in zip(self._kinds.values(), shares, strict=True)
            for name in names
        }
        weights = {name: old + share_of[name] * (moved[name] - old) for name, old in before.items()}
        return replace(update, state=ModelState(weights, held, update.state.scores))

    def _norms_of(self, weights: Weights) -> Mapping[str, float]:
        return {kind: norm(weights[name] for name in names) for kind, names in self._kinds.items()}


def norm(arrays: Iterable[NDArray[np.float32]]) -> float:
    """Returns the Euclidean norm over the entries of some arrays."""
    return math.sqrt(sum(float(np.vdot(array, array)) for array in arrays))


class Proportion:
    """Holds each update of a round against the median of those seen so far, in this round and before.

    An update is out of proportion when its norm is beyond ``factor`` times the median norm, and it changes
    what it was made from by more than a tenth. Where too few are known for a median, it is out of proportion
    when its norm is beyond ``factor`` times that of what it was made from. The median is the lower one, so
    that one of two cannot raise it.

    Args:
        factor: How many times the median one may measure; 0 for any.
        before: `norms` after the round before.
    """

    def __init__(self, factor: float, before: Norms = ()) -> None:
        self._factor = factor
        self._recent = deque(before, maxlen=_REMEMBERED)

    @property
    def norms(self) -> Norms:
        """Those of the last updates that were in proportion."""
        return tuple(self._recent)

    def judged(
        self, items: Iterable[_Item], changes: Callable[[_Item], Sequence[Change]]
    ) -> Iterator[Judged[_Item]]:
        """Yields each item of a round, what is out of proportion in it, and how many times the median it is.

        That is said of each of its changes. What is out of proportion is empty where nothing is. In their
        order, on which alone the judgement depends; a few are read ahead in the first round.

        Args:
            items: Updates, or anything in their place that did not bring one.
            changes: Returns an item's changes; none where it is no update.
        """
        known: dict[str, list[float]] = {}
        for norms in self._recent:
            _add(known, norms)
        waiting: deque[_Item] = deque()

        def read(item: _Item) -> Iterable[Judged[_Item]]:
            waiting.append(item)
            _add(known, {change.kind: change.norm for change in changes(item)})
            are_enough = min(map(len, known.values()), default=0) >= _HELD
            return self._released(waiting, changes, known) if are_enough else ()

        return chain(chain.from_iterable(map(read, items)), self._released(waiting, changes, known))

    def _released(
        self,
        waiting: deque[_Item],
        changes: Callable[[_Item], Sequence[Change]],
        known: Mapping[str, Sequence[float]],
    ) -> Iterator[Judged[_Item]]:
        while waiting:
            item = waiting.popleft()
            said = changes(item)
            flaw = next(filter(None, (self._flaw(change, known[change.kind]) for change in said)), "")
            if said and not flaw:
                self._recent.append({change.kind: change.norm for change in said})
            yield item, flaw, tuple(_usual_times(change, known[change.kind]) for change in said)

    def _flaw(self, change: Change, known: Sequence[float]) -> str:
        few, usual = len(known) < _FEWEST, _usual(change, known)
        limit = self._factor * usual if few else max(self._factor * usual, _HARMLESS * change.before)
        if not (self._factor and limit) or change.norm <= limit:
            return ""
        of = f"the norm of the {change.kind} that it was sent" if few else "the median of the others"
        return (
            f"the change of its {change.kind} has norm {change.norm:.3g}, beyond {self._factor:g} times "
            f"{of}, {usual:.3g}; if it is honest, lower train.local_epochs or raise server.max_times_median"
        )


def _usual(change: Change, known: Sequence[float]) -> float:
    return change.before if len(known) < _FEWEST else known[(len(known) - 1) // 2]


def _usual_times(change: Change, known: Sequence[float]) -> float:
    usual = _usual(change, known)
    return change.norm / usual if usual else 1.0


def _add(known: dict[str, list[float]], norms: Mapping[str, float]) -> None:
    for kind, norm in norms.items():
        insort(known.setdefault(kind, []), norm)
