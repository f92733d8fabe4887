"""N:M patterns in training: masks are chosen once units are cut, and weights are trained on under them.

From ``prune.end`` on, when no more units go and neighbours stay neighbours, masks are chosen anew after
each step: forward and backward pass see masked weights, and their gradients go to the weights without
masks, straight through, as in SR-STE (Zhou et al. 2021, arXiv 2102.04010) less its decay. From
``prune.pattern.end`` on the masks stay as they then are, and what is left is trained on (Mishra et al.
2021, arXiv 2104.08378). If both are the same, masks are chosen once, by magnitude, and nothing is kept. So
they are, learned ones too, where a training is so short that a single step goes past both.

Between steps the network has its masked weights: it is evaluated, and recorded, as it would be used. Once
masks stay, weights that are 0 are those that are masked, and no mask is kept: their gradients are made 0,
as what the optimiser keeps of them was.

A fleet's mean of models that are masked otherwise has no pattern, so `fedhp.run.setup` refuses it there.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedhp.costs.memory import Extras
from fedhp.model.optimizer import Optimizer
from fedhp.model.structure import Structure
from fedhp.training.method import ClientRun, Method
from fedhp.training.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from fedhp.training.n_of_m import Combinations

# The keys, in an optimiser's state, of the weights without masks, and of what each has earned.
_DENSE, _CREDIT = "dense", "credit"
_WAITING, _CHOOSING, _HELD = "waiting", "choosing", "held"


class Pattern(Method):
    """Keeps n of every m neighbouring inputs' weights (`fedhp.training.n_of_m`); see above."""

    name = "pattern"

    @classmethod
    def at_work(cls, recipe: Recipe) -> bool:
        """Where a pattern is asked for."""
        return recipe.prune.pattern.n_of_m is not None

    @classmethod
    def extras(cls, recipe: Recipe) -> Extras:
        """The weights without masks; credits, and a byte for each combination.

        They are counted all the time, as a budget is for the whole training, though they are there only while
        masks are chosen.
        """
        prune = recipe.prune
        if prune.pattern.n_of_m is None:
            return Extras()
        n, m = prune.pattern.n_of_m
        if prune.pattern.by == "learned":
            return Extras(slots=2 + math.ceil(math.comb(m, n) / m / 4))
        return Extras(slots=int(prune.pattern.end > prune.end))

    @classmethod
    def said(cls, recipe: Recipe) -> str:
        """Its key."""
        return f"prune.pattern.name = {recipe.prune.pattern.name}"

    def __init__(self) -> None:
        self._phase = _WAITING
        self._structure: Structure | None = None  # of which the runs are
        self._learned: list[Combinations] = []

    @property
    def tensors(self) -> "Sequence[torch.Tensor]":
        """Which combinations are left."""
        return [one.left for one in self._learned]

    @property
    def key(self) -> Hashable:
        """What it does."""
        return self.name, self._phase

    @property
    def wants_gradients(self) -> bool:
        """Once there are masks."""
        return self._phase != _WAITING

    def begin(self, run: ClientRun) -> None:
        """Finds the weights."""
        from fedhp.training.n_of_m import layer_weights

        assert run.recipe.prune.pattern.n_of_m is not None
        self._n, self._m = run.recipe.prune.pattern.n_of_m
        self._weights = layer_weights(run.module)

    def kept(self) -> Mapping[str, Any]:
        """Returns how far it has come, and the combinations that are left."""
        return {"phase": self._phase, "left": [one.left.cpu().numpy() for one in self._learned]}

    def take_up(self, run: ClientRun, kept: Mapping[str, Any]) -> None:
        """Goes on from there."""
        self._phase = str(kept["phase"])
        if self._phase != _WAITING:
            self._look(run)
        for one, left in zip(self._learned, kept["left"], strict=True):
            one.left.copy_(run.runtime.array(left.copy(), run.device))

    def on_gradients(self, run: ClientRun) -> None:
        """Gives gradients to the weights without masks; once masks are held, to those that are left."""
        if self._phase == _WAITING:
            return
        for weight in self._weights:
            value, grad, own = weight.detach(), weight.grad, run.optimizer.state[weight]
            learns = grad is not None  # not where a network of the user's own detaches a layer
            if learns and _CREDIT in own:
                own[_CREDIT].addcmul_(grad, own[_DENSE], value=-run.rate)
            if self._phase == _CHOOSING:
                value.copy_(own[_DENSE])
            elif learns:
                grad.mul_(value != 0)

    def after_step(self, run: ClientRun) -> None:
        """Masks the weights anew, or for good."""
        prune, is_new = run.recipe.prune, self._structure is not run.structure
        if run.progress < prune.end or (self._phase == _HELD and not is_new):
            return
        with run.meter.watching((self.name, self._phase, is_new, run.step_key(0)), run.held):
            if run.progress < prune.pattern.end:
                self._phase = _CHOOSING
                for weight in self._weights:
                    run.optimizer.state[weight][_DENSE] = weight.detach().clone()
            if is_new:
                self._look(run)
            self._mask(run)
            if run.progress >= prune.pattern.end:
                self._phase, self._learned = _HELD, []
                hold(run.optimizer, self._weights)

    def _look(self, run: ClientRun) -> None:
        """Begins anew with the runs that there now are; where masks are held, none is learned any more."""
        from fedhp.training.n_of_m import Combinations

        self._structure = run.structure
        self._learned = []
        if run.recipe.prune.pattern.by != "learned" or self._phase != _CHOOSING:
            return
        for weight in self._weights:
            own, value = run.optimizer.state[weight], weight.detach()
            credit = own.setdefault(_CREDIT, value.new_zeros(value.shape))
            self._learned.append(Combinations(self._n, self._m, value, credit))

    def _mask(self, run: ClientRun) -> None:
        """Multiplies the weights by what their masks are now."""
        from fedhp.training.n_of_m import Largest, combinations_left, masked

        prune, largest = run.recipe.prune, Largest(self._n, self._m)
        span = prune.pattern.end - prune.end
        share = (run.progress - prune.end) / span if span else 1.0
        number = combinations_left(self._n, self._m, share)
        for place, weight in enumerate(self._weights):
            masked(weight.detach(), self._learned[place] if self._learned else largest, number)


def hold(optimizer: Optimizer, weights: "Sequence[torch.Tensor]") -> None:
    """Lets what is 0 stay 0: it has no momentum any more, and nothing lies beside the masked weights."""
    for weight in weights:
        own, value = optimizer.state[weight], weight.detach()
        for key in (_DENSE, _CREDIT):
            own.pop(key, None)
        for kept in own.values():
            if getattr(kept, "shape", None) == value.shape:
                kept.mul_(value != 0)
