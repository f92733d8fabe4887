"""What the user should know of a run before it trains: worth a line each, and no reason to refuse it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from fedhp.assignment import fit_counts
from fedhp.data import Dataset, data_notes
from fedhp.devices import format_size
from fedhp.memory import MemoryModel
from fedhp.recipe import Recipe

_FEW = 10  # held-out samples, below which an accuracy on them moves in steps of more than a tenth
_ODD = 3.0  # times that a device's values may spread as widely, or as narrowly, as the server's, unnoted
_NOTHING = 0.01  # of the full model's parameters, below which what is left learns next to nothing


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
    train a part for good: of all but the largest budget, only those are told that hold next to nothing.
    """
    layout, target = memory.layout, recipe.prune.target_compression
    wanted = layout.num_parameters(recipe.schedule.counts(1.0))
    most = max(map(_size, budgets.values()), default=0)
    for name, budget in budgets.items():
        if budget is None:
            continue
        enough = _NOTHING if target == 1 and budget < most else 0.5
        largest = fit_counts(memory, recipe.shape, layout.widths, budget, recipe.train.batch_size)
        holds = layout.num_parameters(largest)
        if holds < enough * wanted:
            yield (
                f"{name}: {format_size(budget)} can train {holds:,} parameters, the target is {wanted:,}; "
                f"raise the budget or prune.target_compression, or choose a smaller model"
            )


def tiny_parts(parts: Mapping[str, int], whole: int) -> Iterator[str]:
    """Says which devices train next to nothing of a model that is not pruned.

    Args:
        parts: Parameters that a device trains, by what names it for the user.
        whole: Parameters of the full model.
    """
    tiny = {name: number for name, number in parts.items() if number < _NOTHING * whole}
    if tiny:
        yield (
            f"{', '.join(tiny)}: at most {max(tiny.values()):,} of the full model's {whole:,} parameters can "
            f"be trained there, which learn next to nothing; raise the budget or choose a smaller model"
        )


def few_held_out(numbers: Sequence[int]) -> Iterator[str]:
    """Says that clients hold out too few samples for an accuracy of each.

    Args:
        numbers: Per client, its held-out samples.
    """
    if (middle := median(numbers)) < _FEW:
        yield (
            f"data.local_test: {min(numbers)} to {max(numbers)} samples are held out per client, in the "
            f"median {middle:g}: a client's accuracy on so few is coarse; raise it, or have fewer clients"
        )


def odd_spreads(spreads: Mapping[str, float]) -> Iterator[str]:
    """Says which devices' own values spread so much more, or less, than the server's that they may be wrong.

    Args:
        spreads: Standard deviations of their values, over that of the server's, by what names a device.
    """
    for name, spread in spreads.items():
        if not 1 / _ODD < spread < _ODD:
            yield (
                f"{name}: its values spread {spread:.2g} times as widely as the server's data; if they are "
                f"on another scale, bring them to the server's (with uint8 scaled to 0 .. 1)"
            )


def _size(budget: int | None) -> float:
    return math.inf if budget is None else budget
