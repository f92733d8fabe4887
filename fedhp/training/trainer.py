"""A client's local training: one loop for every client method, never beyond the budget.

Knows neither Flower nor Ray.
"""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.bounds import LARGEST_WHOLE
from fedhp.data.shard import Shard
from fedhp.errors import TrainingError
from fedhp.model.building import to_module
from fedhp.model.draws import drawing
from fedhp.model.gradients import gradients
from fedhp.model.modules import take_weights, thin_before_convolutions
from fedhp.model.optimizer import Optimizer
from fedhp.model.state import ModelState, Weights
from fedhp.model.structure import Structure
from fedhp.seeds import derive, generator
from fedhp.training.batch_statistics import BatchStatistics
from fedhp.training.evaluation import evaluate_module
from fedhp.training.method import ClientRun, Part, begin, end
from fedhp.training.optimizers import LR_SCHEDULES, OPTIMIZERS, allocate_state, drop_gradients
from fedhp.training.recipe import Recipe, Steps, fitting_steps
from fedhp.training.statistics import Statistics
from fedhp.training.update import RoundTask, Update

_NOT_WATCHED = nullcontext()


def train_locally(
    recipe: Recipe,
    task: RoundTask,
    shard: Shard,
    on_epoch: Callable[[Update], None] | None = None,
    held_out: Shard | None = None,
) -> Update:
    """Trains one client for one round, by the recipe's methods, within its budget throughout.

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
    session, epochs = _Session(recipe, task, shard), []
    run = session.run
    received = _local_accuracy(run, held_out, "received")  # while nobody watches the module
    begin(run)
    for epoch in range(recipe.train.local_epochs):
        assigned = run.structure
        with drawing(derive(recipe.seed, "layers", task.round, task.client, epoch), run.device):
            epochs.append(session.epoch(epoch))
        if on_epoch is not None:
            on_epoch(_update(run, assigned, {}, epochs[-1]))
    scores, statistics = end(run), Statistics.over(epochs)
    if held_out is not None:
        statistics = replace(
            statistics,
            num_local_test=len(held_out),
            local_accuracy_global=received,
            local_accuracy_personal=_local_accuracy(run, held_out, "trained"),
            memory_measured_bytes=max(statistics.memory_measured_bytes, run.meter.measured),
        )
    return _update(run, task.state.structure, scores, statistics)


class _Session:
    """One client's local training in one round: the loop, and what an epoch measures."""

    def __init__(self, recipe: Recipe, task: RoundTask, shard: Shard) -> None:
        started, structure = time.perf_counter(), task.state.structure
        # Before anything is allocated: a model that does not fit is refused here.
        steps = _steps(recipe, task, shard, structure)
        module = to_module(recipe.architecture, task.state, recipe.device())
        thin_before_convolutions(module, recipe.architecture.layout)
        optimizer = OPTIMIZERS[recipe.train.optimizer].make(module.parameters(), recipe.train)
        allocate_state(optimizer, recipe.train)
        part = module, optimizer
        self.run = ClientRun(recipe, task, shard, structure, steps, module, optimizer, part)
        self.run.meter.expect(steps.num_bytes)
        self.order = generator(recipe.seed, "batches", task.round, task.client)
        self.statistics = BatchStatistics(self.run)
        self.watched: tuple[Part, int] = part, 0  # whose peak is known, up to which batch
        self.gradient_norm: float | None = None  # of the epoch's first step
        self.seconds_before = time.perf_counter() - started  # which the first epoch counts

    def epoch(self, epoch: int) -> Statistics:
        """Passes over the data once; returns what it measured.

        Raises:
            TrainingError: If the loss is not finite.
        """
        run, started, done = self.run, time.perf_counter(), 0
        first_batch, self.gradient_norm = run.steps.batch, None
        if epoch:
            run.meter.begin(run.steps.num_bytes)
            self._fit_steps()  # the noise may be known better than at the last cut
        order, least = self.order.permutation(len(run.shard)), run.memory.layout.smallest_batch
        self.statistics.restart()
        loss_sum = torch.zeros((), device=run.device)
        num_right = torch.zeros((), dtype=torch.int64, device=run.device)
        while len(order) - done >= least:
            rows = order[done : done + run.steps.batch]
            self._before_step(epoch, done)
            with self._watching(len(rows)):
                loss, right = self._step(rows)
            run.meter.count(run.steps.num_bytes, len(rows))
            loss_sum.add_(loss, alpha=len(rows))
            num_right += right
            done += len(rows)
            self.statistics.count(len(rows))
            self._after_step(epoch, done)
        self.statistics.complete(order[:done])
        return Statistics(
            train_loss=_finite(float(loss_sum) / done, run.task),
            accuracy=float(num_right) / done,
            gradient_norm=self.gradient_norm or 0.0,
            memory_predicted_bytes=run.meter.predicted,
            memory_measured_bytes=run.meter.measured,
            memory_mean_bytes=run.meter.mean(done),
            batch_size_first=first_batch,
            batch_size_last=run.steps.batch,
            seconds=time.perf_counter() - started + (0 if epoch else self.seconds_before),
        )

    def _before_step(self, epoch: int, done: int) -> None:
        run, train = self.run, self.run.recipe.train
        run.advance(epoch, done)
        rate = train.learning_rate * LR_SCHEDULES[train.lr_schedule](run.progress) * run.steps.lr_factor
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        for method in run.methods:
            method.before_step(run)

    def _watching(self, batch: int) -> AbstractContextManager[None]:
        """Measures the peak of a step, if none of its shape was measured in this process yet.

        The live tensors of a step are a function of its shapes alone, so that one measurement serves every
        client and round that takes the same step. An epoch's last step may be shorter and takes less: it is
        measured where it comes first, and the next full one is measured again.
        """
        run, (part, most) = self.run, self.watched
        if run.part is part and batch <= most:
            return _NOT_WATCHED
        self.watched = run.part, batch
        return run.meter.watching(run.step_key(batch), run.held)

    def _step(self, rows: NDArray[np.intp]) -> tuple[torch.Tensor, torch.Tensor]:
        return training_step(*self.run.part, *self.run.batch(rows), self._on_gradients, self.run.mask)

    def _on_gradients(self) -> None:
        if self.gradient_norm is None:
            # Beyond what a record's numbers hold, where clipping goes on with such a gradient.
            self.gradient_norm = min(gradient_norm(self.run.part[1]), float(LARGEST_WHOLE))
        for method in self.run.methods:
            method.on_gradients(self.run)

    def _after_step(self, epoch: int, done: int) -> None:
        """Lets methods act; what they cut changes the steps that fit, and the network's statistics."""
        run, before = self.run, self.run.structure
        run.advance(epoch, done)
        for method in run.methods:
            method.after_step(run)
        if run.structure is not before:
            self.statistics.restart()
            self._fit_steps()

    def _fit_steps(self) -> None:
        """Chooses the batch for the structure just reached."""
        run = self.run
        run.steps = _steps(run.recipe, run.task, run.shard, run.structure, run.noise_scale())
        run.meter.expect(run.steps.num_bytes)
        self.watched = run.part, 0


