"""Shrinkage: how far devices' models differ for good, layer by layer, and what of that each keeps.

A layer's weights at a device are taken as drawn around the fleet's, ``theta_i ~ N(phi, tau^2)``, with a
variance of the layer's own: the hierarchical model of Chen et al. 2020 (Modular Meta-Learning with Shrinkage,
arXiv 1909.05557), in which a layer of small variance is the same for all, and one of large variance is each
one's own.

The rest is our reading. The paper learns the variances on validation samples, by gradients through the
training. Here devices train on either half of their samples in turn (`fedhp.training.methods.halves`): what
comes back is taken as ``theta_i + e``, ``e ~ N(0, s^2)``, and of a device's two models what they have in
common is ``tau^2``, and what they have not is ``s^2``, the moments of a one-way layout. And the paper keeps
the prior in the loss of the device; here the server applies it to what a device returned, as the posterior
mean.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedhp.aggregation.personal import Personal, layers_of
from fedhp.aggregation.reconcile import Reconciliation
from fedhp.model.layout import Layout
from fedhp.model.state import ModelState, Weights
from fedhp.training.update import Update

# Of two devices the difference is one number an entry: a variance of as little is a guess.
_FEWEST = 3
# A device that trains on all of its samples has seen both halves: its noise is that of their mean.
_HALVES = 2

_Sum = NDArray[np.float64] | float


class ShrinkageReconciliation(Reconciliation):
    """Running sums over a round's updates, and over how devices differ, now and before.

    Args:
        layout: The model's wiring.
        state: The fleet's model at the start of the round.
        before: What was known of the devices then.
        halves: The round's number, where devices train on halves; None where they do no longer.
    """

    def __init__(self, layout: Layout, state: ModelState, before: Personal, halves: int | None) -> None:
        super().__init__(layout, state)
        self._fleet, self._before, self._halves = state.weights, before, halves
        self._models = dict[int, Weights]()
        self._layers = layers_of(state.weights)
        self._pairs = {name: _Pairs() for name in state.weights}

    def add(self, update: Update) -> None:
        """Adds an update; of one that is not of the whole model, nothing is known of its device."""
        super().add(update)
        if update.state.structure != self.structure:
            return
        client, weights, before = update.client, update.state.weights, self._before
        self._models[client] = weights
        if self._halves is None or before.rounds.get(client) != self._halves - 1:
            return  # longer ago, it may be of the same half
        last = before.models[client]
        for name, fleet in self._fleet.items():
            now, then = (array.astype(np.float64) - fleet for array in (weights[name], last[name]))
            self._pairs[name] = self._pairs[name].with_one(now, then)

    def personal(self) -> Personal:
        """Returns what is known of the devices after the round; factors stay where too few came twice."""
        models = {**self._before.models, **self._models}
        if self._halves is None:
            return Personal(models, factors=self._before.factors)
        rounds = {**self._before.rounds, **dict.fromkeys(self._models, self._halves)}
        found = {layer: self._factor(names) for layer, names in self._layers.items()}
        known = {layer: factor for layer, factor in found.items() if factor is not None}
        return Personal(models, rounds, {**self._before.factors, **known})

    def _factor(self, names: Iterable[str]) -> float | None:
        pairs = [self._pairs[name] for name in names]
        if min(one.number for one in pairs) < _FEWEST:
            return None
        moments = [one.moments() for one in pairs]
        between, total = sum(one[0] for one in moments), sum(one[1] for one in moments)
        return factor_of(between, total)


def factor_of(between: float, total: float) -> float:
    """Returns the factor of a layer, from the covariance of two halves' models and their variance.

    With the estimates ``tau^2 = between`` and ``s^2 = total - between``; 1 where nothing is in common.
    """
    if between <= 0:
        return 1.0
    noise = max(total - between, 0.0)
    return noise / (noise + _HALVES * between)


@dataclass(frozen=True)
class _Pairs:
    """Sums over devices that came twice, of how far entries were from the fleet's, now and before."""

    number: int = 0
    now: _Sum = 0.0
    then: _Sum = 0.0
    products: float = 0.0
    squares: float = 0.0

    def with_one(self, now: NDArray[np.float64], then: NDArray[np.float64]) -> "_Pairs":
        squares = float(np.vdot(now, now) + np.vdot(then, then)) / 2
        products = float(np.vdot(now, then))
        return _Pairs(
            self.number + 1,
            self.now + now,
            self.then + then,
            self.products + products,
            self.squares + squares,
        )

    def moments(self) -> tuple[float, float]:
        """Returns, over entries and times the devices, the covariance of now and then, and the variance."""
        between = self.products - float(np.vdot(self.now, self.then)) / self.number
        means = float(np.vdot(self.now, self.now) + np.vdot(self.then, self.then)) / 2
        return between, self.squares - means / self.number
