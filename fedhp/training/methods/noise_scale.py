"""The gradient-noise scale, by which the batch policy ``noise`` tells how far a larger batch pays."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedhp.costs.memory import Extras
from fedhp.training.method import ClientRun, Method
from fedhp.training.recipe import Recipe

if TYPE_CHECKING:
    import torch


class NoiseWatch(Method):
    """Watches the last layer, and tells the training how noisy its gradients are."""

    name = "noise_scale"

    @classmethod
    def at_work(cls, recipe: Recipe) -> bool:
        """Where the batch policy asks for it."""
        return recipe.memory.batch_policy == "noise"

    @classmethod
    def extras(cls, recipe: Recipe) -> Extras:
        """What a look takes."""
        return Extras(noisy=True)

    @classmethod
    def said(cls, recipe: Recipe) -> str:
        """Its key."""
        return "memory.batch_policy = noise"

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Checks that there is a linear layer."""
        from fedhp.model.noise import head_of

        head_of(recipe.architecture.layout)

    @property
    def tensors(self) -> "Sequence[torch.Tensor]":
        """What the last look saw."""
        return self._noise.tensors

    def begin(self, run: ClientRun) -> None:
        """Begins to watch, and to tell what is known."""
        from fedhp.model.noise import NoiseScale, head_of

        self._noise = NoiseScale(run.module.get_submodule(head_of(run.recipe.architecture.layout)))
        run.noise_scale = lambda: self._noise.value

    def on_gradients(self, run: ClientRun) -> None:
        """Takes in a step, by the loss's gradients alone."""
        self._noise.observe()

    def kept(self) -> Mapping[str, Any]:
        """Returns what is known."""
        return self._noise.kept()

    def take_up(self, run: ClientRun, kept: Mapping[str, Any]) -> None:
        """Goes on with it."""
        self._noise.take_up(**kept)

    def end(self, run: ClientRun) -> None:
        """Leaves the module as it was."""
        self._noise.close()
