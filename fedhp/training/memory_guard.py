"""A guard over a device's training: what steps may take follows from the memory that is left."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from fedhp.costs.machine import own_memory
from fedhp.costs.memory import MemoryModel
from fedhp.costs.memory_watch import MemoryWatch
from fedhp.costs.this_process import is_out_of_memory
from fedhp.data.shard import Shard
from fedhp.errors import BudgetError
from fedhp.model.dense import Array, Take
from fedhp.model.structure import Structure
from fedhp.sizes import format_size
from fedhp.training.recipe import Recipe, choose_batch, fitting_steps
from fedhp.training.shortage import ahead_of_schedule
from fedhp.training.statistics import Statistics
from fedhp.training.update import RoundTask


class MemoryGuard:
    """Keeps one local training within the memory that is left, whatever its budget says.

    Where less is left than the next step takes, the training's budget becomes what there is, for the rest of
    the round: batch, and then structure, follow from that as from any budget.

    Args:
        watch: Tells what steps may take.

    Attributes:
        num_shortages: How often it stepped in.
        is_whole: Whether the step at hand has changed nothing yet of what it trains.
    """

    def __init__(self, watch: MemoryWatch) -> None:
        self.num_shortages, self.is_whole, self._watch = 0, True, watch

    def begun(self, recipe: Recipe, task: RoundTask, shard: Shard, *, cuts: bool = True) -> RoundTask:
        """Returns a task as it fits what is left before anything is allocated for it.

        Args:
            recipe: How clients train.
            task: What is asked.
            shard: The samples.
            cuts: Whether the model may be cut for it, where the methods prune; else the batch alone follows.

        Raises:
            BudgetError: If it fits neither that nor the device's budget.
        """
        memory, structure = recipe.memory_model(shard.raw_itemsize), task.state.structure
        steps = fitting_steps(recipe, memory, structure, task.profile.memory_bytes, len(shard))
        allowed = self._watch.look(0, steps.num_bytes)
        if allowed is None:
            return task
        with self.stepping_in():
            may_cut = cuts and any(kind.prunes for kind in recipe.methods)
            if may_cut and not has_steps(memory, structure, allowed):
                structure = ahead_of_schedule(recipe, memory, structure, allowed, task.state.scores)
                task = replace(task, state=task.state.cut(memory.layout, structure))
            choose_batch(recipe, memory, structure, allowed)
        return within(task, allowed)

    @property
    def is_due(self) -> bool:
        """Whether it is time to look."""
        return self._watch.is_due

    def look(self, held_bytes: int, step_bytes: int) -> int | None:
        """Returns what steps may take from now on: see `MemoryWatch.look`."""
        return self._watch.look(held_bytes, step_bytes)

    def noting(self, take: Take) -> Take:
        """Returns what takes in gradients by changing what is trained, noting that it does."""

        def noted(place: int, flow: Array, inputs: Array) -> None:
            self.is_whole = False
            take(place, flow, inputs)

        return noted

    def forgives(self, error: Exception) -> bool:
        """Says whether a step failed for want of memory, having changed nothing: it may be taken again."""
        if not (self.is_whole and is_out_of_memory(error)):
            return False
        self._watch.failed()
        return True

    def named(self, error: Exception) -> Exception:
        """Returns a failure; one for want of memory as a refusal that says so."""
        return self._declined("an allocation failed") if is_out_of_memory(error) else error

    def told(self, statistics: Statistics) -> Statistics:
        """Returns a training's statistics, with what the guard saw and did."""
        left = self._watch.least_left
        return replace(statistics, num_shortages=self.num_shortages, memory_left_bytes=left)

    @contextmanager
    def stepping_in(self) -> Iterator[None]:
        """Fits a training to what is left; what does not fit is refused by name.

        Raises:
            BudgetError: If no step fits.
        """
        self.num_shortages += 1
        try:
            yield
            self._watch.give_back()
        except BudgetError as error:
            raise self._declined(str(error)) from None

    def _declined(self, why: str) -> BudgetError:
        left, reserve, taken = self._watch.least_left, format_size(self._watch.reserve_bytes), own_memory()
        known = "" if left is None else f", {format_size(left)} left with a reserve of {reserve}"
        takes = "" if taken is None else f", this process taking {format_size(taken)}"
        return BudgetError(f"memory is short on this device{known}{takes}: {why}")


def has_steps(memory: MemoryModel, structure: Structure, budget_bytes: int) -> bool:
    """Says whether a structure can be trained within a budget."""
    return memory.largest_batch(structure.counts, budget_bytes) >= memory.layout.smallest_batch


def within(task: RoundTask, budget_bytes: int) -> RoundTask:
    """Returns the task of a device of another budget."""
    return replace(task, profile=replace(task.profile, memory_bytes=budget_bytes))
