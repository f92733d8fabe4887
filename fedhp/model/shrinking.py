"""How a model's groups shrink together: the families of unit counts."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedhp.model.layout import Layout

Counts = Mapping[str, int]
Fits = Callable[[Counts], bool]


@dataclass(frozen=True, eq=False)
class Shape:
    """How a model's groups shrink together: the one family of unit counts that fedhp ever chooses from.

    At fraction f a group of n units keeps ``n * f ** share``, where ``share`` is what the group weighs in
    the training memory, 1 for the heaviest. So what costs memory goes, and a narrow layer that costs next
    to nothing does not become the bottleneck, as it would if all groups shrank alike: an MLP
    784-300-100-10 cut to a tenth keeps 377-58-66 rather than 247-94-31. Our choice; the paper's rule is not
    available to us.

    Runtimes compute channels in blocks. A group that has a step keeps a multiple of it, or of the largest of
    its halves that the group still has units for; see `largest`.

    Attributes:
        layout: The model's wiring; its floors bound every group from below.
        shares: Per group, its exponent, above 0 and at most 1.
        steps: Per group whose counts are rounded, of what they are multiples.
    """

    layout: Layout
    shares: Mapping[str, float]
    steps: Mapping[str, int] = field(default_factory=dict)

    def counts(self, fraction: float, top: Counts) -> dict[str, int]:
        """Returns the unit counts at a fraction of ``top``, floors respected."""
        return {
            group: max(
                min(self.layout.floors[group], count),
                int(fraction ** self.shares[group] * count + 1e-9),
            )
            for group, count in top.items()
        }

    def largest(self, top: Counts, fits: Fits) -> dict[str, int] | None:
        """Returns the largest unit counts below ``top`` that satisfy ``fits``, or None if none do.

        Groups with steps are rounded down from the largest counts that fit. What that leaves goes to them
        again: the group that rounding made smallest, beside what it was, is rounded up instead, and so the
        others in turn, where that fits. The groups without steps then grow together into the rest. None
        grows beyond ``top``, whose counts may stay as they are.

        Args:
            top: The unit counts to start from.
            fits: A predicate on unit counts that stays true when units are taken away.
        """
        whole = self._largest(top, fits)
        if whole is None or not self.steps:
            return whole
        down = {group: self._down(group, whole[group], top[group]) for group in self.steps}
        counts = {**whole, **down}
        for group in sorted(down, key=lambda group: counts[group] / whole[group]):
            raised = {**counts, group: self._up(group, counts[group], top[group])}
            if counts[group] < whole[group] and fits(raised):
                counts = raised
        rounded = {group: counts[group] for group in self.steps}
        return counts if len(rounded) == len(top) else self._largest(top, fits, rounded)

    def _down(self, group: str, count: int, top: int) -> int:
        step = self.steps[group]
        while step > count:
            step //= 2
        return count if count == top else max(count - count % step, min(self.layout.floors[group], count))

    def _up(self, group: str, count: int, top: int) -> int:
        """Returns what is next above a rounded count: from a half, its double."""
        step = self.steps[group]
        while step > count:
            step //= 2
        return min(count - count % step + step, top)

    def _largest(self, top: Counts, fits: Fits, rounded: Counts | None = None) -> dict[str, int] | None:
        """Returns the largest of the family that fits, beside groups whose counts are given."""
        rounded = rounded or {}
        if not fits({**self.counts(0.0, top), **rounded}):
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
            if fits({**self.counts(steps[middle], top), **rounded}):
                low = middle
            else:
                high = middle - 1
        return {**self.counts(steps[low], top), **rounded}


def block_steps(layout: Layout, channels: int) -> dict[str, int]:
    """Returns of how many units the groups of convolutions keep multiples, to keep multiples of channels.

    Args:
        layout: The model's wiring. Weights of convolutions are those with three axes and more: outputs,
            inputs, and the sides of the kernel.
        channels: What the numbers of channels are to be multiples of. A unit may be several channels.
    """
    spans = {
        place.group: place.span
        for name, shape in layout.shapes.items()
        if len(shape) > 2
        for place in layout.places(name, layout.widths)
    }
    steps = {group: channels // math.gcd(channels, spans[group]) for group in layout.widths if group in spans}
    return {group: step for group, step in steps.items() if step > 1}


def at_level(layout: Layout, level: float) -> dict[str, int]:
    """Returns the unit counts at a share of every group's width, rounded up, floors respected."""
    return {
        group: max(layout.floors[group], math.ceil(level * width - 1e-9))
        for group, width in layout.widths.items()
    }
