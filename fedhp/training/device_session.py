"""A real device's local training under way: a session whose memory a guard looks after."""

from collections.abc import Callable
from dataclasses import replace

from fedhp.model.optimizer import drop_gradients
from fedhp.training.memory_guard import MemoryGuard, has_steps, within
from fedhp.training.recipe import Recipe
from fedhp.training.session import Client, Session


class DeviceSession(Session):
    """A session whose steps are as small as the memory asks for that is left.

    Args:
        recipe: How to train.
        client: Who is to train.
        guard: Looks after it.

    Raises:
        BudgetError: If the assigned model does not fit the device's budget, or what is left, with one sample.
        TrainingError: If there are too few samples for a step.
    """

    def __init__(self, recipe: Recipe, client: Client, guard: MemoryGuard) -> None:
        task = guard.begun(recipe, client.task, client.shard)
        super().__init__(recipe, replace(client, task=task))
        self.client, self._guard = client, guard

    def before_step(self) -> float:
        """Has the guard look first."""
        if self._guard.is_due:
            held = sum(array.nbytes for array in self.run.held())
            allowed = self._guard.look(held, self.run.steps.num_bytes)
            if allowed is not None:
                self._fit(allowed)
        self._guard.is_whole = True
        return super().before_step()

    def on_gradients(self, norm: Callable[[], float]) -> None:
        """From here on the step changes what it trains."""
        self._guard.is_whole = False
        super().on_gradients(norm)

    def _fit(self, allowed_bytes: int) -> None:
        """Fits batch, and then structure, into what steps may take."""
        run, before = self.run, self.run.structure
        run.task = within(run.task, allowed_bytes)
        # Of a step that failed: its gradients, and running statistics that have seen its samples.
        drop_gradients(run.optimizer)
        self._statistics.restart()
        with self._guard.stepping_in():
            if not has_steps(run.memory, run.structure, allowed_bytes):
                for method in run.methods:
                    method.on_shortage(run, allowed_bytes)
            self.refit(before)
