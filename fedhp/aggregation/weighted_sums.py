"""Sums over clients' weights of different structures, entry by entry."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedhp.model.layout import Layout
from fedhp.model.state import ModelState, Weights
from fedhp.model.structure import Structure

# So many structures are summed compact, each in a buffer of its own, before they are spread over the model:
# spreading takes some times as long as adding. A fleet has few memory classes, and so few structures, unless
# every client prunes on its own.
_MOST_BUFFERS = 4


class _Buffer:
    """The sum of the updates of one structure, compact; of a single one, the update itself."""

    def __init__(self, first: ModelState, examples: float) -> None:
        self.structure, self.examples = first.structure, examples
        self._first: ModelState | None = first
        self._sums: dict[str, NDArray[np.float32]] = {}

    def add(self, state: ModelState, examples: float, scratch: NDArray[np.float32]) -> None:
        if self._first is not None:
            first, self._first = self._first, None
            self._sums = {name: w * np.float32(self.examples) for name, w in first.weights.items()}
        for name, weights in state.weights.items():
            self._sums[name] += _scaled(weights, examples, scratch)
        self.examples += examples

    def sums(self, scratch: NDArray[np.float32]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yields the sums; that of a single update is in ``scratch``, until the next is asked for."""
        if self._first is None:
            yield from self._sums.items()
            return
        for name, weights in self._first.weights.items():
            yield name, _scaled(weights, self.examples, scratch)


def _scaled(
    weights: NDArray[np.float32], examples: float, scratch: NDArray[np.float32]
) -> NDArray[np.float32]:
    out = scratch[: weights.size].reshape(weights.shape)
    return np.multiply(weights, np.float32(examples), out=out)


class WeightedSums:
    """Example-weighted sums of every entry of a model over the clients that hold it.

    Sums are in the weights' own precision: the mean of a round's clients needs no more. Besides, at most
    four models are held at a time, however many are added.

    Args:
        layout: The model's wiring.
        structure: The structure that contains those of all updates.
    """

    def __init__(self, layout: Layout, structure: Structure) -> None:
        self._layout, self._structure = layout, structure
        self._shapes = {name: layout.shape(name, structure.counts) for name in layout.shapes}
        self._sums = {name: torch.zeros(shape) for name, shape in self._shapes.items()}
        self._buffers: dict[str, _Buffer] = {}
        self._scratch = np.empty(max(map(math.prod, self._shapes.values())), np.float32)

    def add(self, state: ModelState, examples: float) -> None:
        """Adds a client's weights, times its examples."""
        digest = state.structure.digest
        if digest in self._buffers:
            self._buffers[digest].add(state, examples, self._scratch)
            return
        if len(self._buffers) == _MOST_BUFFERS:
            self._spread(self._buffers.pop(next(iter(self._buffers))))
        self._buffers[digest] = _Buffer(state, examples)

    def totals(self) -> Weights:
        """Returns per parameter the sum over the clients that hold an entry."""
        while self._buffers:
            self._spread(self._buffers.pop(next(iter(self._buffers))))
        return {name: total.numpy() for name, total in self._sums.items()}

    def _spread(self, buffer: _Buffer) -> None:
        """Adds a compact sum to the entries of the model that it stands for."""
        for name, array in buffer.sums(self._scratch):
            total, sums = torch.from_numpy(array), self._sums[name]
            takes = self._layout.indices(name, self._structure, buffer.structure)
            if not takes:
                sums.add_(total)
            elif [axis for axis, _ in takes] == [0]:
                sums.numpy()[takes[0][1]] += array  # whole rows; torch adds them one by one
            else:
                entries = _flat(sums.shape, dict(takes))
                sums.view(-1).index_add_(0, entries, total.view(-1))


def _flat(shape: Sequence[int], takes: Mapping[int, NDArray[np.intp]]) -> torch.Tensor:
    """Returns where in a flat parameter the entries of a compact one stand, given what is taken by axis."""
    flat = np.zeros((), np.int64)
    for axis, size in enumerate(shape):
        flat = flat[..., None] * size + takes.get(axis, np.arange(size))
    return torch.from_numpy(flat.reshape(-1))
