"""How many weights each layer of a sparse network keeps: the family of numbers of weights."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fedhp.model.shrinking import Counts, Fits, Shape

Density = Callable[[Sequence[int]], float]


def erk(shape: Sequence[int]) -> float:
    """Returns how dense a layer is beside others, by the shape of its weight: outputs, inputs, kernel.

    Erdos-Renyi-Kernel (Evci et al. 2020, arXiv 1911.11134, section 3): the sum of the sides per their
    product; of dense layers the Erdos-Renyi of Mocanu et al. 2018 (arXiv 1707.04780, equation 1).
    """
    return sum(shape) / math.prod(shape)


# From the shape of a layer's weight to its density beside those of others, by `train.sparse.densities`.
DENSITIES: Mapping[str, Density] = {"erk": erk, "uniform": lambda shape: 1.0}


@dataclass(frozen=True, eq=False)
class Densities(Shape):
    """The numbers of weights that a network's layers keep, of so many in all.

    A layer's density is ``epsilon * eagerness``, with one epsilon for all; a layer that would be denser than
    dense keeps all, and the others share the rest.

    Attributes:
        eagerness: Per layer, how dense it is beside others: `DENSITIES`.
    """

    eagerness: Mapping[str, float] = field(default_factory=dict)

    def largest(self, top: Counts, fits: Fits) -> dict[str, int] | None:
        """Returns the most weights below ``top`` that satisfy ``fits``, or None if none do."""
        low, high = 0, sum(top.values())
        if not fits(self.of(low, top)):
            return None
        while low < high:
            middle = (low + high + 1) // 2
            if fits(self.of(middle, top)):
                low = middle
            else:
                high = middle - 1
        return self.of(low, top)

    def of(self, number: float, top: Counts) -> dict[str, int]:
        """Returns how many weights each layer keeps of so many in all: one at least, ``top`` at most."""
        return {group: max(1, count) for group, count in self.shared(number, top).items()}

    def shared(self, number: float, top: Counts) -> dict[str, int]:
        """Returns the same, with none for a layer whose share is less than a weight."""
        wanted = {group: self.eagerness[group] * self.layout.widths[group] for group in top}
        left, rest, counts = float(number), sum(wanted.values()), dict[str, int]()
        # Who is dense first, as epsilon grows, comes first.
        for group in sorted(top, key=lambda group: top[group] / wanted[group]):
            share = left * wanted[group] / rest
            counts[group] = min(top[group], int(share + 1e-9))
            if share > top[group]:
                left -= top[group]
                rest -= wanted[group]
        return {group: counts[group] for group in top}
