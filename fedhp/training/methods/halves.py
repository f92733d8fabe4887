"""Halves: early rounds in which devices train on either half of their samples in turn.

What two models of one device have in common then is the device's, and no accident of its samples: by that
``shrinkage`` tells for good from by chance (`fedhp.aggregation.shrinkage`).
"""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from fedhp.seeds import generator
from fedhp.training.method import ClientRun, Method
from fedhp.training.method_names import HALVES


def rounds_of_halves(rounds: int) -> int:
    """Returns in how many rounds, from the first on, of a run's: a tenth of them, and two at least."""
    return max(2, rounds // 10)


class Halves(Method):
    """Trains on one half in odd rounds and on the other in even ones, as long as halves are trained on."""

    name = HALVES
    by_strategy = True
    stackable = True
    on_arrays = True

    @property
    def key(self) -> Hashable:
        """Nothing: a step is as any other."""
        return None

    def begin(self, run: ClientRun) -> None:
        """Chooses the half, by a seeded draw; who has too few samples for a step of each keeps them all."""
        number, least = len(run.shard), run.memory.layout.smallest_batch
        if run.task.round > rounds_of_halves(run.recipe.rounds) or number < 2 * least:
            return
        order = generator(run.recipe.seed, "halves", run.task.client).permutation(number)
        half = order[: number // 2] if run.task.round % 2 else order[number // 2 :]
        run.shard = run.shard.part(np.sort(half))

    def kept(self) -> Mapping[str, Any]:
        """Nothing: the half is chosen anew as a training begins."""
        return {}
