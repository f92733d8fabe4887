"""How every client trains: what the trainer needs of a scenario, and what follows from it."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedhp.costs.memory import Extras, MemoryModel, samples
from fedhp.costs.rehearsal import memory_model
from fedhp.data.shard import Shard
from fedhp.errors import BudgetError, ScenarioError
from fedhp.model.architecture import Architecture
from fedhp.model.densities import Densities
from fedhp.model.shrinking import Shape
from fedhp.model.state import ModelState, Scores
from fedhp.model.structure import Structure
from fedhp.pruning.moving import Moves
from fedhp.pruning.options import AUTO, PruneConfig
from fedhp.pruning.schedule import Schedule, rounded, unpruned
from fedhp.threads import usual_runtime
from fedhp.training.batches import BATCH_POLICIES, MemoryConfig
from fedhp.training.options import OPTIMIZERS, TrainConfig
from fedhp.training.runtime import Runtime, runtime_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedhp.training.meter import Key


class MethodKind(Protocol):
    """What a recipe asks of a client method, before any training: see `fedhp.training.method.Method`."""

    @property
    def name(self) -> str:
        """By which a strategy asks for it, and messages name it."""
        ...

    @property
    def by_strategy(self) -> bool:
        """Whether it is at work only where the strategy asks for it."""
        ...

    @property
    def stackable(self) -> bool:
        """Whether clients at work by it may be trained side by side."""
        ...

    @property
    def prunes(self) -> bool:
        """Whether it cuts where memory is short."""
        ...

    @property
    def on_arrays(self) -> bool:
        """Whether it can be at work on a device without PyTorch."""
        ...

    def __call__(self) -> Any:
        """Makes the method of one local training."""
        ...

    def at_work(self, recipe: "Recipe") -> bool:
        """Says whether the recipe gives it anything to do."""
        ...

    def extras(self, recipe: "Recipe") -> Extras:
        """Returns what it makes a training hold."""
        ...

    def said(self, recipe: "Recipe") -> str:
        """Says the keys that set it to work."""
        ...

    def check(self, recipe: "Recipe") -> None:
        """Checks that the model can be trained so."""
        ...

    def network(self, arch: Architecture, train: TrainConfig, prune: PruneConfig) -> Architecture:
        """Returns the network as it is held in training."""
        ...

    def survivors(
        self, recipe: "Recipe", scores: Callable[[], Scores], within: Structure, progress: float
    ) -> Structure | None:
        """Says which units are left after a round, where devices do not."""
        ...


@dataclass(frozen=True, eq=False)
class Recipe:
    """How every client trains: the read-only part of a scenario that the trainer needs.

    Compared and hashed by identity, so that what is derived from it can be cached.

    Attributes:
        rounds: Rounds of the whole training, over which schedules run.
        seed: The run's seed.
        kinds: The client methods that may be at work, in the order in which they act.
        levels: Widths of sub-models, as shares of the full one's; none leaves them to who trains some.
        runtime_name: What computes.
        shares: How groups shrink together, in their order; none leaves it to the memory model.
        moves: When a server moves single weights that asks clients for gradients.
    """

    architecture: Architecture
    train: TrainConfig
    prune: PruneConfig
    memory: MemoryConfig
    rounds: int
    seed: int
    kinds: tuple[MethodKind, ...]
    levels: tuple[float, ...] = ()
    runtime_name: str = field(default_factory=usual_runtime)
    shares: tuple[float, ...] = ()
    moves: Moves = field(default_factory=Moves)

    @cached_property
    def runtime(self) -> Runtime:
        """What computes."""
        return runtime_of(self.runtime_name)

    @cached_property
    def methods(self) -> tuple[MethodKind, ...]:
        """The client methods that have something to do."""
        return tuple(kind for kind in self.kinds if kind.at_work(self))

    @lru_cache(maxsize=8)  # noqa: B019 - a process holds a handful of recipes
    def memory_model(self, raw_itemsize: int) -> MemoryModel:
        """Returns the memory model for this recipe's optimiser and data stored at this item size.

        What methods keep per parameter counts as state of the optimiser.
        """
        arch, slots = self.architecture, self.train.state_slots
        smooth, counts = self.train.label_smoothing > 0, OPTIMIZERS[self.train.optimizer].counts
        own = Extras(smooth=smooth, counts=counts)
        extras = Extras.together([own, *(kind.extras(self) for kind in self.methods)])
        return memory_model(arch, slots, raw_itemsize, extras, self.runtime_name)

    @cached_property
    def shape(self) -> Shape:
        """How the groups of the model shrink together, by their weight in this recipe's memory."""
        return _shape(self)

    @cached_property
    def schedule(self) -> Schedule:
        """How many units may be left, when."""
        return Schedule(self.prune, rounded(self.prune, self.shape))

    def step_key(
        self,
        shard: Shard,
        parameters: "Sequence[Iterable[torch.Tensor]]",
        batch: int,
        methods: Sequence[Hashable] = (),
    ) -> "Key":
        """Returns everything that the peak of a training step depends on.

        Args:
            shard: What is trained on.
            parameters: Those of the model, and of the part of it that the step trains.
            batch: The samples of the step.
            methods: What of each client method it depends on.
        """
        memory = self.memory_model(shard.raw_itemsize)
        return (
            self.architecture,
            *(tuple(tuple(p.shape) for p in some) for some in parameters),
            batch,
            shard.input_shape,
            shard.raw_itemsize,
            self.train.optimizer,
            memory.state_slots,
            memory.extras,
            tuple(methods),
            f"{self.runtime_name} {self.device()}",
        )

    def module(self, state: ModelState) -> "nn.Module":
        """Returns a copy of a model, to be trained; of arrays, a `fedhp.model.array_network.ArrayNetwork`."""
        return self.runtime.network(self.architecture, state, self.device())

    @lru_cache(maxsize=4)  # noqa: B019 - a fleet at its target is sent the same structures in every round
    def network(self, structure: Structure) -> "nn.Module":
        """Returns a network of a structure, whose weights are of no account, and which nobody changes."""
        layout, counts = self.architecture.layout, structure.counts
        zeros = {name: np.zeros(layout.shape(name, counts), np.float32) for name in layout.shapes}
        return self.module(ModelState(zeros, structure))

    def without_pruning(self) -> "Recipe":
        """Returns the recipe of a dense model: nothing is cut."""
        return replace(self, prune=unpruned(self.prune))

    def check_methods(self) -> None:
        """Checks that the model can be trained by the methods at work, and by those that a strategy asks for.

        Raises:
            ScenarioError: If it cannot.
        """
        for kind in self.kinds:
            # What a strategy asks for has to suit the model, whether or not it has anything to do.
            if kind.by_strategy or kind in self.methods:
                kind.check(self)

    def check_batch(self) -> None:
        """Checks that the model can take such batches.

        Raises:
            ScenarioError: If it cannot.
        """
        least = self.architecture.layout.smallest_batch
        if self.train.batch_size < least:
            raise ScenarioError(
                f"train.batch_size must be at least {least} with batch normalisation, got "
                f"{self.train.batch_size}"
            )

    def device(self) -> "torch.device":
        """Returns the device to compute on."""
        return self.runtime.device(self.train.device)


