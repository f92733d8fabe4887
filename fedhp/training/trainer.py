"""DynHP on one device: train, prune, grow the batch, never exceed the budget.

Knows neither Flower nor Ray.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.data import Shard
from fedhp.errors import TrainingError
from fedhp.model.architecture import to_module
from fedhp.model.draws import drawing
from fedhp.model.gradients import class_mask, gradients
from fedhp.model.modules import restart_statistics, retake_statistics, take_weights, thin_before_convolutions
from fedhp.model.noise import NoiseScale, head_of
from fedhp.model.state import ModelState, Weights
from fedhp.model.structure import Structure
from fedhp.pruning.contributions import Contributions
from fedhp.pruning.criteria import CRITERIA
from fedhp.pruning.cutting import cut, select
from fedhp.pruning.regularizers import REGULARIZERS, allocate
from fedhp.pruning.schedule import scheduled_size
from fedhp.seeds import derive, generator
from fedhp.training import moments
from fedhp.training.evaluation import evaluate_module
from fedhp.training.meter import Key, Meter, step_key
from fedhp.training.optimizers import (
    LR_SCHEDULES,
    OPTIMIZERS,
    allocate_state,
    clip_gradients,
    drop_gradients,
    pull_back,
    state_tensors,
)
from fedhp.training.ordered import OrderedDropout, Part
from fedhp.training.recipe import Recipe, choose_batch
from fedhp.training.update import RoundTask, Statistics, Update

_T = TypeVar("_T")


def train_locally(
    recipe: Recipe,
    task: RoundTask,
    shard: Shard,
    on_epoch: Callable[[Update], None] | None = None,
    held_out: Shard | None = None,
) -> Update:
    """Trains one client for one round, pruning as the schedule demands, within its budget throughout.

    Args:
        recipe: How to train.
        task: The round, the device and the model that it was assigned.
        shard: The client's own data.
        on_epoch: Called after each local epoch with the model so far, without scores, and what that epoch
            measured. The weights are the ones in training: what must outlive the call is to be copied.
        held_out: The client's own data on which the model is evaluated before and after the training.

    Returns:
        The trained, perhaps smaller, model and what was measured.

    Raises:
        BudgetError: If the assigned model does not fit the device's budget with one sample.
        TrainingError: If the loss is not finite.
    """
    least = recipe.architecture.layout.smallest_batch
    if len(shard) < least:
        raise TrainingError(
            f"client {task.client} has too few training samples: {len(shard)}, where a step takes {least}"
        )
    return _Session(recipe, task, shard, held_out).run(on_epoch)


class _Session:
    """One client's local training in one round: the DynHP loop and the state that it carries."""

    def __init__(self, recipe: Recipe, task: RoundTask, shard: Shard, held_out: Shard | None = None) -> None:
        self.recipe, self.task, self.shard, self.held_out = recipe, task, shard, held_out
        self.layout = recipe.architecture.layout
        self.device = recipe.device()
        self.meter = Meter()
        self.structure = task.state.structure
        self.memory = recipe.memory_model(shard.raw_itemsize)
        self.size = 1.0  # the schedule's share at the last cut
        self.noise: NoiseScale | None = None
        self.contributions: Contributions | None = None
        self._begin_phase()  # before anything is allocated: a model that does not fit is refused here
        self._begin_epoch()
        self.module = to_module(recipe.architecture, task.state, self.device)
        thin_before_convolutions(self.module, self.layout)
        self.mask = self._mask()
        self.optimizer = OPTIMIZERS[recipe.train.optimizer].make(self.module.parameters(), recipe.train)
        allocate_state(self.optimizer, recipe.train)
        self.part: Part = self.module, self.optimizer  # what a step trains
        if self.shrinking:
            allocate(recipe.prune.regularizer, self.optimizer)
        self.received_accuracy = self._local_accuracy()  # while nobody watches the module
        self.order = generator(recipe.seed, "batches", task.round, task.client)
        if recipe.memory.batch_policy == "noise":
            self.noise = NoiseScale(self.module.get_submodule(head_of(self.layout)))
        self.contributions = self._contributions()
        self.ordered = self._ordered_dropout()

    def run(self, on_epoch: Callable[[Update], None] | None = None) -> Update:
        try:
            epochs = list(self._epochs(on_epoch))
        finally:
            for watch in (self.contributions, self.noise):
                if watch is not None:
                    watch.close()
        scores = self.contributions.own() if self.contributions is not None else self.task.state.scores
        statistics = self._with_local_accuracies(Statistics.over(epochs))
        return self._update(self.task.state.structure, self._state(scores), statistics)

    def _epochs(self, on_epoch: Callable[[Update], None] | None) -> Iterator[Statistics]:
        for epoch in range(self.recipe.train.local_epochs):
            assigned = self.structure
            with drawing(
                derive(self.recipe.seed, "layers", self.task.round, self.task.client, epoch), self.device
            ):
                self._epoch(epoch)
            statistics = self._statistics()
            if on_epoch is not None:
                on_epoch(self._update(assigned, self._state(), statistics))
            yield statistics
            self._begin_epoch()

    def _state(self, scores: Weights | None = None) -> ModelState:
        return ModelState(take_weights(self.module), self.structure, scores or {})

    def _update(self, assigned: Structure, state: ModelState, statistics: Statistics) -> Update:
        return Update(self.task.client, assigned, state, len(self.shard), statistics)

    def _begin_epoch(self) -> None:
        """Begins to count anew what an epoch measures."""
        self.started = time.perf_counter()
        self.first_batch, self.batch_measured = self.batch, 0
        self.meter.begin(self.step_bytes)

    def _statistics(self) -> Statistics:
        """Returns what the epoch just done measured."""
        return Statistics(
            train_loss=self.loss,
            accuracy=self.accuracy,
            memory_predicted_bytes=self.meter.predicted,
            memory_measured_bytes=self.meter.measured,
            memory_mean_bytes=self.meter.mean(self.num_trained),
            batch_size_first=self.first_batch,
            batch_size_last=self.batch,
            seconds=time.perf_counter() - self.started,
        )

    def _epoch(self, epoch: int) -> None:
        if epoch and self.noise is not None:
            self._begin_phase()  # the noise is known better than at the last cut
        total = len(self.shard)
        order = self.order.permutation(total)
        self._restart_statistics()
        loss_sum = torch.zeros((), device=self.device)
        num_right = torch.zeros((), dtype=torch.int64, device=self.device)
        done = 0
        while total - done >= self.layout.smallest_batch:
            rows = order[done : done + self.batch]
            self._set_learning_rate(self._progress(epoch, done))
            self._draw_part()
            loss, right = self._measured_step(rows)
            self.meter.count(self.step_bytes, len(rows))
            loss_sum.add_(loss, alpha=len(rows))
            num_right += right
            done += len(rows)
            self.num_since_restart += len(rows)
            self._prune_if_due(self._progress(epoch, done))
        self.num_trained = done
        self._complete_statistics(order[:done])
        self.loss, self.accuracy = float(loss_sum) / done, float(num_right) / done
        if not math.isfinite(self.loss):
            raise TrainingError(
                f"the training loss of client {self.task.client} in round {self.task.round} is "
                f"{self.loss}; lower train.learning_rate"
            )

    def _restart_statistics(self) -> None:
        """Forgets the running statistics of the network that was: from here on they are those of this one."""
        restart_statistics(self.module)
        self.num_since_restart = 0

    def _complete_statistics(self, order: NDArray[np.intp]) -> None:
        """Takes running statistics anew where too few of an epoch's samples have come after its last cut."""
        wanted = order[: moments.ENOUGH]
        if not self.layout.buffers or self.num_since_restart >= len(wanted):
            return
        batch = min(self.batch, len(wanted))
        rows = moments.batches(wanted, batch, self.layout.smallest_batch)
        samples = (self._batch(some)[0] for some in rows)
        key = ("statistics", self._step_key(batch))
        self._metered(key, lambda: retake_statistics(self.module, samples))

    def _with_local_accuracies(self, statistics: Statistics) -> Statistics:
        """Returns the training's statistics with what the held-out samples say before and after it."""
        if self.held_out is None:
            return statistics
        own_accuracy = self._local_accuracy()
        return replace(
            statistics,
            memory_measured_bytes=max(statistics.memory_measured_bytes, self.meter.measured),
            num_local_test=len(self.held_out),
            local_accuracy_global=self.received_accuracy,
            local_accuracy_personal=own_accuracy,
        )

    def _local_accuracy(self) -> float | None:
        """Returns the accuracy on the held-out samples, in batches that fit the budget as a step's do."""
        held_out = self.held_out
        if held_out is None:
            return None
        started, batch = time.perf_counter(), min(self.batch, len(held_out))
        accuracy, _ = self._metered(
            ("evaluation", self._step_key(batch)),
            lambda: evaluate_module(self.module, held_out, self.inputs, self.device, batch),
        )
        self.started += time.perf_counter() - started  # no part of the training
        return accuracy

    def _step(self, rows: NDArray[np.intp]) -> tuple[torch.Tensor, torch.Tensor]:
        return training_step(*self.part, *self._batch(rows), self._on_gradients, self.mask)

    def _batch(self, rows: NDArray[np.intp]) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = self.shard.batch(rows, self.inputs)
        if self.device.type != "cpu":
            images, labels = images.to(self.device), labels.to(self.device)
        return images, labels

    def _on_gradients(self) -> None:
        """Measures noise and units by the loss's gradients alone, adds those of penalties, and clips all."""
        if self.noise is not None:
            self.noise.observe()
        if self.shrinking:
            assert self.contributions is not None
            self.contributions.observe()
            prune = self.recipe.prune
            push = REGULARIZERS[prune.regularizer].push
            push(self.contributions.evidence.values(), self.optimizer, prune.regularizer_strength)
        if self.recipe.train.proximal_mu:
            pull_back(self.part[1], self.recipe.train.proximal_mu)
        if self.recipe.train.clip_norm:
            clip_gradients(self.part[1], self.recipe.train.clip_norm)

    def _measured_step(self, rows: NDArray[np.intp]) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs a step, measuring its peak if no step of its shape was measured in this process yet.

        The live tensors of a step are a function of its shapes alone, so that one measurement serves every
        client and round that takes the same step. An epoch's last step may be shorter and takes less: it is
        measured where it comes first, and the next full one is measured again.
        """
        if len(rows) <= self.batch_measured:
            return self._step(rows)
        self.batch_measured = len(rows)
        return self._metered(self._step_key(len(rows)), lambda: self._step(rows))

    def _metered(self, key: Key, work: Callable[[], _T]) -> _T:
        """Runs some work, and counts its peak."""
        return self.meter.run(key, self._held, work)

    def _held(self) -> list[torch.Tensor]:
        """Returns what lives between steps; whoever keeps the list keeps what a cut would free."""
        mask = [] if self.mask is None else [self.mask]
        watches = [watch for watch in (self.contributions, self.noise) if watch is not None]
        kept = [*state_tensors(self.optimizer), *mask, *(t for watch in watches for t in watch.tensors)]
        return [*self.module.parameters(), *self.module.buffers(), *kept]

    def _step_key(self, batch: int) -> Key:
        modules = (self.module, self.part[0])
        masked = self.mask is not None
        return step_key(self.recipe, self.memory, self.shard, modules, batch, masked, self.shrinking)

    def _progress(self, epoch: int, done: int) -> float:
        """Returns the share of the whole training that is done, 0 to 1."""
        local = (epoch + done / len(self.shard)) / self.recipe.train.local_epochs
        return (self.task.round - 1 + local) / self.recipe.rounds

    def _set_learning_rate(self, progress: float) -> None:
        train = self.recipe.train
        rate = train.learning_rate * LR_SCHEDULES[train.lr_schedule](progress) * self.lr_factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _begin_phase(self) -> None:
        """Chooses the batch for the structure just reached."""
        self.batch_measured = 0
        # Whether anything is left to cut: otherwise there is nothing to track or to press for.
        self.shrinking = self._excess(progress=1.0)
        self.inputs = self.recipe.architecture.kept_inputs(self.structure)
        noise_scale = self.noise.value if self.noise is not None else 0.0
        budget = self.task.profile.memory_bytes
        chosen = choose_batch(self.recipe, self.memory, self.structure, budget, noise_scale)
        # By the batch that the policy chose: neither few samples nor an epoch's short last step scale it.
        self.lr_factor = self.recipe.memory.lr_factor(chosen, self.recipe.train.batch_size)
        self.batch = min(chosen, len(self.shard))
        self.step_bytes = self.memory.training_bytes(self.structure.counts, self.batch)
        self.meter.expect(self.step_bytes)

    def _mask(self) -> torch.Tensor | None:
        """Returns what keeps absent classes out of the loss; None where they are in it, or none is absent."""
        if not self.recipe.train.masked_loss:
            return None
        return class_mask(self.shard.classes(), self.recipe.architecture.num_classes, self.device)

    def _contributions(self) -> Contributions | None:
        """Returns the tracker, or None when nothing will ever be cut and tracking is for nothing."""
        if not self.shrinking:
            return None
        prune = self.recipe.prune
        source = torch.Generator().manual_seed(
            derive(self.recipe.seed, "criterion", self.task.round, self.task.client)
        )
        criterion, known = CRITERIA[prune.criterion], self.task.state.scores
        return Contributions(self.layout, criterion, self.module, known, prune.blend, source)

    def _ordered_dropout(self) -> OrderedDropout | None:
        if not self.recipe.widths:
            return None
        stream = generator(self.recipe.seed, "ordered dropout", self.task.round, self.task.client)
        arch, counts = self.recipe.architecture, self.structure.counts
        return OrderedDropout(arch, self.module, self.optimizer, counts, self.recipe.widths, stream)

    def _draw_part(self) -> None:
        if self.ordered is not None:
            self.part = self.ordered.draw()
            self.batch_measured = 0  # a wider part than the last one takes more

    def _excess(self, progress: float) -> bool:
        """Says whether the structure is larger than the schedule allows at this progress."""
        allowed = self.recipe.schedule.counts(progress)
        return any(count > allowed[group] for group, count in self.structure.counts.items())

    def _prune_if_due(self, progress: float) -> None:
        prune = self.recipe.prune
        size = scheduled_size(prune, progress) if self.shrinking else 1.0
        if size >= (1.0 if prune.marginal else self.size):
            return  # as small already as is due
        self.size = size
        assert self.contributions is not None
        allowed = self.recipe.schedule.counts(progress)
        if not prune.marginal and not self._excess(progress):
            return
        scores = self.contributions.blended()
        # Ahead of schedule is not beyond it: shares of a mean that rises with every cut would go on for ever.
        least = self.recipe.schedule.counts(1.0)
        target = select(scores, self.structure, allowed, least, prune.marginal)
        if target == self.structure:
            return
        key = ("cut", self._step_key(0), tuple(target.counts.values()))
        within = self.structure
        self._metered(key, lambda: cut(self.module, self.optimizer, self.layout, within, target))
        self.contributions.cut(self.structure, target)
        self._restart_statistics()
        self.structure = target
        self._begin_phase()
        if not self.shrinking:
            self.contributions.close()


def training_step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    observe: Callable[[], None] | None = None,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Takes one step on a batch.

    Args:
        module: The model.
        optimizer: Its optimiser.
        images: Samples, float32 of shape ``(batch, channels, height, width)``, or ``(batch, inputs)`` where
            the model takes some of their entries.
        labels: Classes, int64 of shape ``(batch,)``.
        observe: Called between the backward pass and the update, while there are gradients.
        mask: What is added to the logits, a `class_mask`.

    Returns:
        The mean loss, and the number of samples predicted right, as 0-d tensors.
    """
    loss, right = gradients(module, images, labels, mask)
    if observe is not None:
        observe()
    optimizer.step()
    drop_gradients(optimizer)
    return loss, right
