"""One client's local training in one round: what it keeps from step to step, and what an epoch measures."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedhp.bounds import LARGEST_WHOLE
from fedhp.data.shard import Shard
from fedhp.errors import TrainingError
from fedhp.model.dense import Form
from fedhp.model.structure import Structure
from fedhp.seeds import generator
from fedhp.training import moments
from fedhp.training.epoch import Epoch
from fedhp.training.memory_guard import MemoryGuard
from fedhp.training.method import ClientRun, Part, begin, local_accuracy, trains_whole
from fedhp.training.options import LR_SCHEDULES
from fedhp.training.recipe import Recipe, Steps, fitting_steps
from fedhp.training.statistics import Statistics
from fedhp.training.update import RoundTask

if TYPE_CHECKING:
    from fedhp.training.rows import Row

# Of each client of a step, the mean loss of its samples, and how many of them were predicted right.
Judged = tuple[Sequence[float], Sequence[int]]


@dataclass(frozen=True)
class Client:
    """A client of a round.

    Attributes:
        task: What it is asked.
        shard: Its own training data.
        held_out: Its own data on which the model is evaluated before and after, if any.
        guard: Looks after its memory, on a real device.
    """

    task: RoundTask
    shard: Shard
    held_out: Shard | None = None
    guard: MemoryGuard | None = None


class Session:
    """A client's local training under way.

    Args:
        recipe: How to train.
        client: Who is to train.
        row: Where its copy of the assigned model lies beside those of others; None for one by itself.

    Attributes:
        run: What methods look at.
        client: Who trains.
        received: The accuracy of the model as it came, on samples that the client holds out.
        epoch: The epoch under way, over its samples in the ``order`` that ``stream`` has drawn.
        epochs: What those before measured.
        shape: What networks and batches that are computed together have in common.
        watched: A step whose peak is known: see `fedhp.training.peaks`.
        seconds: How long it took so far: of what was done for several at once, an even part.
        failure: Why it goes no further; None while it does.
        form: How its network's steps are computed beside others'; None where they are not.
        stack: What holds its tensors beside those of others, as long as they lie there.

    Raises:
        BudgetError: If the assigned model does not fit the device's budget with one sample.
        TrainingError: If there are too few samples for a step.
    """

    def __init__(self, recipe: Recipe, client: Client, row: "Row | None" = None) -> None:
        started, task, shard = time.perf_counter(), client.task, client.shard
        _check_samples(recipe, client)
        # A model that does not fit is refused here: by itself, before anything is allocated.
        steps = _steps(recipe, task, shard, task.state.structure)
        self.run = ClientRun(recipe, task, shard, task.state.structure, steps, row)
        self.take(steps)
        self.failure: Exception | None = None
        self.client, self.epochs = client, list[Statistics]()
        self.stream = generator(recipe.seed, "batches", task.round, task.client)
        self._statistics = _BatchStatistics(self.run)
        self.received = local_accuracy(self.run, client.held_out, "received")  # while nobody watches
        begin(self.run)
        self._look()
        self.seconds = time.perf_counter() - started

    @property
    def wants_gradients(self) -> bool:
        """Whether the next step's gradients are looked at."""
        return self.epoch.gradient_norm is None or any(m.wants_gradients for m in self.run.methods)

    @property
    def has_batch(self) -> bool:
        """Whether enough of the epoch's samples are left for a step."""
        return len(self.order) - self.epoch.done >= self.run.memory.layout.smallest_batch

    @property
    def rows(self) -> NDArray[np.intp]:
        """The samples of the next step."""
        return self.order[self.epoch.done :][: self.run.steps.batch]

    @property
    def is_dense(self) -> bool:
        """Whether it is a stack of one where none is beside it."""
        return self.form is not None and self.form.is_dense

    def begin_epoch(self, number: int) -> None:
        """Begins a pass over the data."""
        run = self.run
        self.epoch = Epoch(number, run.structure, run.steps.batch, self.seconds if number else 0.0)
        if number:
            run.meter.begin(run.steps.num_bytes)
            self.refit(run.structure)  # the noise may be known better than at the last cut
        run.advance(number, 0)
        self.order = self.stream.permutation(len(run.shard))
        self._statistics.restart()

    def before_step(self) -> float:
        """Sets the learning rate of the next step, which it returns, and lets methods act."""
        run, train = self.run, self.run.recipe.train
        rate = train.learning_rate * LR_SCHEDULES[train.lr_schedule](run.progress) * run.steps.lr_factor
        run.set_rate(rate)
        for method in run.methods:
            method.before_step(run)
        return rate

    def on_gradients(self, norm: Callable[[], float]) -> None:
        """Lets methods act on the gradients that there are; ``norm`` tells their common norm."""
        if self.epoch.gradient_norm is None:
            # Beyond what a record's numbers hold, where clipping goes on with such a gradient.
            self.epoch.gradient_norm = min(norm(), float(LARGEST_WHOLE))
        for method in self.run.methods:
            method.on_gradients(self.run)

    def after_step(self, loss: float, num_right: int) -> None:
        """Takes in the step's mean loss and number of right samples, and lets methods act."""
        run, before, number = self.run, self.run.structure, len(self.rows)
        run.meter.count(run.steps.num_bytes, number)
        self.epoch.count(number, loss, num_right)
        self._statistics.count(number if trains_whole(run) else 0)
        run.advance(self.epoch.number, self.epoch.done)
        for method in run.methods:
            method.after_step(run)
        if run.structure is not before:
            self.refit(before)

    def refit(self, before: Structure) -> None:
        """Chooses the batch anew; where units were cut since, statistics are of another network."""
        run = self.run
        if run.structure is not before:
            self._statistics.restart()
            self._look()
        self.take(_steps(run.recipe, run.task, run.shard, run.structure, run.noise_scale()))

    def end_epoch(self, is_read: bool = True) -> None:
        """Takes in what the epoch measured; ``is_read`` says whether somebody looks at the model now.

        Raises:
            TrainingError: If the loss is not finite.
        """
        self._statistics.complete(self.order[: self.epoch.done], is_read)
        run = self.run
        self.epochs.append(self.epoch.statistics(run.task, run.meter, run.steps.batch, self.seconds))

    def _look(self) -> None:
        """Finds whether the network as it is can be computed beside others."""
        self.stack: object = None
        self.form = _form(self.run)

    def take(self, steps: Steps) -> None:
        """Takes steps like these from now on."""
        self.run.steps, self.shape = steps, (steps.batch, *self.run.structure.counts.values())
        self.run.meter.expect(steps.num_bytes)
        self.watched: tuple[Part | None, tuple[bool, int]] | None = None