def _shape(recipe: Recipe) -> Shape:
    layout, eagerness = recipe.architecture.layout, recipe.architecture.eagerness
    if eagerness is not None:
        return Densities(layout, {}, eagerness=eagerness)
    told = dict(zip(layout.widths, recipe.shares, strict=False))
    plain = Shape(layout, told or recipe.memory_model(1).shares(recipe.train.batch_size))
    return plain if recipe.prune.round_to == AUTO else rounded(recipe.prune, plain)


def with_all_weights(recipe: Recipe) -> Recipe:
    """Returns the recipe of the network of which no single weights are left out."""
    arch = recipe.architecture.plain
    return recipe if arch is None else replace(recipe, architecture=arch)


@dataclass(frozen=True)
class Steps:
    """The steps that fit a structure.

    Attributes:
        batch: Samples of each.
        lr_factor: Of the learning rate: by the batch that the policy chose, which neither few samples nor an
            epoch's short last step scale.
        num_bytes: What each takes, by the memory model.
        inputs: The entries of a sample that the model takes; None for all.
    """

    batch: int
    lr_factor: float
    num_bytes: int
    inputs: NDArray[np.intp] | None


def fitting_steps(
    recipe: Recipe,
    memory: MemoryModel,
    structure: Structure,
    budget_bytes: int | None,
    num_samples: int,
    noise_scale: float = 0.0,
) -> Steps:
    """Returns the steps of the batch that the policy takes, of so many samples at most.

    Raises:
        BudgetError: As `choose_batch`.
    """
    chosen = choose_batch(recipe, memory, structure, budget_bytes, noise_scale)
    batch = min(chosen, num_samples)
    return Steps(
        batch,
        recipe.memory.lr_factor(chosen, recipe.train.batch_size),
        memory.training_bytes(structure.counts, batch),
        recipe.architecture.kept_inputs(structure),
    )


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