def _update(run: ClientRun, assigned: Structure, scores: Weights, statistics: Statistics) -> Update:
    """Returns the model so far, as what came of the structure that was assigned."""
    state = ModelState(take_weights(run.module), run.structure, scores)
    return Update(run.task.client, assigned, state, len(run.shard), statistics)


def _local_accuracy(run: ClientRun, held_out: Shard | None, of: str) -> float | None:
    """Returns the accuracy on the held-out samples, in batches that fit the budget as a step's do."""
    if held_out is None:
        return None
    batch = min(run.steps.batch, len(held_out))
    with run.meter.watching(("evaluation", of, run.step_key(batch)), run.held):
        accuracy, _ = evaluate_module(run.module, held_out, run.steps.inputs, run.device, batch)
    return accuracy


def _finite(loss: float, task: RoundTask) -> float:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the training loss of client {task.client} in round {task.round} is {loss}; lower "
            "train.learning_rate"
        )
    return loss


def _steps(
    recipe: Recipe, task: RoundTask, shard: Shard, structure: Structure, noise_scale: float = 0.0
) -> Steps:
    """Returns the steps of a device that fit a structure.

    Raises:
        BudgetError: If none does.
    """
    memory, budget = recipe.memory_model(shard.raw_itemsize), task.profile.memory_bytes
    return fitting_steps(recipe, memory, structure, budget, len(shard), noise_scale)


def gradient_norm(optimizer: Optimizer) -> float:
    """Returns the common L2 norm of all gradients.

    Taken in every step, it would cost a small network 4 % of its training. It looks at one gradient after the
    other, and so takes a number where the backward pass, just before, had one for each output of a layer.
    """
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    grads = (parameter.grad for parameter in parameters if parameter.grad is not None)
    return math.hypot(*(torch.linalg.vector_norm(grad).item() for grad in grads))


def training_step(
    module: nn.Module,
    optimizer: Optimizer,
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
        mask: What is added to the logits, of shape ``(num_classes,)``.

    Returns:
        The mean loss, and the number of samples predicted right, as 0-d tensors.
    """
    loss, right = gradients(module, images, labels, mask)
    if observe is not None:
        observe()
    optimizer.step()
    drop_gradients(optimizer)
    return loss, right
