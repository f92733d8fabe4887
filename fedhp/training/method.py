"""What a client method is: one part of how a client trains, at work at six moments of its local training.

DynHP is one, and so are FedProx, masked loss or ordered dropout. The trainer knows none of them by name.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedhp.costs.memory import NO_EXTRAS, Extras, MemoryModel
from fedhp.data.shard import Shard
from fedhp.errors import TrainingError
from fedhp.model.architecture import Architecture
from fedhp.model.optimizer import Optimizer, parameters_of, set_rate
from fedhp.model.state import Scores, Weights
from fedhp.model.structure import Structure
from fedhp.pruning.options import PruneConfig
from fedhp.training.meter import Key, Meter
from fedhp.training.options import TrainConfig
from fedhp.training.recipe import Recipe, Steps
from fedhp.training.runtime import Runtime
from fedhp.training.update import Gradients, RoundTask

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedhp.training.rows import Row

Part = tuple["nn.Module", Optimizer]


@dataclass
class ClientRun:
    """A client's local training under way: what methods look at, and what they may change.

    Attributes:
        recipe: How to train.
        task: The round, the device and the model that it was assigned.
        shard: The client's own data.
        structure: The units that are left. A method that cuts module and optimiser sets it anew; batch and
            running statistics then follow.
        steps: The steps that fit it.
        module: The model in training, made when it is first looked at; without PyTorch, an `ArrayNetwork`.
        optimizer: Its optimiser, all state allocated. What a method keeps in the state of a parameter, of its
            shape, is cut, measured and freed with it.
        part: The module and the optimiser of the next step, by default the whole.
        row: Where its tensors lie among those of other clients, if they began there.
        mask: What is added to the logits, of shape ``(num_classes,)``; None for nothing.
        noise_scale: Tells the gradient-noise scale as far as it is known, in samples.
        progress: The share of the whole training that is done, 0 to 1.
        meter: Counts what is taken of memory.
        methods: Those at work, in the order in which they act.
        rate: The learning rate of the step.
        is_beside: Whether its tensors lie beside those of other clients, in common ones.
        odd: What makes the next step another than most, whose peak is then measured for itself.
    """

    recipe: Recipe
    task: RoundTask
    shard: Shard
    structure: Structure
    steps: Steps
    row: "Row | None" = None
    mask: "torch.Tensor | None" = None
    noise_scale: Callable[[], float] = lambda: 0.0
    progress: float = 0.0
    methods: "Sequence[Method]" = ()
    odd: Hashable = None
    meter: Meter = field(init=False)
    rate: float = field(init=False)
    is_beside: bool = field(init=False)

    def __post_init__(self) -> None:
        self.meter = Meter(self.runtime.live)
        self.rate = self.recipe.train.learning_rate
        self.is_beside = self.row is not None and self.row.has_others

    @property
    def runtime(self) -> Runtime:
        """What computes."""
        return self.recipe.runtime

    @cached_property
    def module(self) -> "nn.Module":
        """See above."""
        return self.recipe.module(self.task.state) if self.row is None else self.row.module()

    @cached_property
    def optimizer(self) -> Optimizer:
        """See above."""
        optimizer = self.runtime.optimizer(self.module, self.recipe.train)
        set_rate(optimizer, self.rate)
        if self.row is not None:
            self.row.lend_velocities(optimizer)
        return optimizer

    @cached_property
    def part(self) -> Part:
        """See above."""
        return self.module, self.optimizer

    @property
    def unseen(self) -> "Row | None":
        """The row that the network is, and nothing else, until somebody looks at the module."""
        return None if "module" in vars(self) else self.row

    def set_rate(self, rate: float) -> None:
        """Sets the learning rate of the next step."""
        self.rate = rate
        if "optimizer" in vars(self):
            set_rate(self.optimizer, rate)

    @cached_property
    def device(self) -> "torch.device":
        """Where the model is."""
        return self.recipe.device()

    def weights(self) -> Weights:
        """Returns the weights as they are; what must outlive the next step is to be copied."""
        return self.runtime.weights(self.module) if self.unseen is None else self.unseen.weights()

    @cached_property
    def memory(self) -> MemoryModel:
        """The memory model of the training."""
        return self.recipe.memory_model(self.shard.raw_itemsize)

    def advance(self, epoch: int, done: int) -> None:
        """Notes that so many samples of an epoch are done, and the share of the whole training that is."""
        local = (epoch + done / len(self.shard)) / self.recipe.train.local_epochs
        self.progress = (self.task.round - 1 + local) / self.recipe.rounds

    def batch(self, rows: NDArray[np.intp]) -> "tuple[torch.Tensor, torch.Tensor]":
        """Returns samples, as far as the model takes them, and their classes, where the model is."""
        return self.runtime.batch(self.shard, rows, self.steps.inputs, self.device)

    def held(self) -> list[Any]:
        """Returns what lives between steps, from now on in tensors of its own, not beside other clients'.

        Whoever keeps the list keeps what a cut would free.
        """
        self.part_from_others()
        kept = [tensor for method in self.methods for tensor in method.tensors]
        return [*self.runtime.kept(self.module, self.optimizer), *kept]

    def part_from_others(self) -> None:
        """Puts parameters and state in tensors of their own, where they lie beside other clients'."""
        if not self.is_beside:
            return
        self.is_beside = False
        for parameter in self.module.parameters():
            parameter.data = parameter.data.clone()
            state, kind = self.optimizer.state[parameter], type(parameter.data)
            state.update({key: kept.clone() for key, kept in state.items() if isinstance(kept, kind)})

    def step_key(self, batch: int) -> Key:
        """Returns everything that the peak of a step of so many samples depends on."""
        at_work = [method.key for method in self.methods]
        if self.unseen is None:
            trained = [list(parameters_of(optimizer)) for optimizer in (self.optimizer, self.part[1])]
        else:
            trained = [self.unseen.tensors()] * 2
        return self.recipe.step_key(self.shard, trained, batch, at_work)


