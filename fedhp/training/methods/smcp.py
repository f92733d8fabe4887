"""Soft masks under a cost: channels that are masked go on learning, and may come back, until the cut.

SMCP (Humble et al. 2022, arXiv 2211.02206). What layers take in from a masked unit is multiplied by 0 in the
forward pass; gradients go to the weights without masks, straight through, and masked weights decay a little
more. A unit is worth ``|sum w * dL/dw|`` over the weights that take it in, of which a momentum is kept. At
every step of the schedule, masks are chosen anew: what is worth most, within what the network may cost
(`fedhp.pruning.affordable`). At ``prune.end`` what is masked is cut.

The cost falls along DynHP's schedule, where the paper has an exponential; its knapsack is a dynamic program
over layers, ours is greedy. In a fleet devices blend the fleet's scores into their own, and the server cuts,
by the fleet's scores alone, so that all hold the same units. Between the steps of a local training the
network has its masked weights, but what a device sends has all of them.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fedhp.costs.memory import Extras
from fedhp.costs.products import products
from fedhp.errors import ScenarioError
from fedhp.model.architecture import Architecture
from fedhp.model.layout import no_units
from fedhp.model.state import Scores
from fedhp.model.structure import Structure
from fedhp.pruning.affordable import Cost, affordable
from fedhp.pruning.contributions import STRIDE
from fedhp.pruning.evidence import Rows, evidence, groups_without_takers
from fedhp.pruning.schedule import scheduled_size
from fedhp.training.method import ClientRun, Method, cut
from fedhp.training.method_names import SMCP
from fedhp.training.recipe import Recipe

if TYPE_CHECKING:
    import torch

# The paper's: momentum of the importance, and further decay of masked weights.
_MOMENTUM, _DECAY = 0.9, 2e-4
# The key, in an optimiser's state, of the weights without masks.
_DENSE = "dense"


class _Masking(Method):
    """The units' masks, and what they are worth: how both come about, and act on the weights."""

    def __init__(self) -> None:
        self._size = 1.0  # the schedule's share that masks are for
        self._is_due = False  # whether there is something to mask
        self._worth: dict[str, torch.Tensor] = {}
        self._masks: dict[str, torch.Tensor] = {}
        self._num_steps = 0

    @property
    def tensors(self) -> "Sequence[torch.Tensor]":
        """What units are worth, and which are masked."""
        return [*self._worth.values(), *self._masks.values()]

    def _look(self, run: ClientRun) -> None:
        """Finds the weights that take units in."""
        layout, parameters = run.recipe.architecture.layout, dict(run.module.named_parameters())
        seen = evidence(layout, parameters, run.structure.counts, np.random.default_rng())
        self._takers: dict[str, Sequence[Rows]] = {group: one.leaving for group, one in seen.items()}
        of = (rows.parameter for takers in self._takers.values() for rows in takers)
        self._weights: list[torch.Tensor] = [*{id(weight): weight for weight in of}.values()]

    def _judge(self) -> None:
        """Takes in what units are worth in the step at hand."""
        for group, takers in self._takers.items():
            worth = takers[0].dots()
            for rows in takers[1:]:
                worth += rows.dots()
            worth.abs_()
            if group in self._worth:
                self._worth[group].lerp_(worth, 1 - _MOMENTUM)
            else:
                self._worth[group] = worth

    def _blended(self, run: ClientRun) -> Scores:
        """Returns what units are worth to fleet and device, as shares of the mean over all groups."""
        known, blend = run.task.state.scores, np.float32(run.recipe.prune.blend)
        within = run.task.state.structure
        held = {group: known[group][within.positions(run.structure, group)] for group in known}
        own = {group: worth.cpu().numpy() for group, worth in self._worth.items()}
        if not own:
            return held
        mean = np.concatenate([*own.values()]).mean()
        shares = {g: worth / mean if mean > 0 else np.ones_like(worth) for g, worth in own.items()}
        return {g: (blend * held[g] + (1 - blend) * share).astype(np.float32) for g, share in shares.items()}

    def _choose(self, run: ClientRun) -> None:
        """Chooses masks for what the schedule allows by now."""
        self._size = scheduled_size(run.recipe.prune, run.progress)
        within = run.structure
        chosen = _chosen(run.recipe, self._blended(run), within, run.progress)
        some = {group: mask[within.kept(group)] for group, mask in chosen.masks.items() if chosen != within}
        self._masks = {
            group: run.runtime.array(mask.astype(np.float32), run.device) for group, mask in some.items()
        }

    def _mask(self) -> None:
        for group, mask in self._masks.items():
            for rows in self._takers[group]:
                units = rows.place.unfold(rows.parameter.detach())
                units.mul_(mask.view([-1 if axis == rows.place.axis else 1 for axis in range(units.dim())]))

    def _cut(self, run: ClientRun) -> None:
        """Cuts what is masked, for good."""
        kept = {group: np.flatnonzero(mask.cpu().numpy()) for group, mask in self._masks.items()}
        for weight in self._weights:
            run.optimizer.state[weight].pop(_DENSE)
        self._is_due, self._masks = False, {}
        self._worth = {group: worth[kept[group]] for group, worth in self._worth.items()}
        masks = {group: np.zeros_like(mask) for group, mask in run.structure.masks.items()}
        for group, places in kept.items():
            masks[group][run.structure.kept(group)[places]] = True
        cut(run, Structure(masks))


