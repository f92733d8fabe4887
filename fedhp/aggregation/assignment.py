"""Which part of the global model a device is sent: the largest that it can train within its budget."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from fedhp.costs.memory import MemoryModel, samples
from fedhp.errors import BudgetError
from fedhp.model.layout import Layout
from fedhp.model.shrinking import Shape
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.pruning.cutting import select


def fit_counts(
    memory: MemoryModel, shape: Shape, top: Mapping[str, int], budget_bytes: float, batch: int
) -> dict[str, int]:
    """Returns the largest unit counts below ``top`` that train within a budget.

    They fit at the wanted batch where they can; a device too small for that gets a smaller batch before it
    is given up.

    Raises:
        BudgetError: If not even the smallest structure fits with as few samples as the model allows.
    """
    least = memory.layout.smallest_batch
    for fewer in halvings(batch, least):
        counts = shape.largest(
            top, lambda counts, fewer=fewer: memory.training_bytes(counts, fewer) <= budget_bytes
        )
        if counts is not None:
            return counts
    raise _too_small(memory, budget_bytes)


def check_smallest(memory: MemoryModel, budget_bytes: float) -> None:
    """Checks that a budget holds the smallest structure with as few samples as the model allows.

    Raises:
        BudgetError: If it does not.
    """
    if memory.training_bytes(memory.layout.smallest(), memory.layout.smallest_batch) > budget_bytes:
        raise _too_small(memory, budget_bytes)


def _too_small(memory: MemoryModel, budget_bytes: float) -> BudgetError:
    smallest, least = memory.layout.smallest(), memory.layout.smallest_batch
    if memory.layout.singles:
        return BudgetError(
            f"with a single weight in each layer the network takes "
            f"{memory.training_bytes(smallest, least):,} bytes to train with {samples(least)}; the budget is "
            f"{budget_bytes:,} bytes. Raise the budget, or choose a smaller model or input"
        )
    return BudgetError(
        f"the smallest structure ({', '.join(f'{g}: {n}' for g, n in smallest.items())}) takes "
        f"{memory.training_bytes(smallest, least):,} bytes to train with {samples(least)}; the budget is "
        f"{budget_bytes:,} bytes. Raise the budget, lower model.floor, or choose a smaller model or input"
    )


def budget_for(memory: MemoryModel, shape: Shape, num_parameters: float, batch: int) -> int:
    """Returns the bytes in which the largest part of the model trains that has at most so many parameters."""
    layout = memory.layout
    part = shape.largest(layout.widths, lambda counts: layout.num_parameters(counts) <= num_parameters)
    return memory.training_bytes(part or layout.smallest(), batch)


def halvings(batch: int, least: int) -> Iterator[int]:
    """Yields a batch size, its half, and so on down to the least that the model takes."""
    while batch > least:
        yield batch
        batch //= 2
    yield least


def fit_structure(
    memory: MemoryModel, shape: Shape, state: ModelState, budget_bytes: int | None, batch: int
) -> Structure:
    """Returns the best structure within the global one that a device can train within its budget.

    A device that cannot hold all of the global model gets the units of the largest weight norm: those
    likeliest to survive, so that what a small device learns is not pruned away later.

    Raises:
        BudgetError: If not even the smallest structure fits with as few samples as the model allows.
    """
    current = state.structure
    if budget_bytes is None or memory.training_bytes(current.counts, batch) <= budget_bytes:
        return current
    counts = fit_counts(memory, shape, current.counts, budget_bytes, batch)
    return select(unit_norms(memory.layout, state), current, counts, memory.layout.floors)


def unit_norms(layout: Layout, state: ModelState) -> dict[str, NDArray[np.float64]]:
    """Returns per kept unit the product of the norms of its incoming and of its outgoing weights.

    Inputs have outgoing weights only. Of single weights it is their magnitude.
    """
    counts = state.structure.counts
    norms = {group: np.ones(count) for group, count in counts.items()}
    for name, weights in state.weights.items():
        if weights.ndim < 2 and name not in layout.singles:
            continue
        for place in layout.places(name, counts):
            norms[place.group] *= np.linalg.norm(place.rows(weights), axis=1)
    return norms
