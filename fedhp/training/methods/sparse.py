"""Sparse training: from the first step to the last, layers hold so many of their weights and no more.

RigL (Evci et al. 2020, arXiv 1911.11134) drops, now and then, the weights of each layer that are nearest to
0, and grows as many where the loss's gradient is steepest; SET (Mocanu et al. 2018, arXiv 1707.04780) grows
them anywhere; a static mask stays. Weights that grow begin at 0, and so does their momentum.

Two choices are ours. The step whose gradients tell where to grow is taken too, where the paper leaves it out:
a local training in a fleet may have ten. And what was just dropped does not grow again in the same step.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedhp.costs.memory import Extras
from fedhp.model.architecture import Architecture
from fedhp.model.sparse_network import sparse_network
from fedhp.pruning.options import PruneConfig
from fedhp.seeds import derive
from fedhp.training.method import ClientRun, Method
from fedhp.training.method_names import RIGL, SET, STATIC
from fedhp.training.options import TrainConfig
from fedhp.training.places import Places
from fedhp.training.recipe import Recipe

if TYPE_CHECKING:
    import torch


class SparseTraining(Method):
    """Trains a network that holds a part of its weights, which stay where they are."""

    by_strategy = True
    shrinks = True

    @classmethod
    def network(cls, arch: Architecture, train: TrainConfig, prune: PruneConfig) -> Architecture:
        """Leaves out as many weights as the target asks for, if any."""
        if prune.target_compression == 1:
            return arch
        return sparse_network(arch, prune.target_compression, train.sparse.densities)

    @classmethod
    def at_work(cls, recipe: Recipe) -> bool:
        """Where weights are left out."""
        return recipe.architecture.plain is not None

    @classmethod
    def said(cls, recipe: Recipe) -> str:
        """Its key."""
        return f"train.method = {cls.name}"


class StaticMask(SparseTraining):
    """The weights that were drawn at the start."""

    name = STATIC


class Rewiring(SparseTraining):
    """Drops weights and grows others, as often and as many as the scenario says."""

    @classmethod
    def extras(cls, recipe: Recipe) -> Extras:
        """What is grown, and what it takes to find and place it."""
        return Extras(grows=recipe.train.sparse.drop)

    def __init__(self) -> None:
        self._since = 0  # steps since the last time
        self._number = 0  # of the times, in this local training
        self._layers: dict[str, Any] = {}
        self._searches: dict[str, Places] = {}

    @property
    def tensors(self) -> "Sequence[torch.Tensor]":
        """Nothing: positions are the network's."""
        return ()

    @property
    def key(self) -> Hashable:
        """Which it is."""
        return self.name

    def begin(self, run: ClientRun) -> None:
        """Finds the layers."""
        from fedhp.model.sparse_layers import sparse_layers

        self._layers = sparse_layers(run.module)

    def kept(self) -> Mapping[str, Any]:
        """Returns how far it has come."""
        return {"since": self._since, "number": self._number}

    def take_up(self, run: ClientRun, kept: Mapping[str, Any]) -> None:
        """Goes on from there."""
        self._since, self._number = int(kept["since"]), int(kept["number"])

    def before_step(self, run: ClientRun) -> None:
        """Looks for places in the step's gradients, where it is time to."""
        self._since += 1
        run.odd, self._searches = None, {}
        share = run.recipe.train.sparse.share(run.progress)
        if share and self._is_time(run):
            for name, layer in self._layers.items():
                held = layer.weight.numel()
                if number := min(int(share * held), layer.weight_size - held):
                    layer.search = self._searches[name] = self._search(run, name, number)
            run.odd = self.name, tuple(one.number for one in self._searches.values())

    def _is_time(self, run: ClientRun) -> bool:
        """Says whether the next step is one: every so many, or the one half-way through a short training."""
        if self._since >= run.recipe.train.sparse.every:
            return True
        epochs, samples = run.recipe.train.local_epochs, len(run.shard)
        done = run.progress * run.recipe.rounds - (run.task.round - 1)
        return not self._number and done + run.steps.batch / (samples * epochs) >= 0.5

    def _search(self, run: ClientRun, name: str, number: int) -> "Places":
        raise NotImplementedError

    def after_step(self, run: ClientRun) -> None:
        """Drops, and grows what was found."""
        if run.odd is None:
            return
        self._since, self._number = 0, self._number + 1
        with run.meter.watching((self.name, "rewires", run.odd, run.step_key(0)), run.held):
            for name, search in self._searches.items():
                rewire(self._layers[name], search.found, run.optimizer.state[self._layers[name].weight])
        run.odd, self._searches = None, {}


class RigL(Rewiring):
    """Grows where the loss's gradient is steepest."""

    name = RIGL

    def _search(self, run: ClientRun, name: str, number: int) -> "Places":
        return Places(number, lambda gradient: gradient.abs_())


class SparseEvolution(Rewiring):
    """SET: grows anywhere."""

    name = SET

    def _search(self, run: ClientRun, name: str, number: int) -> "Places":
        import torch

        task = run.task
        seed = derive(run.recipe.seed, "growth", task.round, task.client, self._number, name)
        stream = torch.Generator(run.device).manual_seed(seed)
        return Places(number, lambda gradient: gradient.uniform_(generator=stream))


def rewire(layer: Any, grown: "torch.Tensor | None", state: Mapping[str, Any]) -> None:
    """Puts places in those of a layer's smallest weights, in place, and sorts them.

    Args:
        layer: The layer, one of `fedhp.model.sparse_layers`.
        grown: The places, none of which has a weight; None where the step has come by none.
        state: What the optimiser keeps for its weights.
    """
    if grown is None:
        return
    values, positions = layer.weight.detach(), layer.places()
    dropped = values.abs().topk(len(grown), largest=False, sorted=False).indices
    positions[dropped] = grown
    kept = [values, *(one for one in state.values() if getattr(one, "shape", None) == values.shape)]
    for tensor in kept:
        tensor[dropped] = 0
    positions, order = positions.sort()
    layer.place(positions)
    for tensor in kept:
        tensor.copy_(tensor[order])
