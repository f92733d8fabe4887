"""Gradient clipping (Pascanu et al. 2013, arXiv 1211.5063, algorithm 1)."""

from fedhp.costs.memory import Extras
from fedhp.model.kernels import kernels_of
from fedhp.model.optimizer import Optimizer, parameters_of
from fedhp.training.method import ClientRun, Method
from fedhp.training.recipe import Recipe


class Clipping(Method):
    """Scales each step's gradients down to a norm."""

    name = "clipping"
    stackable = True
    on_arrays = True

    @classmethod
    def at_work(cls, recipe: Recipe) -> bool:
        """Where there is a largest norm."""
        return recipe.train.clip_norm > 0

    @classmethod
    def extras(cls, recipe: Recipe) -> Extras:
        """The norms."""
        return Extras(clips=True)

    def on_gradients(self, run: ClientRun) -> None:
        """Clips what the step is about to take."""
        clip_gradients(run.part[1], run.recipe.train.clip_norm)


def clip_gradients(optimizer: Optimizer, largest_norm: float) -> None:
    """Scales all gradients down by one factor where their common Euclidean norm is above the largest one.

    It comes last before the update, as is usual in PyTorch: what penalties and FedProx's pull have added is
    clipped too, and what an optimiser decays of the weights is not.
    """
    parameters = list(parameters_of(optimizer))
    kernels_of(parameters[0].data).clip(parameters, largest_norm)