class SoftMasks(_Masking):
    """Masks units while they may come back, and cuts them when they may not any more; see above."""

    name = SMCP
    by_strategy = True
    shrinks = True

    @classmethod
    def at_work(cls, recipe: Recipe) -> bool:
        """Where there is a target."""
        return recipe.prune.target_compression > 1

    @classmethod
    def extras(cls, recipe: Recipe) -> Extras:
        """The weights without masks, what units are worth, and their masks."""
        return Extras(slots=1, unit_bytes=dict.fromkeys(recipe.architecture.layout.widths, 16))

    @classmethod
    def said(cls, recipe: Recipe) -> str:
        """Its key."""
        return f"train.method = {cls.name}"

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Checks that there are units to mask, and that the target is in reach."""
        arch, prune = recipe.architecture, recipe.prune
        layout, cost = arch.layout, _cost(recipe)
        if not layout.widths:
            raise no_units("the model")
        if alone := groups_without_takers(layout):
            raise ScenarioError(
                f"train.method = {cls.name} masks what layers take in, but none takes in {', '.join(alone)}"
            )
        full, least = cost(layout.widths), cost(layout.smallest())
        if least * prune.target_compression > full:
            raise ScenarioError(
                f"prune.target_compression = {prune.target_compression:g} cannot be reached: with "
                f"model.floor units per group the network still takes {least:,} of {full:,} {prune.cost} "
                f"({full / least:.1f}x); lower the target or model.floor, or widen the model"
            )

    @classmethod
    def survivors(
        cls, recipe: Recipe, scores: Callable[[], Scores], within: Structure, progress: float
    ) -> Structure | None:
        """All, until the cut; then what the fleet thinks most of, within what the network may cost."""
        return _chosen(recipe, scores(), within, 1.0) if progress >= recipe.prune.end else within

    @property
    def key(self) -> Hashable:
        """Whether something may be masked, whether something is, and whether units are judged."""
        return self.name, self._is_due, bool(self._masks), self._num_steps % STRIDE == 0

    @property
    def wants_gradients(self) -> bool:
        """Until the cut."""
        return self._is_due

    def begin(self, run: ClientRun) -> None:
        """Masks what the fleet thinks least of, where the schedule asks for it already."""
        cost, recipe = _cost(run.recipe), run.recipe
        full = cost(recipe.architecture.layout.widths)
        self._is_due = cost(run.structure.counts) * recipe.prune.target_compression > full
        if not self._is_due:
            return
        self._look(run)
        for weight in self._weights:
            run.optimizer.state[weight][_DENSE] = weight.detach().clone()
        self._choose(run)
        self._mask()

    def kept(self) -> Mapping[str, Any]:
        """Returns how far it has come, what units are worth, and which are masked."""
        worth, masks = (
            {group: one.cpu().numpy() for group, one in of.items()} for of in (self._worth, self._masks)
        )
        return {"size": self._size, "steps": self._num_steps, "worth": worth, "masks": masks}

    def take_up(self, run: ClientRun, kept: Mapping[str, Any]) -> None:
        """Goes on from there."""
        self._size, self._num_steps = float(kept["size"]), int(kept["steps"])
        self._worth, self._masks = (
            {group: run.runtime.array(one.copy(), run.device) for group, one in kept[what].items()}
            for what in ("worth", "masks")
        )

    def on_gradients(self, run: ClientRun) -> None:
        """Gives gradients to the weights without masks; those that are masked decay."""
        if not self._is_due:
            return
        for weight in self._weights:
            weight.detach().copy_(run.optimizer.state[weight][_DENSE])
        for group, rows in self._takers.items():
            if group in self._masks:
                for one in rows:
                    one.pull(_DECAY * (1 - self._masks[group]))
        if self._num_steps % STRIDE == 0:
            self._judge()
        self._num_steps += 1

    def after_step(self, run: ClientRun) -> None:
        """Masks the weights anew; at a step of the schedule, others; at its end, it cuts."""
        if not self._is_due:
            return
        for weight in self._weights:
            run.optimizer.state[weight][_DENSE].copy_(weight.detach())
        if scheduled_size(run.recipe.prune, run.progress) < self._size:
            self._choose(run)
        if run.progress >= run.recipe.prune.end:
            self._cut(run)
        else:
            self._mask()

    def end(self, run: ClientRun) -> Scores:
        """Puts the weights without masks back; returns what units are worth."""
        if self._is_due:
            for weight in self._weights:
                weight.detach().copy_(run.optimizer.state[weight].pop(_DENSE))
        return self._blended(run) if self._worth else {}


def _cost(recipe: Recipe) -> Cost:
    return partial(COSTS[recipe.prune.cost], recipe.architecture)


def _chosen(recipe: Recipe, scores: Scores, within: Structure, progress: float) -> Structure:
    """Returns the units that stay, of those that there are, at this progress of the whole training."""
    layout, cost = recipe.architecture.layout, _cost(recipe)
    allowed = scheduled_size(recipe.prune, progress) * cost(layout.widths)
    return affordable(scores, within, layout.floors, cost, allowed)


def _parameters(arch: Architecture, counts: Mapping[str, int]) -> int:
    return arch.layout.num_parameters(counts)


COSTS = {"parameters": _parameters, "flops": products}