class Method:
    """A client method, which at each moment does nothing by default; one is made for each local training.

    Attributes:
        name: By which a strategy asks for it, and messages name it; one of the user's own goes by reference.
        by_strategy: Whether it is at work only where the strategy asks for it.
        stackable: Whether clients at work by it may be trained side by side, step by step in turn: it draws
            from streams of its own alone, leaves parameters, gradients and state where they lie, and the
            part that a step trains the whole.
        prunes: Whether it cuts where memory is short: `on_shortage`.
        shrinks: Whether it makes networks small, and so is a choice of ``train.method``, in DynHP's place.
        on_arrays: Whether it can be at work on a device without PyTorch, whose networks are NumPy's arrays:
            it asks for parameters, gradients and state alone, and computes by `fedhp.model.kernels`.
    """

    name: ClassVar[str] = ""
    by_strategy: ClassVar[bool] = False
    stackable: ClassVar[bool] = False
    prunes: ClassVar[bool] = False
    shrinks: ClassVar[bool] = False
    on_arrays: ClassVar[bool] = False

    @classmethod
    def at_work(cls, recipe: Recipe) -> bool:
        """Says whether the recipe gives it anything to do."""
        return True

    @classmethod
    def extras(cls, recipe: Recipe) -> Extras:
        """Returns what it makes a training hold, which budgets are held against."""
        return NO_EXTRAS

    @classmethod
    def said(cls, recipe: Recipe) -> str:
        """Says the keys that set it to work, such as ``train.proximal_mu = 0.1``."""
        return cls.__name__

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Checks, before the first device is asked, that the model can be trained so.

        Raises:
            ScenarioError: If it cannot.
        """

    @classmethod
    def network(cls, arch: Architecture, train: TrainConfig, prune: PruneConfig) -> Architecture:
        """Returns the network as this method holds it in training: by default as it is.

        Raises:
            ScenarioError: If it cannot be held so.
        """
        return arch

    @classmethod
    def survivors(
        cls, recipe: Recipe, scores: Callable[[], Scores], within: Structure, progress: float
    ) -> Structure | None:
        """Says which units are left, where the server decides by the fleet's scores; None: devices do."""
        return None

    @property
    def tensors(self) -> "Sequence[torch.Tensor]":
        """What it keeps between steps, besides what lies in the optimiser's state.

        By default, the tensors that its attributes hold, in lists and dicts too.
        """
        if self.on_arrays:  # which says what it keeps, if anything
            return ()
        import torch
        from torch.utils._pytree import tree_iter

        return [leaf for leaf in tree_iter(vars(self)) if isinstance(leaf, torch.Tensor)]

    @property
    def key(self) -> Hashable:
        """What of it the peak of a step depends on."""
        return type(self)

    @property
    def wants_gradients(self) -> bool:
        """Whether it looks at the next step's gradients: where nobody does, they need not be kept."""
        return self.acts_on_gradients()

    @classmethod
    def acts_on_gradients(cls) -> bool:
        """Says whether it looks at gradients in any step."""
        return cls.on_gradients is not Method.on_gradients

    def begin(self, run: ClientRun) -> None:
        """Is told of the training: module and optimiser are there."""

    def before_step(self, run: ClientRun) -> None:
        """Acts before a step's forward pass, the learning rate being set: chooses part and mask."""

    def on_gradients(self, run: ClientRun) -> None:
        """Acts between a step's backward pass and the update, while there are gradients."""

    def after_step(self, run: ClientRun) -> None:
        """Acts after a step's update: cuts."""

    def on_shortage(self, run: ClientRun, budget_bytes: int) -> None:
        """Acts where no step of the network fits what memory a device has left: cuts until one does."""

    def kept(self) -> Mapping[str, Any] | None:
        """Returns what it hands on from one epoch to the next, besides what lies in the optimiser's state.

        Mappings by text, lists, texts, numbers, None and NumPy's arrays of numbers. None for "I do not say",
        which keeps a training on one device from going on once it was cut short: by default, where it has
        attributes.
        """
        return None if vars(self) else {}

    def take_up(self, run: ClientRun, kept: Mapping[str, Any]) -> None:
        """Goes on, after `begin`, with what was kept."""

    def gradients(self) -> Mapping[str, Gradients]:
        """Returns, once the training has ended, gradients that travel up: none by default."""
        return {}

    def end(self, run: ClientRun) -> Scores | None:
        """Leaves the module as it was before, but for what it learned.

        Returns:
            Per group, figures of its units, NumPy arrays of shape ``(units,)``, that travel up beside the
            weights as float32; None for none.
        """
        return None


