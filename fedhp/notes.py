"""What the user should know of a run before it trains: worth a line each, and no reason to refuse it."""

import math
from collections.abc import Iterator, Mapping

from fedhp.assignment import fit_counts
from fedhp.data import Dataset, data_notes
from fedhp.devices import format_size
from fedhp.memory import MemoryModel
from fedhp.recipe import Recipe


def run_notes(
    dataset: Dataset, recipe: Recipe, memory: MemoryModel, budgets: Mapping[str, int | None]
) -> Iterator[str]:
    """Yields what stands out in the data, and then in what devices can train of the model.

    Args:
        dataset: The data.
        recipe: How to train.
        memory: Its memory model.
        budgets: Budgets in bytes within which the model is pruned, by what names them for the user; None is
            no limit.
    """
    yield from data_notes(dataset)
    yield from small_budgets(recipe, memory, budgets)


def small_budgets(recipe: Recipe, memory: MemoryModel, budgets: Mapping[str, int | None]) -> Iterator[str]:
    """Says of each budget that can train less than half of what pruning aims at.

    Somewhat less is what small devices are for: they train a part. But where the largest is as small, the
    model starts far below the target, and may learn nothing. Where nothing is to be pruned, small devices
    train a part for good, and only the largest budget is looked at.
    """
    layout, target = memory.layout, recipe.prune.target_compression
    wanted = layout.num_parameters(recipe.schedule.counts(1.0))
    most = max(map(_size, budgets.values()), default=0)
    for name, budget in budgets.items():
        if budget is None or (target == 1 and budget < most):
            continue
        largest = fit_counts(memory, recipe.shape, layout.widths, budget, recipe.train.batch_size)
        holds = layout.num_parameters(largest)
        if 2 * holds < wanted:
            yield (
                f"{name}: {format_size(budget)} can train {holds:,} parameters, the target is {wanted:,}; "
                f"raise the budget or prune.target_compression, or choose a smaller model"
            )


def _size(budget: int | None) -> float:
    return math.inf if budget is None else budget
