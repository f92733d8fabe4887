"""How a model's groups shrink together: the families of unit counts."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedhp.model.layout import Layout


@dataclass(frozen=True, eq=False)
class Shape:
    """How a model's groups shrink together: the one family of unit counts that fedhp ever chooses from.

    At fraction f a group of n units keeps ``n * f ** share``, where ``share`` is what the group weighs in
    the training memory, 1 for the heaviest. So what costs memory goes, and a narrow layer that costs next
    to nothing does not become the bottleneck, as it would if all groups shrank alike: an MLP
    784-300-100-10 cut to a tenth keeps 377-58-66 rather than 247-94-31. Our choice; the paper's rule is not
    available to us.

    Attributes:
        layout: The model's wiring; its floors bound every group from below.
        shares: Per group, its exponent, above 0 and at most 1.
    """

    layout: Layout
    shares: Mapping[str, float]

    def counts(self, fraction: float, top: Mapping[str, int]) -> dict[str, int]:
        """Returns the unit counts at a fraction of ``top``, floors respected."""
        return {
            group: max(
                min(self.layout.floors[group], count),
                int(fraction ** self.shares[group] * count + 1e-9),
            )
            for group, count in top.items()
        }

    def largest(
        self, top: Mapping[str, int], fits: Callable[[Mapping[str, int]], bool]
    ) -> dict[str, int] | None:
        """Returns the largest unit counts below ``top`` that satisfy ``fits``, or None if none do.

        Args:
            top: The unit counts to start from.
            fits: A predicate on unit counts that stays true when units are taken away.
        """
        if not fits(self.counts(0.0, top)):
            return None
        # The counts change at these fractions only, so that the bisection misses no member of the family.
        steps = sorted(
            (count / most) ** (1 / self.shares[group])
            for group, most in top.items()
            for count in range(most + 1)
        )
        low, high = 0, len(steps) - 1
        while low < high:
            middle = (low + high + 1) // 2
            if fits(self.counts(steps[middle], top)):
                low = middle
            else:
                high = middle - 1
        return self.counts(steps[low], top)


def at_level(layout: Layout, level: float) -> dict[str, int]:
    """Returns the unit counts at a share of every group's width, rounded up, floors respected."""
    return {
        group: max(layout.floors[group], math.ceil(level * width - 1e-9))
        for group, width in layout.widths.items()
    }
