"""How many examples stand behind every entry of a model: those of the clients that hold it."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from fedhp.model.axes import Axis
from fedhp.model.layout import Layout
from fedhp.model.structure import Structure

# So many structures are counted in one matrix product; what is counted does not depend on it.
_BLOCK = 64


class Coverage:
    """Counts the examples behind every entry, without looking at single entries.

    An entry is held when the units of all its axes are, so that the count is a product of the clients' masks:
    for a matrix, the sum over clients of examples x (mask of its rows) (mask of its columns), which is one
    product of matrices for many clients at once.

    Args:
        layout: The model's wiring.
        structure: The structure that contains all others.
    """

    def __init__(self, layout: Layout, structure: Structure) -> None:
        self._layout, self._structure = layout, structure
        self._held: dict[str, NDArray[np.float64]] = {}
        self._waiting: list[tuple[Structure, float]] = []
        self._by_all = 0.0

    def add(self, structure: Structure, examples: float) -> None:
        """Counts a structure's entries."""
        if structure == self._structure:
            self._by_all += examples
            return
        self._waiting.append((structure, examples))
        if len(self._waiting) == _BLOCK:
            self._count()

    def held(self) -> Mapping[str, NDArray[np.float64]]:
        """Returns per parameter the examples behind its entries, in a shape that broadcasts to its own."""
        self._count()
        return {name: self._by_all + self._held.get(name, np.zeros(())) for name in self._layout.shapes}

    def _count(self) -> None:
        if not self._waiting:
            return
        structures = [structure for structure, _ in self._waiting]
        examples = np.array([number for _, number in self._waiting])
        masks = {
            group: np.array([one.masks[group][self._structure.kept(group)] for one in structures], np.float64)
            for group in self._structure.masks
        }
        for name in self._layout.shapes:
            count = _product(self._layout.runs(name), masks, examples)
            self._held[name] = self._held.get(name, 0.0) + count
        self._waiting.clear()


def _product(
    axes: tuple[Axis, ...], masks: Mapping[str, NDArray[np.float64]], examples: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns the sum over clients of examples times the outer product of the axes' masks.

    Args:
        axes: A parameter's axes; one that no group indexes has one entry in the result.
        masks: Per group, of shape ``(clients, units)``.
        examples: Of shape ``(clients,)``.
    """
    held = [_entries(runs, masks, len(examples)) for runs in axes]
    shape = [mask.shape[1] for mask in held]
    first, *others = held
    rows = first * examples[:, None]
    columns = np.ones((len(examples), 1))
    for mask in others:
        columns = (columns[:, :, None] * mask[:, None, :]).reshape(len(examples), -1)
    product = torch.from_numpy(rows).T @ torch.from_numpy(columns)  # by the threads that torch was given
    return product.numpy().reshape(shape)


def _entries(runs: Axis, masks: Mapping[str, NDArray[np.float64]], clients: int) -> NDArray[np.float64]:
    """Returns which entries along an axis clients hold, of shape ``(clients, entries)``."""
    if not runs:
        return np.ones((clients, 1))
    parts = [
        np.ones((clients, run.span)) if run.group is None else np.repeat(masks[run.group], run.span, axis=1)
        for run in runs
    ]
    return np.concatenate(parts, axis=1)
