"""Reconciliation of sparse networks: clients hold as many weights as they were sent, and not always the same.

A client votes on the weights that it could have held: those that it was sent, and those that it has grown.
The strategy's rule says which of them pass. Then the server brings every layer back to the number of weights
that it had: of too many the largest stay, and too few are made up by the largest of those that any client
holds, as FedDST's server does by magnitude (Bibikar et al. 2022, arXiv 2112.09824).
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.aggregation.fedtiny import moved
from fedhp.aggregation.reconcile import MEANS, Reconciliation, Shares
from fedhp.aggregation.weighted_sums import WeightedSums
from fedhp.model.layout import Layout
from fedhp.model.state import ModelState, Weights
from fedhp.model.structure import Structure
from fedhp.training.update import Update

_Counts = Mapping[str, NDArray[np.float64]]


class SparseReconciliation(Reconciliation):
    """Running sums over the updates of one round, over all weights that there could be.

    Args:
        layout: The wiring of a network that holds a part of its weights.
        state: The global model at the start of the round.
    """

    def __init__(self, layout: Layout, state: ModelState) -> None:
        self._before, self._state = state.structure, state.over(layout)
        self._weights = WeightedSums(layout, self._state.structure)
        self._examples, self._gradients = 0.0, dict[str, NDArray[np.float64]]()

        def nothing() -> _Counts:
            return {group: np.zeros(width) for group, width in layout.widths.items()}

        self._given, self._held, self._numbers = nothing(), nothing(), nothing()

    def add(self, update: Update) -> None:
        """Adds one update."""
        held, examples = update.state.structure, float(update.num_examples)
        self._weights.add(held, update.state.weights, examples)
        self._examples += examples
        for group, mask in held.masks.items():
            self._given[group][mask | update.assigned.masks[group]] += examples
            self._held[group][mask] += examples
            self._numbers[group][mask] += 1
        for layer, told in update.gradients.items():
            self._gradients.setdefault(layer, np.zeros(len(held.masks[layer])))
            self._gradients[layer][told.places] += examples * told.values

    @property
    def keepers(self) -> Mapping[str, NDArray[np.int64]]:
        """Per weight, how many clients hold it."""
        return {group: numbers.astype(np.int64) for group, numbers in self._numbers.items()}

    def shares(self) -> Shares:
        """Returns, per weight, the share by examples of those that could have held it and do.

        A weight of the global model that no participant was sent has share 1: nobody judged it. One that
        nobody has, and nobody was sent, has 0.
        """
        return {
            group: np.divide(
                self._held[group], given, out=self._before.masks[group].astype(np.float64), where=given > 0
            )
            for group, given in self._given.items()
        }

    def votes(self) -> Shares:
        """Returns nothing: there are as many as there are weights, of which a record keeps the structure."""
        return {}

    def mean(self, uncovered: str = "keep") -> ModelState:
        """Returns the model of all weights that the updates make: see `Reconciliation.mean`."""
        rule, sums = MEANS[uncovered], self._weights.totals()
        everyone = np.array(self._examples)
        mean = {
            name: rule(sums[name], self._held.get(name, everyone), self._examples, old).astype(np.float32)
            for name, old in self._state.weights.items()
        }
        return ModelState(mean, self.structure)

    def scores(self) -> dict[str, NDArray[np.float32]]:
        """Returns nothing: single weights have none."""
        return {}

    def agreed(self, quorum: float, bounds: Mapping[str, int]) -> Structure:
        """See `Reconciliation.agreed`; each layer keeps the number of its weights, whatever the bounds."""
        return self._chosen({group: share >= quorum - 1e-12 for group, share in self.shares().items()})

    def elected(self, min_votes: int, bounds: Mapping[str, int]) -> Structure:
        """See `Reconciliation.elected`; each layer keeps the number of its weights, whatever the bounds."""
        return self._chosen({group: numbers >= min_votes for group, numbers in self._numbers.items()})

    def moved(self, numbers: Mapping[str, int]) -> Structure:
        """Returns the structure before the round with so many weights of these layers elsewhere.

        See `fedhp.aggregation.fedtiny.moved`: by the means, and by the gradients that clients tell.
        """
        masks = dict(self._before.masks)
        for layer, number in numbers.items():
            gradients = self._gradients.get(layer, np.zeros(len(masks[layer])))
            masks[layer] = moved(masks[layer], self._means[layer], gradients, number)
        return Structure(masks)

    def _chosen(self, passes: Mapping[str, NDArray[np.bool_]]) -> Structure:
        """Returns as many weights of each layer as it had: those that pass, and the largest, first.

        Of equals the first stays.
        """
        masks = {}
        for group, share in self.shares().items():
            size, is_there = np.abs(self._means[group]), share > 0
            order = np.lexsort((-size, ~is_there, ~(passes[group] & is_there)))
            masks[group] = np.zeros(len(size), np.bool_)
            masks[group][order[: self._before.counts[group]]] = True
        return Structure(masks)

    @cached_property
    def _means(self) -> Weights:
        """Per parameter, the mean over the clients that hold an entry."""
        return self.mean().weights

    def merge(self, sums: Any) -> None:
        """Nobody else adds up such updates.

        Raises:
            TypeError: Always.
        """
        raise TypeError("updates of sparse networks are added one by one")
