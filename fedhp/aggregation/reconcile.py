"""Reconciliation: many updates of different structures -> one global model.

Two questions, kept apart: *which units survive* is a rule over the clients' votes (`intersection`,
`majority`), and *what their weights are* is, for every entry, a mean over the clients (`MEANS`). Both need
only running sums, so that the server holds a few models' worth of numbers however many clients reply.

Every unit has one of three states at a client: not assigned, assigned and kept, assigned and pruned. A client
votes only on units that it was assigned: a small budget never votes a unit out, only judgement does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.aggregation.holders import Coverage, Holding
from fedhp.aggregation.weighted_sums import Totals, WeightedSums
from fedhp.model.layout import Layout
from fedhp.model.state import ModelState, Weights
from fedhp.model.structure import Structure
from fedhp.training.update import Update

Shares = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Sums:
    """What the updates of some clients come to, small enough to be sent: for `Reconciliation.merge`.

    Attributes:
        structure: The structure of the sums, which contains what each of the clients was assigned.
        weights: Per parameter, compact, the sum over the clients that hold an entry, times their examples.
        scores: Per group, that of its units' scores.
        holdings: Who of them was assigned what, and held it in the end.
    """

    structure: Structure
    weights: Totals
    scores: Mapping[str, NDArray[np.float64]]
    holdings: tuple[Holding, ...]


class Reconciliation:
    """Running sums over the updates of one round.

    The order of `add` and `merge` fixes the result to the last bit, and callers keep one; counts are exact in
    any.

    Args:
        layout: The model's wiring.
        state: The global model at the start of the round.
    """

    def __init__(self, layout: Layout, state: ModelState) -> None:
        self._state = state
        self._weights = WeightedSums(layout, state.structure)
        self._coverage = Coverage(layout, state.structure)
        self._examples = 0.0
        self._scores = {group: np.zeros(count) for group, count in state.structure.counts.items()}

    @property
    def structure(self) -> Structure:
        """The global structure at the start of the round."""
        return self._state.structure

    def add(self, update: Update) -> None:
        """Adds one update, whose structures must be contained in the global one."""
        held, examples = update.state.structure, float(update.num_examples)
        self._weights.add(held, update.state.weights, examples)
        self._add_scores(held, update.state.scores, examples)
        self._count(Holding(update.assigned, held, examples))

    def merge(self, sums: Sums) -> None:
        """Adds the updates that somebody else has added up, over the same structure or a part of it."""
        self._weights.add(sums.structure, sums.weights)
        self._add_scores(sums.structure, sums.scores, 1.0)
        for holding in sums.holdings:
            self._count(holding)

    def sums(self) -> Sums:
        """Returns what was added, of `fedhp.aggregation.holders.BLOCK` different structures at most."""
        holdings = tuple(self._coverage.waiting.values())
        assert sum(one.examples for one in holdings) == self._examples, "some were counted already"
        return Sums(self.structure, self._weights.totals(), self._scores, holdings)

    def _count(self, holding: Holding) -> None:
        self._coverage.add(holding)
        self._examples += holding.examples

    def _add_scores(self, held: Structure, scores: Mapping[str, NDArray[Any]], examples: float) -> None:
        whole = held == self.structure
        for group, sums in self._scores.items():
            scaled = np.multiply(scores[group], examples, dtype=np.float64)
            sums[slice(None) if whole else self.structure.positions(held, group)] += scaled

    def agreed(self, quorum: float, bounds: Mapping[str, int]) -> Structure:
        """Returns the units that enough of their assignees kept: see `intersection`."""
        return intersection(self.shares(), self.structure, bounds, quorum)

    def elected(self, min_votes: int, bounds: Mapping[str, int]) -> Structure:
        """Returns the best of the units that enough clients kept: see `majority`."""
        return majority(self.keepers, self.scores(), self.structure, bounds, min_votes)

    @property
    def keepers(self) -> Mapping[str, NDArray[np.int64]]:
        """Per kept unit of the global structure, how many clients kept it."""
        return {group: counts[2].astype(np.int64) for group, counts in self._coverage.units().items()}

    def shares(self) -> Shares:
        """Returns, per kept unit of the global structure, the share of its assignees that kept it.

        A unit that no participant was assigned has share 1: nobody judged it.
        """
        return {
            group: np.divide(kept, given, out=np.ones_like(given), where=given > 0)
            for group, (given, kept, _) in self._coverage.units().items()
        }

    def votes(self) -> Shares:
        """Returns, per unit of the full model, the share of its assignees that kept it.

        NaN where nobody judged: the unit was gone before, or no participant was assigned it.
        """
        votes, units = {}, self._coverage.units()
        for group, share in self.shares().items():
            mask = self._state.structure.masks[group]
            votes[group] = np.full(len(mask), np.nan)
            votes[group][mask] = np.where(units[group][0] > 0, share, np.nan)
        return votes

    def mean(self, uncovered: str = "keep") -> ModelState:
        """Returns the model of the global structure that the updates make.

        Args:
            uncovered: What entries count for that a client did not hold: a name in `MEANS`.
        """
        rule = MEANS[uncovered]
        sums, held = self._weights.totals(), self._coverage.held()
        mean = {
            name: rule(sums[name], held[name], self._examples, old).astype(np.float32)
            for name, old in self._state.weights.items()
        }
        return ModelState(mean, self._state.structure, self.scores())

    def scores(self) -> dict[str, NDArray[np.float32]]:
        """Returns the mean score over a unit's assignees, 0 for those that pruned it."""
        means = {}
        for group, (given, *_) in self._coverage.units().items():
            old = self._state.scores[group].astype(np.float64)
            mean = np.divide(self._scores[group], given, out=old, where=given > 0)
            means[group] = mean.astype(np.float32)
        return means


