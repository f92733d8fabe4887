"""Reconciliation: many updates of different structures -> one global model.

Two questions, kept apart: *which units survive* is a rule over the clients' votes (`intersection`), and *what
their weights are* is, for every entry, the example-weighted mean over the clients that hold it. Both need
only running sums, so that the server holds two models' worth of numbers however many clients reply.

Every unit has one of three states at a client: not assigned, assigned and kept, assigned and pruned. A client
votes only on units that it was assigned: a small budget never votes a unit out, only judgement does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.errors import ScenarioError
from fedhp.state import ModelState, Update
from fedhp.structure import Layout, Structure

Shares = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class StrategyConfig:
    """How updates become one model.

    Attributes:
        name: A strategy's name (``fedhp strategies`` lists them) or ``package.module:Class``.
        quorum: Share (by examples) of the clients that were assigned a unit that must have kept it for the
            unit to survive; 1 is the intersection of the masks.
    """

    name: str = "mask_intersection"
    quorum: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.quorum <= 1:
            raise ScenarioError(f"strategy.quorum must be above 0 and at most 1, got {self.quorum}")


class Reconciliation:
    """Running sums over the updates of one round.

    The order of `add` fixes the result to the last bit; callers add by partition id.

    Args:
        layout: The model's wiring.
        state: The global model at the start of the round.
    """

    def __init__(self, layout: Layout, state: ModelState) -> None:
        self._layout = layout
        self._state = state
        # In the weights' own precision: the mean of a round's clients needs no more, and it is twice as fast.
        self._sums = {name: np.zeros_like(w) for name, w in state.weights.items()}
        self._scaled = {name: np.empty_like(w) for name, w in state.weights.items()}
        # Examples behind each entry; updates that hold every entry are counted once for all of them.
        self._held: dict[str, NDArray[np.float64]] = {}
        self._held_by_all = 0.0
        counts = state.structure.counts
        self._assigned = {group: np.zeros(count) for group, count in counts.items()}
        self._kept = {group: np.zeros(count) for group, count in counts.items()}
        self._scores = {group: np.zeros(count) for group, count in counts.items()}

    def add(self, update: Update) -> None:
        """Adds one update, whose structures must be contained in the global one."""
        current, held = self._state.structure, update.state.structure
        examples = float(update.num_examples)
        complete = held == current
        for name, weights in update.state.weights.items():
            if complete:
                self._sums[name] += np.multiply(weights, np.float32(examples), out=self._scaled[name])
                continue
            where = _index(weights.ndim, self._layout.indices(name, current, held))
            self._sums[name][where] += weights * np.float32(examples)
            self._coverage(name)[where] += examples
        self._held_by_all += examples if complete else 0.0
        for group in current.masks:
            self._assigned[group][current.positions(update.assigned, group)] += examples
            kept = current.positions(held, group)
            self._kept[group][kept] += examples
            self._scores[group][kept] += update.state.scores[group] * np.float64(examples)

    def shares(self) -> Shares:
        """Returns, per kept unit of the global structure, the share of its assignees that kept it.

        A unit that no participant was assigned has share 1: nobody judged it.
        """
        return {
            group: np.divide(self._kept[group], given, out=np.ones_like(given), where=given > 0)
            for group, given in self._assigned.items()
        }

    def votes(self) -> Shares:
        """Returns, per unit of the full model, the share of its assignees that kept it.

        NaN where nobody judged: the unit was gone before, or no participant was assigned it.
        """
        votes = {}
        for group, share in self.shares().items():
            mask = self._state.structure.masks[group]
            votes[group] = np.full(len(mask), np.nan)
            votes[group][mask] = np.where(self._assigned[group] > 0, share, np.nan)
        return votes

    def mean(self, structure: Structure) -> ModelState:
        """Returns the model of a sub-structure: means over holders; entries nobody held keep their value."""
        mean = {}
        for name, old in self._state.weights.items():
            held = self._held.get(name, 0.0) + self._held_by_all
            total = np.divide(self._sums[name], held, out=old.astype(np.float64), where=np.asarray(held) > 0)
            mean[name] = total.astype(np.float32)
        return ModelState(mean, self._state.structure, self._mean_scores()).cut(self._layout, structure)

    def _mean_scores(self) -> dict[str, NDArray[np.float32]]:
        """Returns the mean score over a unit's assignees, 0 for those that pruned it."""
        means = {}
        for group, given in self._assigned.items():
            old = self._state.scores[group].astype(np.float64)
            mean = np.divide(self._scores[group], given, out=old, where=given > 0)
            means[group] = mean.astype(np.float32)
        return means

    def _coverage(self, name: str) -> NDArray[np.float64]:
        if name not in self._held:
            self._held[name] = np.zeros(self._sums[name].shape)
        return self._held[name]


def _index(ndim: int, takes: tuple[tuple[int, NDArray[np.intp]], ...]) -> Any:
    """Returns the index expression that addresses the positions to take along each axis."""
    if not takes:
        return ...
    if len(takes) == 1:
        axis, positions = takes[0]
        return (*(slice(None) for _ in range(axis)), positions)
    chosen = dict(takes)
    mesh = iter(np.ix_(*chosen.values()))
    return tuple(next(mesh) if axis in chosen else slice(None) for axis in range(ndim))


def intersection(shares: Shares, structure: Structure, bounds: Mapping[str, int], quorum: float) -> Structure:
    """Mask intersection: a unit survives when at least ``quorum`` of its assignees kept it.

    With quorum 1 and every client assigned everything, that is the intersection of the clients' masks. Where
    fewer than ``bounds[group]`` units would survive, the most-kept ones are taken back, ties to the lower
    index; units that *every* assignee pruned are never taken back. With a smaller quorum, more than
    ``bounds[group]`` units may survive.

    Args:
        shares: Per kept unit of ``structure``, the share of its assignees (by examples) that kept it.
        structure: The global structure at the start of the round.
        bounds: Per group, the number of units below which the group should not fall this round.
        quorum: The share to survive, in (0, 1].
    """
    masks = {}
    for group, mask in structure.masks.items():
        share = shares[group]
        # Shares are sums of example counts divided by each other: one ulp must not cost a unit its place.
        num_surviving = int((share >= quorum - 1e-12).sum())
        num_wanted = max(num_surviving, min(bounds[group], int((share > 0).sum())))
        best = np.argsort(-share, kind="stable")[:num_wanted]
        masks[group] = np.zeros_like(mask)
        masks[group][structure.kept(group)[best]] = True
    return Structure(masks)