def _form(run: ClientRun) -> Form | None:
    if not all(method.stackable for method in run.methods):
        return None
    return run.runtime.form(run.module, run.row is None) if run.unseen is None else run.unseen.rows.form


@contextmanager
def guarded(session: Session) -> Iterator[None]:
    """Lets what goes wrong in the block be the failure of this client alone."""
    try:
        yield
    except Exception as error:
        session.failure = error


def _check_samples(recipe: Recipe, client: Client) -> None:
    least = recipe.architecture.layout.smallest_batch
    if len(client.shard) < least:
        raise TrainingError(
            f"client {client.task.client} has too few training samples: {len(client.shard)}, where a step "
            f"takes {least}"
        )


def _steps(
    recipe: Recipe, task: RoundTask, shard: Shard, structure: Structure, noise_scale: float = 0.0
) -> Steps:
    """Returns the steps of a device that fit a structure.

    Raises:
        BudgetError: If none does.
    """
    memory, budget = recipe.memory_model(shard.raw_itemsize), task.profile.memory_bytes
    return fitting_steps(recipe, memory, structure, budget, len(shard), noise_scale)


class _BatchStatistics:
    """Which running statistics a client's training has: of how many samples since they began anew.

    Args:
        run: The training.
    """

    def __init__(self, run: ClientRun) -> None:
        self._run = run
        self._num_seen = 0

    def restart(self) -> None:
        """Forgets those of the network that was: from here on they are those of this one."""
        if self._run.memory.layout.buffers:
            self._run.runtime.restart_statistics(self._run.module)
        self._num_seen = 0

    def count(self, num_samples: int) -> None:
        """Takes in that a step has seen so many samples."""
        self._num_seen += num_samples

    def complete(self, order: NDArray[np.intp], is_read: bool) -> None:
        """Takes them anew where too few of an epoch's samples have come after its last cut, or none count.

        Args:
            order: The rows of the epoch's samples.
            is_read: Whether somebody looks at the model now.
        """
        run, wanted = self._run, order[: moments.ENOUGH]
        layout = run.memory.layout
        is_due = self._num_seen < len(wanted) or (layout.static and is_read)
        if not layout.buffers or not is_due:
            return
        batch = min(run.steps.batch, len(wanted))
        rows = moments.batches(wanted, batch, layout.smallest_batch)
        samples = (run.batch(some)[0] for some in rows)
        with run.meter.watching(("statistics", run.step_key(batch)), run.held):
            run.runtime.retake_statistics(run.module, samples)
