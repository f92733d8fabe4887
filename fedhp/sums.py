"""Sums over clients' weights of different structures, entry by entry."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from fedhp.state import ModelState, Weights
from fedhp.structure import Layout, Structure

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
        sums = self.sums()
        for name, weights in state.weights.items():
            scaled = scratch[: weights.size].reshape(weights.shape)
            sums[name] += np.multiply(weights, np.float32(examples), out=scaled)
        self.examples += examples

    def sums(self) -> dict[str, NDArray[np.float32]]:
        if self._first is not None:
            weights, self._first = self._first.weights, None
            self._sums = {name: array * np.float32(self.examples) for name, array in weights.items()}
        return self._sums


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
        # Examples behind each entry; updates that hold every entry are counted once for all of them.
        self._held: dict[str, torch.Tensor] = {}
        self._held_by_all = 0.0
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

    def totals(self) -> tuple[Weights, Mapping[str, NDArray[np.float64]]]:
        """Returns per parameter the sum over the holders of every entry, and the holders' examples."""
        while self._buffers:
            self._spread(self._buffers.pop(next(iter(self._buffers))))
        by_all = np.full((), self._held_by_all)
        held = {name: by_all + part.numpy() for name, part in self._held.items()}
        return (
            {name: total.numpy() for name, total in self._sums.items()},
            {name: np.broadcast_to(held.get(name, by_all), shape) for name, shape in self._shapes.items()},
        )

    def _spread(self, buffer: _Buffer) -> None:
        """Adds a compact sum to the entries of the model that it stands for."""
        complete = buffer.structure == self._structure
        self._held_by_all += buffer.examples if complete else 0.0
        for name, array in buffer.sums().items():
            total = torch.from_numpy(array)
            if complete:
                self._sums[name].add_(total)
                continue
            entries = self._entries(name, buffer.structure)
            self._sums[name].view(-1).index_add_(0, entries, total.view(-1))
            if name not in self._held:
                self._held[name] = torch.zeros(self._shapes[name], dtype=torch.float64)
            examples = torch.tensor(buffer.examples, dtype=torch.float64).expand(len(entries))
            self._held[name].view(-1).index_add_(0, entries, examples)

    def _entries(self, name: str, structure: Structure) -> torch.Tensor:
        """Returns where in the flat parameter the entries of a compact one stand."""
        takes = dict(self._layout.indices(name, self._structure, structure))
        flat = np.zeros((), np.int64)
        for axis, size in enumerate(self._shapes[name]):
            flat = flat[..., None] * size + takes.get(axis, np.arange(size))
        return torch.from_numpy(np.ascontiguousarray(flat).reshape(-1))
