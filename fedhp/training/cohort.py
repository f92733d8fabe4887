"""The clients of one round that are sent the same model under the same budget, trained together."""

from collections.abc import Sequence

from fedhp.training.recipe import Recipe
from fedhp.training.session import Client
from fedhp.training.trainer import is_side_by_side, train_together
from fedhp.training.update import Update

__all__ = ["Client", "train_cohort"]


def train_cohort(recipe: Recipe, clients: Sequence[Client], stack: int) -> list[Update | Exception]:
    """Trains clients as `fedhp.training.trainer.train_locally` does each.

    Dense networks are trained side by side, step by step; others one after another. Either way, what becomes
    of a client does not depend on the others, nor do its figures of memory, which are those of a device.

    Args:
        recipe: How to train.
        clients: The clients, best in falling order of their numbers of samples.
        stack: How many of them are computed at a time, at most.

    Returns:
        What came of each, in their order: who fails fails alone.
    """
    number = stack if is_side_by_side(recipe) else 1
    outcomes: list[Update | Exception] = []
    for start in range(0, len(clients), number):
        outcomes += train_together(recipe, clients[start : start + number], is_device=False)
    return outcomes
