"""What one step in miniature makes and frees, written down as it runs."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.costs.coefficients import Tap
from fedhp.costs.watching import Watch
from fedhp.model.layout import Layout

# To be raised when the meaning of what is kept of a step changes.
_FORMAT = 2


@dataclass(frozen=True)
class Step:
    """What there is to a step beside the network's own.

    Attributes:
        masked: Whether the logits are masked.
        smooth: Whether labels are smoothed.
        noised: Whether convolutions say noise besides.
        noisy: Whether the gradient-noise scale is looked at.
        tapped: Whether activations are looked at where layers take them in.
    """

    masked: bool = False
    smooth: bool = False
    noised: bool = False
    noisy: bool = False
    tapped: bool = False


PLAIN = Step()


@dataclass(frozen=True, eq=False)
class Played:
    """What one run of a step in miniature has made, storage by storage, in the order of their making.

    Attributes:
        sizes: The bytes of each; 0 where it is a parameter's gradient.
        ends: How many had been made when it was freed.
        owned: Whether it is the gradient of each trained parameter, or a part of it from one of several uses,
            of shape ``(storages, parameters)``.
        counters: As in `Rehearsal`.
        operations: The operations that ran, by name.
        taps: Each look at activations, with the last storage made before it.
        by: What computed, in which version.
    """

    sizes: NDArray[np.int64]
    ends: NDArray[np.intp]
    owned: NDArray[np.int64]
    counters: int
    operations: Sequence[str]
    taps: Sequence[tuple[int, Tap]]
    by: str

    def digest(self, layout: Layout, step: Step) -> str:
        """Returns a fingerprint of the network: its wiring, and all that it did in this step, in order."""
        text = hashlib.blake2b(repr((_FORMAT, self.by, layout.widths, layout.axes, step)).encode())
        for told in (self.operations, self.taps, self.sizes.tolist(), self.ends.tolist()):
            text.update(repr(told).encode())
        return text.hexdigest()[:32]

    def alive(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sums the storages' values, one row each, over those alive whenever one had been made."""
        changes = np.zeros((len(values) + 1, values.shape[1]), np.int64)
        changes[:-1] += values
        np.subtract.at(changes, self.ends, values)
        return changes.cumsum(axis=0)[:-1]


class Ledger(Watch):
    """Writes down which storages are made and freed, and when."""

    def __init__(self, existing: Sequence[Any]) -> None:
        super().__init__()
        self._sizes: list[int] = []
        self._ends: dict[int, int] = {}
        self._taps: list[tuple[int, Tap]] = []
        self._shapes: list[tuple[int, ...]] = []
        self.operations: list[str] = []
        for array in existing:
            self._see(array)
        self._num_existing = len(self._sizes)

    def _see(self, array: Any) -> None:
        super()._see(array)
        if len(self._shapes) < len(self._sizes):
            self._shapes.append(tuple(array.shape))

    def look(self, group: str, units: Any) -> None:
        """Notes a look at activations, of shape ``(batch, units, entries)``."""
        self._taps.append((len(self._sizes) - 1 - self._num_existing, Tap(group, units.shape[2])))

    def play(self, layout: Layout, gradients: Sequence[Any | None], by: str, counters: int = 0) -> Played:
        """Returns what was made since the beginning, given the trained parameters' gradients."""
        first, number = self._num_existing, len(self._sizes)
        sizes = np.array(self._sizes[first:], np.int64)
        ends = np.array([self._ends.get(entry, number) - first for entry in range(first, number)], np.intp)
        owned = np.zeros((len(sizes), len(gradients)), np.int64)
        for place, gradient in enumerate(gradients):
            if gradient is not None:
                owned[self.entry(gradient) - first, place] = 1
        for place, gradient in enumerate(gradients):
            if gradient is not None and _is_matrix(layout, layout.trained[place]):
                self._own_parts(owned, place, tuple(gradient.shape))
        sizes[owned.any(axis=1)] = 0
        return Played(sizes, ends, owned, counters, self.operations, self._taps, by)

    def _own_parts(self, owned: NDArray[np.int64], place: int, shape: tuple[int, ...]) -> None:
        """Adds what is summed to a gradient where a layer is used several times: all that has its shape.

        Samples are fewer here than units, so that no activation has it.
        """
        for entry, own in enumerate(self._shapes[self._num_existing :]):
            if own == shape and not owned[entry].any():
                owned[entry, place] = 1

    def _entered(self, entry: int, num_bytes: int) -> None:
        self._sizes.append(num_bytes)

    def _left(self, entry: int, num_bytes: int) -> None:
        self._ends[entry] = len(self._sizes)


def _is_matrix(layout: Layout, name: str) -> bool:
    """Says whether a parameter grows with two groups at once, or twice with one."""
    return sum(any(run.group is not None for run in runs) for runs in layout.runs(name)) > 1
