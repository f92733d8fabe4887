"""Which part of a dense model a small device trains, where nothing is pruned: the rules of the field.

Each is a pure function to a structure of the full model. How large the part is, is another question
(`level_counts`), with the same answer for all of them.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fedhp.aggregation.assignment import fit_counts, halvings
from fedhp.costs.memory import MemoryModel
from fedhp.errors import BudgetError
from fedhp.model.shrinking import Shape, at_level
from fedhp.model.structure import Structure

Counts = Mapping[str, int]


def first(widths: Counts, counts: Counts) -> Structure:
    """HeteroFL (Diao et al. 2021, arXiv 2010.01264) and FjORD (Horvath et al. 2021, arXiv 2102.13451).

    The first units of every group: what a small device trains, every larger one trains as well.

    Args:
        widths: Units per group of the full model.
        counts: Units per group of the part.
    """
    return Structure({group: np.arange(width) < counts[group] for group, width in widths.items()})


def rolling(widths: Counts, counts: Counts, server_round: int) -> Structure:
    """FedRolex (Alam et al. 2022, arXiv 2212.01548): a window that moves by a unit a round.

    Of ``n`` units it holds the first ``k`` of ``roll(arange(n), round mod n)``, so that all get their turn.
    """
    masks = {}
    for group, width in widths.items():
        window = np.roll(np.arange(width), server_round % width)[: counts[group]]
        masks[group] = np.isin(np.arange(width), window)
    return Structure(masks)


def random_part(widths: Counts, counts: Counts, stream: np.random.Generator) -> Structure:
    """Federated dropout (Caldas et al. 2018, arXiv 1812.07210): units at random."""
    masks = {}
    for group, width in widths.items():
        chosen = stream.choice(width, size=counts[group], replace=False)
        masks[group] = np.isin(np.arange(width), chosen)
    return Structure(masks)


def level_counts(
    memory: MemoryModel, levels: Sequence[float], budget_bytes: int | None, batch: int
) -> dict[str, int]:
    """Returns the unit counts of the widest part that trains within a budget, all groups cut alike.

    Args:
        memory: The memory model.
        levels: The widths to choose from, as shares of the full model's; none for any width.
        budget_bytes: The device's memory.
        batch: The wanted batch; a device too small for it gets a smaller one before it is given up.

    Raises:
        BudgetError: If no part fits, even with as few samples as the model allows.
    """
    layout, budget = memory.layout, math.inf if budget_bytes is None else budget_bytes
    if not levels:
        alike = Shape(layout, dict.fromkeys(layout.widths, 1.0))
        return fit_counts(memory, alike, layout.widths, budget, batch)
    widest_first = [at_level(layout, level) for level in sorted(levels, reverse=True)]
    for fewer in halvings(batch, layout.smallest_batch):
        for counts in widest_first:
            if memory.training_bytes(counts, fewer) <= budget:
                return counts
    least = memory.training_bytes(widest_first[-1], layout.smallest_batch)
    raise BudgetError(
        f"the smallest of strategy.levels, {min(levels):g}, takes {least:,} bytes to train; the budget is "
        f"{budget_bytes:,} bytes. {_advice(memory, budget)}"
    )


def _advice(memory: MemoryModel, budget: float) -> str:
    """Says what to do where no level fits, with the widest that would."""
    layout = memory.layout
    alike = Shape(layout, dict.fromkeys(layout.widths, 1.0))
    counts = alike.largest(
        layout.widths, lambda counts: memory.training_bytes(counts, layout.smallest_batch) <= budget
    )
    if counts is None:
        return "No level is small enough: raise the budget, or choose a smaller model"
    # Rounded down, so that it fits as it is written.
    level = math.floor(1e4 * min(counts[group] / width for group, width in layout.widths.items())) / 1e4
    return f"Add the level {level:g} or a smaller one to strategy.levels, or raise the budget"
