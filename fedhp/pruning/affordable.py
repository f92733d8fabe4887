"""Which units to keep within a cost that all groups share: a knapsack, whose prices fall as it is packed."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from fedhp.model.structure import Structure

Counts = Mapping[str, int]
Cost = Callable[[Counts], float]

# Of what is to go, so much goes before prices are asked anew: a unit's price is that of the layers that it
# meets, and these become narrower.
_STEP = 0.25


def affordable(
    importance: Mapping[str, NDArray[np.floating]],
    within: Structure,
    floors: Counts,
    cost: Cost,
    allowed: float,
) -> Structure:
    """Returns the units that are worth most, of those that a cost allows.

    The unit that is worth least for its price goes first, whatever its group. Costs of layers are products of
    widths, so that the price of a unit, what the network costs less without it, falls as other groups shrink;
    it is asked again and again. Where the cost is a sum over units, this is the greedy packing of a knapsack,
    which is at most one unit's worth below the best (Dantzig 1957, Operations Research 5).

    Args:
        importance: Per group, what each kept unit is worth, of shape ``(units,)``, comparable over groups.
        within: The units that there are.
        floors: Units to keep per group at least.
        cost: What a network of so many units costs.
        allowed: What it may cost; where even the floors cost more, these are what is left.
    """
    counts = dict(within.counts)
    # The least important first; of equal ones, the later.
    order = {g: np.lexsort((-np.arange(len(worth)), worth)) for g, worth in importance.items()}
    whole = dict(counts)
    while (now := cost(counts)) > allowed:
        prices = {g: now - cost({**counts, g: n - 1}) for g, n in counts.items() if n > floors[g]}
        if not prices:
            break
        for group, number in _going(importance, order, whole, counts, floors, prices, now - allowed).items():
            counts[group] -= number
    masks = {}
    for group, mask in within.masks.items():
        masks[group] = np.zeros_like(mask)
        masks[group][within.kept(group)[order[group][whole[group] - counts[group] :]]] = True
    return Structure(masks)


def _going(
    importance: Mapping[str, NDArray[np.floating]],
    order: Mapping[str, NDArray[np.intp]],
    whole: Counts,
    counts: Counts,
    floors: Counts,
    prices: Mapping[str, float],
    excess: float,
) -> dict[str, int]:
    """Returns how many units of each group go next, at these prices."""
    groups = [group for group in prices if prices[group] > 0] or [*prices]
    worths = [
        importance[g][order[g][whole[g] - counts[g] : whole[g] - floors[g]]] / max(prices[g], 1e-9)
        for g in groups
    ]
    of = np.repeat(np.arange(len(groups)), [len(worth) for worth in worths])
    first = np.argsort(np.concatenate(worths), kind="stable")
    saved = np.cumsum(np.array([prices[g] for g in groups])[of[first]])
    number = max(1, int(np.searchsorted(saved, _STEP * excess, side="right")))
    return dict(zip(groups, np.bincount(of[first[:number]], minlength=len(groups)).tolist(), strict=True))
