"""Tells a server where weights would help that the network does not have: FedTiny's clients.

A client sends the loss's largest gradients by such weights (Huang et al. 2022, arXiv 2212.01977), of one
batch, and of no more weights than the server grows. The batch is the last full one of its training, whose
step is taken as any other.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedhp.costs.memory import NO_EXTRAS, Extras
from fedhp.training.method import ClientRun, Method
from fedhp.training.method_names import TOP_GRADIENTS
from fedhp.training.places import Steepest
from fedhp.training.recipe import Recipe
from fedhp.training.update import Gradients

if TYPE_CHECKING:
    import torch


class TopGradients(Method):
    """Looks for the largest gradients, in rounds after which the server moves weights."""

    name = TOP_GRADIENTS
    by_strategy = True

    @classmethod
    def at_work(cls, recipe: Recipe) -> bool:
        """Where weights are left out."""
        return recipe.architecture.plain is not None

    @classmethod
    def extras(cls, recipe: Recipe) -> Extras:
        """What is found, and what it takes to find it."""
        moves = recipe.moves.every > 0
        return Extras(grows=recipe.moves.drop, tells=True) if moves else NO_EXTRAS

    @classmethod
    def said(cls, recipe: Recipe) -> str:
        """The key that asks for it."""
        return f"strategy.fedtiny.every = {recipe.moves.every}"

    def __init__(self) -> None:
        self._moving: Mapping[str, int] = {}
        self._layers: dict[str, Any] = {}
        self._searches: dict[str, Steepest] = {}
        self._has_looked = False

    @property
    def tensors(self) -> "Sequence[torch.Tensor]":
        """What was found."""
        return [tensor for search in self._searches.values() for tensor in search.kept]

    @property
    def key(self) -> Hashable:
        """How much that is."""
        return self.name, tuple(len(tensor) for tensor in self.tensors)

    def begin(self, run: ClientRun) -> None:
        """Finds the layers in which the server moves weights after this round."""
        from fedhp.model.sparse_layers import sparse_layers

        recipe, layout = run.recipe, run.recipe.architecture.layout
        self._moving = recipe.moves.after(layout, run.structure.counts, run.task.round, recipe.rounds)
        self._layers = sparse_layers(run.module) if self._moving else {}

    def before_step(self, run: ClientRun) -> None:
        """Looks at the gradients of the last full batch."""
        run.odd = None
        if not self._moving or self._has_looked or not _is_last_full(run):
            return
        for name, number in self._moving.items():
            self._layers[name].search = self._searches[name] = Steepest(number)
        run.odd = self.name, tuple(self._moving.values())

    def after_step(self, run: ClientRun) -> None:
        """Has looked, if the step was taken."""
        self._has_looked, run.odd = bool(self._searches), None

    def gradients(self) -> Mapping[str, Gradients]:
        """Returns what was found."""
        return {name: search.gradients() for name, search in self._searches.items()}


def _is_last_full(run: ClientRun) -> bool:
    epochs, samples = run.recipe.train.local_epochs, len(run.shard)
    done = run.progress * run.recipe.rounds - (run.task.round - 1)
    left = round((1 - done) * epochs * samples)
    return left <= samples and left < 2 * run.steps.batch
