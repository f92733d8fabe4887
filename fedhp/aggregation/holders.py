"""Who holds what: the votes on units, and how many examples stand behind every entry of a model."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fedhp.model.axes import Axis
from fedhp.model.layout import Layout
from fedhp.model.structure import Structure

# So many different structures are counted in one matrix product, and clients trained as one cohort at most;
# what is counted does not depend on it.
BLOCK = 64


class Holding(NamedTuple):
    """Clients that were assigned the same structure and hold the same: their examples, and how many."""

    assigned: Structure
    held: Structure
    examples: float
    number: int = 1


class Coverage:
    """Counts examples and clients behind every unit and entry, without looking at single entries.

    An entry is held when the units of all its axes are, so that the count is a product of the clients' masks:
    for a matrix, the sum over clients of examples x (mask of its rows) (mask of its columns), which is one
    product of matrices for many clients at once. Counts are whole numbers, and so exact in any order.

    Args:
        layout: The model's wiring.
        structure: The structure that contains all others.

    Attributes:
        waiting: What is yet to be counted, of at most `BLOCK` kinds.
    """

    def __init__(self, layout: Layout, structure: Structure) -> None:
        self._layout, self._structure = layout, structure
        self._held: dict[str, NDArray[np.float64]] = {}
        self._by_all = 0.0
        self._units = {group: np.zeros((3, count)) for group, count in structure.counts.items()}
        self.waiting: dict[tuple[str, str], Holding] = {}

    def add(self, holding: Holding) -> None:
        """Counts clients."""
        assigned, held, examples, number = holding
        key = assigned.digest, held.digest
        if before := self.waiting.get(key):
            holding = Holding(assigned, held, before.examples + examples, before.number + number)
        elif len(self.waiting) == BLOCK:
            self._count()
        self.waiting[key] = holding

    def units(self) -> Mapping[str, NDArray[np.float64]]:
        """Returns per group an array of shape ``(3, units)``.

        The examples of a unit's assignees, those of its keepers, and how many keepers it has.
        """
        self._count()
        return self._units

    def held(self) -> Mapping[str, NDArray[np.float64]]:
        """Returns per parameter the examples behind its entries, in a shape that broadcasts to its own."""
        self._count()
        return {name: self._by_all + self._held.get(name, np.zeros(())) for name in self._layout.shapes}

    def _count(self) -> None:
        holdings = list(self.waiting.values())
        self.waiting.clear()
        if not holdings:
            return
        examples = np.array([one.examples for one in holdings])
        numbers = np.array([float(one.number) for one in holdings])
        kept = self._masks([one.held for one in holdings])
        for group, given in self._masks([one.assigned for one in holdings]).items():
            self._units[group] += examples @ given, examples @ kept[group], numbers @ kept[group]
        whole = np.array([one.held == self._structure for one in holdings])
        self._by_all += examples[whole].sum()
        if not whole.all():
            self._count_entries({group: mask[~whole] for group, mask in kept.items()}, examples[~whole])

    def _count_entries(self, masks: Mapping[str, NDArray[np.float64]], examples: NDArray[np.float64]) -> None:
        for name in self._layout.shapes:
            count = _product(self._layout.runs(name), masks, examples)
            self._held[name] = self._held.get(name, 0.0) + count

    def _masks(self, structures: Sequence[Structure]) -> dict[str, NDArray[np.float64]]:
        """Returns per group which of the units each structure holds, of shape ``(clients, units)``."""
        return {
            group: np.array([one.masks[group][self._structure.kept(group)] for one in structures], np.float64)
            for group in self._structure.masks
        }


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
