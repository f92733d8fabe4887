"""Sums over clients' weights of different structures, entry by entry."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedhp.model.layout import Layout
from fedhp.model.structure import Structure

Totals = Mapping[str, NDArray[np.float64]]

# So many structures are summed compact, each in a buffer of its own, before they are spread over the model:
# spreading takes some times as long as adding. A fleet has few memory classes, and so few structures, unless
# every client prunes on its own.
_MOST_BUFFERS = 4


class _Sums:
    """Sums of weights of the same shapes, float64, by name."""

    def __init__(self, shapes: Mapping[str, Sequence[int]], scratch: NDArray[np.float64]) -> None:
        self.arrays = {name: np.zeros(shape) for name, shape in shapes.items()}
        wide = {name: scratch[: array.size].reshape(array.shape) for name, array in self.arrays.items()}
        self._views = {
            name: (wide[name], torch.from_numpy(wide[name]), torch.from_numpy(array))
            for name, array in self.arrays.items()
        }

    def add(self, weights: Mapping[str, NDArray[Any]], examples: float) -> None:
        for name, array in weights.items():
            if examples == 1:
                self.arrays[name] += array
            else:
                wide, widened, total = self._views[name]
                np.copyto(wide, array)
                # In one pass, where NumPy takes two; exact for whole numbers of examples.
                total.add_(widened, alpha=examples)


class _Buffer:
    """The sum of the weights of one structure, compact; of a single client's, the weights themselves."""

    def __init__(self, structure: Structure, weights: Mapping[str, NDArray[Any]], examples: float) -> None:
        self.structure = structure
        self._first = weights, examples
        self._sums: _Sums | None = None  # only of several

    def add(self, weights: Mapping[str, NDArray[Any]], examples: float, scratch: NDArray[np.float64]) -> None:
        if self._sums is None:
            self._sums = _Sums({name: array.shape for name, array in weights.items()}, scratch)
            self._sums.add(*self._first)
            self._first = {}, 0.0  # nothing is to be kept that may be a part of much more
        self._sums.add(weights, examples)

    def sums(self, scratch: NDArray[np.float64]) -> Iterator[tuple[str, NDArray[np.float64]]]:
        """Yields the sums; that of a single client's is in ``scratch``, until the next is asked for."""
        if self._sums is not None:
            yield from self._sums.arrays.items()
            return
        weights, examples = self._first
        for name, array in weights.items():
            wide = scratch[: array.size].reshape(array.shape)
            yield name, np.multiply(array, examples, out=wide, dtype=np.float64)


class WeightedSums:
    """Example-weighted sums of every entry of a model over the clients that hold it.

    Sums are float64, in which a weight of 24 bits times some thousand examples is exact, and so, but for
    weights of very different size, is a sum of thousands: what parts of a round come to by themselves adds up
    to what the whole does, to the last bit of a float32. Besides, at most four models are held at a time,
    however many are added.

    Args:
        layout: The model's wiring.
        structure: The structure that contains those of all clients.
    """

    def __init__(self, layout: Layout, structure: Structure) -> None:
        self._layout, self._structure = layout, structure
        shapes = {name: layout.shape(name, structure.counts) for name in layout.shapes}
        self._scratch = np.empty(max(map(math.prod, shapes.values())))
        self._sums = _Sums(shapes, self._scratch)
        self._buffers: dict[str, _Buffer] = {}

    def add(self, structure: Structure, weights: Mapping[str, NDArray[Any]], examples: float = 1.0) -> None:
        """Adds a client's weights, times its examples, or what those of several come to.

        Args:
            structure: Whose units the weights are.
            weights: By name, compact.
            examples: How often they count.
        """
        digest = structure.digest
        if digest == self._structure.digest:
            self._sums.add(weights, examples)
        elif digest in self._buffers:
            self._buffers[digest].add(weights, examples, self._scratch)
        else:
            if len(self._buffers) == _MOST_BUFFERS:
                self._spread(self._buffers.pop(next(iter(self._buffers))))
            self._buffers[digest] = _Buffer(structure, weights, examples)

    def totals(self) -> Totals:
        """Returns per parameter the sum over the clients that hold an entry."""
        while self._buffers:
            self._spread(self._buffers.pop(next(iter(self._buffers))))
        return self._sums.arrays

    def _spread(self, buffer: _Buffer) -> None:
        """Adds a compact sum to the entries of the model that it stands for."""
        for name, array in buffer.sums(self._scratch):
            sums = self._sums.arrays[name]
            takes = self._layout.indices(name, self._structure, buffer.structure)
            if not takes:
                sums += array
            elif [axis for axis, _ in takes] == [0]:
                sums[takes[0][1]] += array  # whole rows; torch adds them one by one
            else:
                entries = _flat(sums.shape, dict(takes))
                torch.from_numpy(sums).view(-1).index_add_(0, entries, torch.from_numpy(array).view(-1))


def _flat(shape: Sequence[int], takes: Mapping[int, NDArray[np.intp]]) -> torch.Tensor:
    """Returns where in a flat parameter the entries of a compact one stand, given what is taken by axis."""
    flat = np.zeros((), np.int64)
    for axis, size in enumerate(shape):
        flat = flat[..., None] * size + takes.get(axis, np.arange(size))
    return torch.from_numpy(flat.reshape(-1))
