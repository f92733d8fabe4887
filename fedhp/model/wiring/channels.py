"""Identities of channels: which are the same unit, and which units make a group.

An axis is an array with the identity of every entry. Identities are made equal as a network's wiring demands
(a union-find), and what ends up equal is one unit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedhp.model.axes import Axis, AxisRef
from fedhp.model.wiring.identities import Channels

_Unit = tuple[str, int]  # a group, and a number there

FIXED = 0  # the identity of what can never be cut


def fixed(size: int) -> Channels:
    """Returns an axis that can never be cut."""
    return np.full(size, FIXED)


class Identities:
    """All channels of a network, and which of them are the same."""

    def __init__(self) -> None:
        self._parent = [FIXED]
        self._origin = [""]

    def new(self, origin: str, size: int) -> Channels:
        """Returns an axis of new channels, made by the layer ``origin``."""
        first = len(self._parent)
        self._parent += range(first, first + size)
        self._origin += [origin] * size
        return np.arange(first, first + size)

    def equate(self, one: Channels, other: Channels) -> None:
        """Makes two axes one, entry by entry; of two identities the older stays, the fixed one above all."""
        for a, b in zip(one.ravel(), other.ravel(), strict=True):
            low, high = sorted((self._root(int(a)), self._root(int(b))))
            self._parent[high] = low

    def fix(self, channels: Channels) -> None:
        """Makes all of these ones that can never be cut."""
        unique = np.unique(channels)
        self.equate(fixed(len(unique)), unique)

    def roots(self, channels: Channels) -> Channels:
        """Returns the same identity for all that are equal by now, of the same shape."""
        unique, places = np.unique(channels, return_inverse=True)
        roots = np.array([self._root(int(identity)) for identity in unique], np.intp)
        return roots[places].reshape(channels.shape)

    def equate_blocks(self, channels: Channels, num_blocks: int) -> Channels:
        """Makes each of these consecutive blocks one unit; returns one identity per block."""
        blocks = channels.reshape(num_blocks, -1)
        self.equate(np.repeat(blocks[:, 0], blocks.shape[1]), channels)
        return blocks[:, 0]

    def groups(self) -> "Groups":
        """Returns the groups that all units make, once no more identities are made equal."""
        units = self._units()
        widths: dict[str, int] = {}
        for group, number in units.values():
            widths[group] = max(widths.get(group, 0), number + 1)
        return Groups(widths, [units.get(self._root(identity)) for identity in range(len(self._parent))])

    def _root(self, identity: int) -> int:
        while self._parent[identity] != identity:
            self._parent[identity] = self._parent[self._parent[identity]]
            identity = self._parent[identity]
        return identity

    def _units(self) -> dict[int, _Unit]:
        """Returns every unit by its identity.

        Units that were made by the same layers are a group. One that is alone in its group is never cut.
        """
        makers: dict[int, dict[str, None]] = {}
        for identity, origin in enumerate(self._origin):
            makers.setdefault(self._root(identity), {})[origin] = None
        del makers[FIXED]
        groups: dict[tuple[str, ...], list[int]] = {}
        for root, origins in makers.items():
            groups.setdefault(tuple(origins), []).append(root)
        names = _names([origins for origins, roots in groups.items() if len(roots) > 1])
        return {
            root: (names[origins], number)
            for origins, roots in groups.items()
            if origins in names
            for number, root in enumerate(roots)
        }


@dataclass(frozen=True)
class Groups:
    """Groups of units.

    Attributes:
        widths: The number of units of every group.
        units: The unit of every identity; None where it is never cut.
    """

    widths: Mapping[str, int]
    units: Sequence[_Unit | None]

    def run(self, axis: Channels) -> Axis | None:
        """Says an axis as runs of groups and of fixed entries.

        Returns:
            The runs; None where the axis takes a group's units otherwise than all in order.
        """
        return _runs([self.units[int(identity)] for identity in axis], self.widths)


def _names(groups: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Names each group after the first layer that makes its units, or the next where that is taken."""
    names: dict[tuple[str, ...], str] = {}
    for origins in groups:
        numbered = (f"{origins[0]}-{number}" for number in range(2, len(groups) + 2))
        taken = {*names.values(), "inputs"}  # which are the entries of a sample, in models that cut them
        names[origins] = next(name for name in (*origins, *numbered) if name not in taken)
    return names


def _runs(entries: Sequence[_Unit | None], widths: Mapping[str, int]) -> Axis | None:
    runs: list[AxisRef] = []
    start = 0
    while start < len(entries):
        first = entries[start]
        span = next((n for n, entry in enumerate(entries[start:]) if entry != first), len(entries) - start)
        run = AxisRef(None if first is None else first[0], span)
        stop = start + span * (1 if run.group is None else widths[run.group])
        if run.group is not None:
            whole = [(run.group, unit) for unit in range(widths[run.group]) for _ in range(span)]
            if list(entries[start:stop]) != whole:
                return None
        runs.append(run)
        start = stop
    return () if all(run.group is None for run in runs) else tuple(runs)