def cut(run: ClientRun, target: Structure) -> None:
    """Cuts module and optimiser down to a part of the structure that is left, hard, and measures it.

    Batch and running statistics follow by themselves.
    """
    within = run.structure
    if target == within:
        return
    with run.meter.watching(("cut", run.step_key(0), tuple(target.counts.values())), run.held):
        run.runtime.cut(run.module, run.optimizer, run.recipe.architecture.layout, within, target)
    run.structure = target


def held_structure(run: ClientRun) -> Structure:
    """Returns the units that are left; of single weights, those that the network has by now."""
    if not run.recipe.architecture.layout.singles:
        return run.structure
    from fedhp.model.sparse_layers import placed_weights

    return placed_weights(run.module, run.structure)


def trains_whole(run: ClientRun) -> bool:
    """Says whether the step trains all of the network, and no part of it."""
    return "part" not in vars(run) or run.part[0] is run.module


def begin(run: ClientRun) -> None:
    """Sets the recipe's methods to work."""
    run.advance(0, 0)
    run.methods = tuple(kind() for kind in run.recipe.methods)
    for method in run.methods:
        method.begin(run)


def end(run: ClientRun) -> Scores:
    """Ends all methods; returns the scores that travel up: theirs, and of other groups those of the task.

    Raises:
        TrainingError: If a method returns scores of what is no group.
    """
    assigned, held = run.task.state.structure, run.structure
    known = run.task.state.scores
    scores = dict(known)
    if held is not assigned:
        scores = {group: known[group][assigned.positions(held, group)] for group in known}
    for method in run.methods:
        for group, values in (method.end(run) or {}).items():
            if group not in known:
                raise TrainingError(
                    f"client method {type(method).__name__} returned scores of '{group}', which is no group "
                    f"of units: expected {', '.join(known)}"
                )
            scores[group] = np.asarray(values, np.float32)
    return scores


def told_gradients(run: ClientRun) -> Mapping[str, Gradients]:
    """Returns the gradients that travel up, of all methods."""
    return {layer: told for method in run.methods for layer, told in method.gradients().items()}


def local_accuracy(run: ClientRun, held_out: Shard | None, of: str) -> float | None:
    """Returns the accuracy on held-out samples, in batches that fit the budget as a step's do.

    Args:
        run: The training.
        held_out: The samples; None where there are none.
        of: Which model it is.
    """
    if held_out is None:
        return None
    batch = min(run.steps.batch, len(held_out))
    with run.meter.watching(("evaluation", of, run.step_key(batch)), run.held):
        accuracy, _ = run.runtime.evaluate(run.module, held_out, run.steps.inputs, run.device, batch)
    return accuracy
