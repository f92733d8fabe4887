"""Regularisers: penalties that press units towards zero before they are cut.

A regulariser adds its penalty's gradient to those of the loss, between the backward pass and the update, and
so takes no graph. What it keeps per weight lies in the optimiser's state: cut, counted and freed with it.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fedhp.errors import ScenarioError
from fedhp.model.layout import Layout
from fedhp.model.optimizer import Optimizer
from fedhp.pruning.evidence import Evidence, evidence, groups_without_scales

if TYPE_CHECKING:
    import torch

# Below this the penalty of a weight, 1 / HALO's lambda squared, would grow without bound. Our choice.
_SMALLEST_LAMBDA = 0.1

Push = Callable[[Iterable[Evidence], Optimizer, float], None]


@dataclass(frozen=True, slots=True)
class Regularizer:
    """A penalty.

    Attributes:
        push: Adds the penalty's gradient, at a strength, to those of the groups' parameters.
        state: What it keeps in the optimiser's state, each of a weight's shape, and its value at first.
        by_norms: Whether it makes the norms of all of a group's parameters at once.
        scales: Whether it presses on the scales of normalisation layers alone.
    """

    push: Push
    state: Mapping[str, float] = field(default_factory=dict)
    scales: bool = False
    by_norms: bool = False

    @property
    def slots(self) -> int:
        """Tensors kept per parameter, which the memory model counts beside the optimiser's."""
        return len(self.state)


def group_lasso(groups: Iterable[Evidence], optimizer: Optimizer, strength: float) -> None:
    """Adds the gradient of ``strength * sum_u sqrt(size_u) * |w_u|_2`` (Wen et al. 2016, arXiv 1608.03665).

    The sum is over all units, ``w_u`` a unit's incoming weights and bias (an input's outgoing weights) and
    ``size_u`` their number; at zero, of all sub-gradients zero is taken.
    """
    import torch

    for seen in groups:
        norms = torch.stack([rows.norms() for rows in seen.own]).norm(dim=0)
        size = sum(rows.weights.shape[1] for rows in seen.own)
        factors = torch.where(norms > 0, strength * math.sqrt(size) / norms, 0)
        for rows in seen.own:
            rows.pull(factors)


def slimming(groups: Iterable[Evidence], optimizer: Optimizer, strength: float) -> None:
    """Adds ``strength * sign(gamma)`` to the scales of normalisation layers: their L1 norm's gradient.

    Network slimming (Liu et al. 2017, arXiv 1708.06519); the criterion ``bn_scale`` then finds the scales
    that it made small.
    """
    for seen in groups:
        for rows in seen.scales:
            assert rows.parameter.grad is not None
            rows.gradients.add_(rows.weights.sign(), alpha=strength)


def halo(groups: Iterable[Evidence], optimizer: Optimizer, strength: float) -> None:
    """Adds the gradient of ``s * sum_j |w_j| / l_j^2 + s * sum_j |l_j|`` and takes a step on the penalties l.

    HALO (Seto et al. 2021, arXiv 2008.10183) with its two factors alike: every weight of a layer has a
    trainable penalty, 1 at first, which learns to leave large weights alone. It is trained by SGD with the
    learning rate, momentum and decay of the weights, and kept above 0.1, which is our choice.
    """
    done: set[int] = set()
    for rows in (rows for seen in groups for rows in (*seen.entering, *seen.leaving)):
        weight = rows.parameter
        if weight.dim() > 1 and id(weight) not in done:
            done.add(id(weight))
            _push_and_learn(weight, optimizer, strength)


def _push_and_learn(weight: "torch.Tensor", optimizer: Optimizer, strength: float) -> None:
    """Adds HALO's gradient to a weight's, and takes a step on its penalties; in place, without temporaries.

    With g = sign(w) / l^2, the gradients are ``s * g`` for w and ``s * (1 - 2 * g * w / l)`` for l.
    """
    import torch

    assert weight.grad is not None
    options, state = optimizer.param_groups[0], optimizer.state[weight]
    value, velocity, slope = (state[name] for name in _HALO_STATE)
    with torch.no_grad():
        torch.mul(value, value, out=slope).reciprocal_().copysign_(weight)
        weight.grad.add_(slope, alpha=strength)
        slope.mul_(weight).div_(value).mul_(-2 * strength).add_(strength)
        slope.add_(value, alpha=options["weight_decay"])
        velocity.mul_(options.get("momentum", 0.0)).add_(slope)
        value.sub_(velocity, alpha=options["lr"]).clamp_(min=_SMALLEST_LAMBDA)


def allocate(name: str, optimizer: Optimizer) -> None:
    """Allocates what a regulariser keeps in the optimiser's state: every step takes the same memory."""
    import torch

    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in REGULARIZERS[name].state.items():
                optimizer.state[parameter][key] = torch.full_like(parameter.detach(), value)


def bytes_per_unit(name: str, layout: Layout) -> dict[str, int]:
    """Returns, per group, the bytes that a push makes at most for each unit, while gradients live.

    Of norms, one for every parameter, the same as one tensor, factors, and these for every entry that a unit
    has on an axis; else the signs of scales.
    """
    if not REGULARIZERS[name].by_norms:
        return dict.fromkeys(layout.widths, 4)
    parameters = {name: np.empty(0, np.float32) for name in layout.trained}
    seen = evidence(layout, parameters, layout.widths, np.random.default_rng())
    return {
        group: 4 * (2 * len(one.own) + 4 + max(rows.place.span for rows in one.own))
        for group, one in seen.items()
    }


def check_regularizer(name: str, layout: Layout) -> None:
    """Checks that the model has what the regulariser presses on.

    Raises:
        ScenarioError: If it has not.
    """
    if REGULARIZERS[name].scales and len(groups_without_scales(layout)) == len(layout.widths):
        raise ScenarioError(
            f"prune.regularizer = {name} presses on the scales of normalisation layers, and the model has "
            f"none in its groups {', '.join(layout.widths)}; choose another regulariser or a model with "
            "normalisation"
        )


_HALO_STATE = {"halo_lambda": 1.0, "halo_velocity": 0.0, "halo_gradient": 0.0}

REGULARIZERS: dict[str, Regularizer] = {
    "none": Regularizer(lambda groups, optimizer, strength: None),
    "group_lasso": Regularizer(group_lasso, by_norms=True),
    "slimming": Regularizer(slimming, scales=True),
    "halo": Regularizer(halo, _HALO_STATE),
}
