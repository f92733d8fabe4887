"""How every client trains: what the trainer needs of a scenario, and what follows from it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch

from fedhp.costs.memory import Extras, MemoryModel, memory_model, samples
from fedhp.errors import BudgetError, ScenarioError
from fedhp.model.architecture import Architecture
from fedhp.model.noise import head_of
from fedhp.model.shrinking import Shape
from fedhp.model.structure import Structure
from fedhp.pruning.criteria import CRITERIA, check_criterion
from fedhp.pruning.regularizers import REGULARIZERS, bytes_per_unit, check_regularizer
from fedhp.pruning.schedule import PruneConfig, Schedule
from fedhp.training.batches import BATCH_POLICIES, MemoryConfig
from fedhp.training.optimizers import OPTIMIZERS, TrainConfig


@dataclass(frozen=True, eq=False)
class Recipe:
    """How every client trains: the read-only part of a scenario that the trainer needs.

    Compared and hashed by identity, so that what is derived from it can be cached.

    Attributes:
        rounds: Rounds of the whole training, over which schedules run.
        seed: The run's seed.
        widths: Of which each step trains one, as shares of the full model's; none trains all that there is.
    """

    architecture: Architecture
    train: TrainConfig
    prune: PruneConfig
    memory: MemoryConfig
    rounds: int
    seed: int
    widths: tuple[float, ...] = ()

    @lru_cache(maxsize=8)  # noqa: B019 - a process holds a handful of recipes
    def memory_model(self, raw_itemsize: int) -> MemoryModel:
        """Returns the memory model for this recipe's optimiser and data stored at this item size.

        What the regulariser keeps counts as state of the optimiser.
        """
        pushed = REGULARIZERS[self.prune.regularizer].slots if self._prunes else 0
        slots = self.train.state_slots + pushed
        masked = self.train.masked_loss
        return memory_model(self.architecture, slots, raw_itemsize, masked, self._extras())

    @property
    def _prunes(self) -> bool:
        return self.prune.target_compression > 1

    def _extras(self) -> Extras:
        prunes, criterion = self._prunes, CRITERIA[self.prune.criterion]
        pushed = bytes_per_unit(self.prune.regularizer, self.architecture.layout)
        return Extras(
            counts=OPTIMIZERS[self.train.optimizer].counts,
            clips=self.train.clip_norm > 0,
            noisy=self.memory.batch_policy == "noise",
            scratch=criterion.scratch if prunes else None,
            unit_bytes={g: max(criterion.unit_bytes, own) for g, own in pushed.items()} if prunes else {},
        )

    @cached_property
    def shape(self) -> Shape:
        """How the groups of the model shrink together, by their weight in this recipe's memory."""
        memory = self.memory_model(raw_itemsize=1)
        return Shape(self.architecture.layout, memory.shares(self.train.batch_size))

    @cached_property
    def schedule(self) -> Schedule:
        """How many units may be left, when."""
        return Schedule(self.prune, self.shape)

    def without_pruning(self) -> "Recipe":
        """Returns the recipe of a dense model: nothing is cut."""
        prune = replace(self.prune, target_compression=1.0, marginal=0.0, regularizer="none")
        return replace(self, prune=prune)

    def with_ordered_dropout(self, levels: Sequence[float]) -> "Recipe":
        """Returns the recipe whose every step trains one of these widths."""
        return replace(self, widths=tuple(levels))

    def check_pruning(self) -> None:
        """Checks that the model can be pruned as asked.

        Raises:
            ScenarioError: If it lacks what the criterion or the regulariser looks at, or the target is out of
                reach.
        """
        check_criterion(self.prune.criterion, self.architecture.layout)
        check_regularizer(self.prune.regularizer, self.architecture.layout)
        self.schedule.check_target()

    def check_batch_policy(self) -> None:
        """Checks that the model can take such batches, and has what the batch policy looks at.

        Raises:
            ScenarioError: If it cannot or has not.
        """
        least = self.architecture.layout.smallest_batch
        if self.train.batch_size < least:
            raise ScenarioError(
                f"train.batch_size must be at least {least} with batch normalisation, got "
                f"{self.train.batch_size}"
            )
        if self.memory.batch_policy == "noise":
            head_of(self.architecture.layout)

    def device(self) -> torch.device:
        """Returns the device to compute on."""
        wanted = self.train.device
        if wanted == "auto":
            wanted = "cuda" if torch.cuda.is_available() else "cpu"
        if wanted == "cuda" and not torch.cuda.is_available():
            raise ScenarioError("train.device = cuda, but torch sees no CUDA device; use auto or cpu")
        return torch.device(wanted)


def choose_batch(
    recipe: Recipe,
    memory: MemoryModel,
    structure: Structure,
    budget_bytes: int | None,
    noise_scale: float = 0.0,
) -> int:
    """Returns the batch that the policy takes for this structure within the budget.

    Args:
        recipe: How to train.
        memory: Its memory model.
        structure: The units that are left.
        budget_bytes: The device's memory; without one there is none to grow into.
        noise_scale: The gradient-noise scale as far as it is known, in samples.

    Raises:
        BudgetError: If not even as few samples fit as the model allows.
    """
    wanted, least = recipe.train.batch_size, memory.layout.smallest_batch
    if budget_bytes is None:
        return wanted
    largest = memory.largest_batch(structure.counts, budget_bytes)
    if largest < least:
        needed = memory.training_bytes(structure.counts, least)
        raise BudgetError(
            f"training this model with {samples(least)} takes {needed:,} bytes; the budget is "
            f"{budget_bytes:,} bytes"
        )
    most = max(min(largest, recipe.memory.max_batch), wanted)
    return min(largest, BATCH_POLICIES[recipe.memory.batch_policy](wanted, most, noise_scale))