def _over_holders(total: Any, held: Any, everyone: float, otherwise: Any) -> Any:
    out = np.array(otherwise, np.float64)
    return np.divide(total, held, out=out, where=np.broadcast_to(held > 0, out.shape))


# From the sum over an entry's holders, the holders' examples, everyone's examples and the entry's value
# before the round to its value after it.
MEANS: dict[str, Callable[[Any, Any, float, Any], Any]] = {
    # Over the holders; an entry that nobody held stays, as in HeteroFL (Diao et al. 2021, arXiv 2010.01264).
    "keep": _over_holders,
    # The same, but what nobody held is lost.
    "zero": lambda total, held, everyone, old: _over_holders(total, held, everyone, np.zeros_like(old)),
    # Whoever did not hold an entry returns it as it was: FedMP's residual recovery (Jiang et al. 2022).
    "residual": lambda total, held, everyone, old: (total + (everyone - held) * old) / everyone,
    # Whoever did not hold an entry counts as having sent a zero: averaging that knows nothing of structures.
    "zero_filled": lambda total, held, everyone, old: total / everyone,
}


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


def majority(
    votes: Mapping[str, NDArray[np.int64]],
    scores: Weights,
    structure: Structure,
    bounds: Mapping[str, int],
    min_votes: int,
) -> Structure:
    """FedDST's rule for units (Bibikar et al. 2022, arXiv 2112.09824): enough votes, then cut to the target.

    A unit is a candidate when at least ``min_votes`` clients kept it, however many examples they have; of
    the candidates, the ``bounds[group]`` of the highest mean score survive. Where there are fewer, those with
    most votes make up the number. In the paper single weights are voted on, and clients grow some back; here
    whole units go, for good. As in the paper, a client that was not assigned a unit does not vote for it, so
    that small budgets do vote units out.

    Args:
        votes: Per kept unit of ``structure``, the number of clients that kept it.
        scores: Per kept unit, its mean score.
        structure: The global structure at the start of the round.
        bounds: Per group, how many units survive.
        min_votes: Clients that a unit needs.
    """
    masks = {}
    for group, mask in structure.masks.items():
        order = np.lexsort((-scores[group], -np.minimum(votes[group], min_votes)))
        masks[group] = np.zeros_like(mask)
        masks[group][structure.kept(group)[order[: bounds[group]]]] = True
    return Structure(masks)
