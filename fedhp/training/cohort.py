"""The clients of one round that are sent the same model under the same budget, trained together."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedhp.data.shard import Shard
from fedhp.training.recipe import Recipe
from fedhp.training.trainer import train_locally
from fedhp.training.update import RoundTask, Update


@dataclass(frozen=True)
class Client:
    """One of them.

    Attributes:
        task: What it is asked; round, model and budget are those of all.
        shard: Its own training data.
        held_out: Its own data on which the model is evaluated before and after, if any.
    """

    task: RoundTask
    shard: Shard
    held_out: Shard | None = None


def train_cohort(recipe: Recipe, clients: Sequence[Client], stack: int) -> list[Update | Exception]:
    """Trains clients as `train_locally` does each.

    Args:
        recipe: How to train.
        clients: The clients.
        stack: How many of them may be computed at a time.

    Returns:
        What came of each, in their order: who fails fails alone.
    """
    return [_outcome(recipe, client) for client in clients]


def _outcome(recipe: Recipe, client: Client) -> Update | Exception:
    try:
        return train_locally(recipe, client.task, client.shard, held_out=client.held_out)
    except Exception as error:
        return error
