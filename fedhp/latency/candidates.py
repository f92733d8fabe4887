"""The widths that a target in milliseconds chooses from: those to which pruning shrinks, rounded or not."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fedhp.latency.work import Counts
from fedhp.model.shrinking import Shape, block_steps

_CHANNELS = (1, 4, 8, 16)
_MEASURED, _CONSIDERED = 9, 250  # sizes, for each rounding


class Candidate(NamedTuple):
    """Widths, and how they came about.

    Attributes:
        counts: The units that each group keeps.
        channels: Of what the numbers of channels are multiples.
        num_parameters: Of such a network.
    """

    counts: Counts
    channels: int
    num_parameters: int

    @property
    def said(self) -> str:
        """Its widths, for people."""
        return ", ".join(f"{group} {count}" for group, count in self.counts.items())


def to_measure(shape: Shape) -> list[Candidate]:
    """Returns the networks that a model of latency is fitted to, from the full one to the smallest."""
    smallest = shape.layout.smallest()
    found = list(_family(shape, _sizes(shape, _MEASURED)))
    if smallest not in [one.counts for one in found]:
        found.append(Candidate(smallest, 1, shape.layout.num_parameters(smallest)))
    return found


def at_compression(shape: Shape, compression: float) -> list[Candidate]:
    """Returns the networks of one size, rounded or not.

    Args:
        shape: How groups shrink together.
        compression: Parameters of the full model for one of theirs.
    """
    return list(_family(shape, [int(shape.layout.num_parameters(shape.layout.widths) / compression)]))


def to_choose_from(shape: Shape) -> list[Candidate]:
    """Returns the networks that may be chosen, those with the most parameters first."""
    found = _family(shape, _sizes(shape, _CONSIDERED))
    return sorted(found, key=lambda one: one.num_parameters, reverse=True)


def _sizes(shape: Shape, number: int) -> list[int]:
    """Returns so many numbers of parameters, evenly spread in proportion."""
    layout = shape.layout
    most, least = (layout.num_parameters(counts) for counts in (layout.widths, layout.smallest()))
    return np.geomspace(most, least, number).round().astype(int).tolist()


def _family(shape: Shape, sizes: Sequence[int]) -> Iterator[Candidate]:
    """Yields the different networks of these sizes, or just below, with each rounding."""
    layout, seen = shape.layout, set()
    for channels in _CHANNELS:
        stepped = Shape(layout, shape.shares, block_steps(layout, channels))
        for size in sizes:
            counts = stepped.largest(layout.widths, lambda c, size=size: layout.num_parameters(c) <= size)
            if counts is None or (key := tuple(counts.values())) in seen:
                continue
            seen.add(key)
            yield Candidate(counts, channels, layout.num_parameters(counts))
