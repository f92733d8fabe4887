"""Criteria: one score per kept unit of a group; the lowest goes first. They score, nothing else.

The paper's own score is not available to us; the default is our choice.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedhp.errors import ScenarioError
from fedhp.model.kernels import kernels_of
from fedhp.model.layout import Layout
from fedhp.pruning.evidence import Evidence, Rows, groups_without_scales, groups_without_takers

if TYPE_CHECKING:
    import torch

# Weight of the magnitude in FlexRel, against the relevance: both count alike.
_MAGNITUDE_WEIGHT = 0.5
# Units whose correlations with all others are computed at once: what bounds the scratch memory.
_CHUNK = 16
# Relative spread below which a unit counts as constant, above the rounding of its mean.
_CONSTANT = 1e-6

Score = Callable[[Evidence], Any]  # tensors of PyTorch's, or NumPy's arrays
# Bytes whatever the batch, and per sample, by the number of units and of entries of each.
Scratch = Callable[[int, int], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Criterion:
    """A score and when to take it.

    Attributes:
        score: Maps what there is to see of a group to non-negative scores of shape ``(units,)``.
        tracked: Whether the score depends on the data: then it is averaged over steps, and taken after the
            backward pass; otherwise it is taken only when a cut is due.
        activations: Whether it looks at activations: then it is taken in the forward pass.
        scales: Whether it looks at the scales of normalisation layers, which every group must have.
        unit_bytes: The bytes that the score takes at most for each unit while it is made of gradients.
        scratch: Of those that look at activations, the bytes that a look takes at most while it lasts.
    """

    score: Score
    tracked: bool
    activations: bool = False
    scales: bool = False
    unit_bytes: int = 0
    scratch: Scratch | None = None


def taylor(seen: Evidence) -> Any:
    """First-order Taylor term of removing a unit, ``|sum w * dL/dw|`` over its weights and bias.

    Setting a unit's incoming weights and bias (an input's outgoing weights) to zero changes the loss by
    minus this sum, to first order (Molchanov et al. 2019, arXiv 1906.10771, equation 8, summed before the
    square as for a whole unit).
    """
    return _total(seen, (rows.dots() for rows in seen.own))


def fisher(seen: Evidence) -> Any:
    """Fisher information of a gate on the unit, ``(sum w * dL/dw)^2`` averaged over steps.

    A gate that scales the unit's weights and bias by m has the derivative ``sum w * dL/dw`` at m = 1, and the
    mean of its square is what removing the unit adds to the loss, to second order and up to a factor
    (Theis et al. 2018, arXiv 1801.05787; Molchanov et al. 2019, arXiv 1906.10771, equation 8). The mean is
    taken over batches instead of samples: our choice, since single samples would take a pass each.
    """
    return seen.functions.square(taylor(seen))


def magnitude(seen: Evidence) -> Any:
    """Euclidean norm of a unit's incoming weights and bias (Li et al. 2017, arXiv 1608.08710, with L2)."""
    return _l2(seen, seen.own)


def magnitude_l1(seen: Evidence) -> Any:
    """Sum of the absolute values of a unit's incoming weights and bias (Li et al. 2017, arXiv 1608.08710)."""
    return _l1(seen, seen.own)


def outgoing(seen: Evidence) -> Any:
    """Euclidean norm of the weights that take a unit in: the onorm, with L2.

    He et al. 2014, "Reshaping deep neural network for fast decoding by node-pruning", ICASSP.
    """
    return _l2(seen, seen.leaving)


def outgoing_l1(seen: Evidence) -> Any:
    """Sum of the absolute values of the weights that take a unit in (the onorm of He et al. 2014)."""
    return _l1(seen, seen.leaving)


def bn_scale(seen: Evidence) -> Any:
    """``|gamma|`` of the unit's normalisation layers, summed (Liu et al. 2017, arXiv 1708.06519).

    Network slimming; meant for the regulariser ``slimming``, which makes the scales sparse.
    """
    return _l1(seen, seen.scales)


def flexrel(seen: Evidence) -> Any:
    """Magnitude and relevance, ``d * M + (1 - d) * R`` (FlexRel, arXiv 2405.13088), with d = 1/2.

    M is the L1 norm of the unit's weights. R is the unit's relevance by LRP-0 (Bach et al. 2015), passed back
    from the loss: a unit's share of its consumer k's relevance is ``a w_k / z_k``, and that of z_k itself is
    ``z_k * dL/dz_k``, so that ``R = sum_k a w_k * dL/dz_k``: gradient times activation, as Ancona et al. 2018
    (arXiv 1711.06104) show for networks of ReLUs. The gradient of ``w_k`` is ``a * dL/dz_k`` summed over the
    batch, and so ``R = |sum_k w_k * dL/dw_k|`` over the weights that leave the unit. How the paper
    normalises M and R is not available to us; our choice is to divide each by its group's mean.
    """
    weight = _MAGNITUDE_WEIGHT
    relevance = _total(seen, (rows.dots() for rows in seen.leaving))
    return weight * _relative(_l1(seen, seen.own)) + (1 - weight) * _relative(relevance)


def activation(seen: Evidence) -> Any:
    """Mean absolute activation (Molchanov et al. 2017, arXiv 1611.06440, section 2.2, for any sign).

    Of inputs, which the paper does not prune, the spread: normalised, their mean is arbitrary, and the
    constant background of a picture would count most. Our choice.
    """
    said = _activations(seen)
    if not seen.entering:
        return _spread(said)
    norms = seen.functions.linalg.vector_norm(said, ord=1, axis=(0, 2))
    return norms / (said.shape[0] * said.shape[2])


def apoz(seen: Evidence) -> Any:
    """Share of a unit's activations that are not zero: 1 - APoZ (Hu et al. 2016, arXiv 1607.03250).

    Of inputs, which the paper does not prune and which, normalised, are never zero, the spread. Our choice.
    """
    said = _activations(seen)
    if not seen.entering:
        return _spread(said)
    return seen.functions.count_nonzero(said, axis=(0, 2)) / (said.shape[0] * said.shape[2])


def correlation(seen: Evidence) -> Any:
    """1 - |correlation| with the most alike unit (NoiseOut, Babaeizadeh et al. 2016, arXiv 1611.06211).

    Of the two most alike units one is redundant. It must not be both: each unit is compared to those of its
    group that vary more, so that of a pair the one that varies less goes. A constant unit says nothing and
    goes first. Both are our choice; and while NoiseOut adds the redundant unit's outgoing weights to the
    other's, ours leaves that to the training that goes on.
    """
    import torch

    said = _activations(seen).transpose(0, 1).flatten(1)
    spread, mean = torch.std_mean(said, dim=1, correction=0)
    rank = spread.argsort(descending=True, stable=True).argsort()
    scores = torch.empty_like(spread)
    for start in range(0, len(said), _CHUNK):
        units = slice(start, start + _CHUNK)
        alike = (said[units] - mean[units, None]) @ said.T  # covariances, and correlations when divided
        alike.abs_().div_(spread * said.shape[1]).div_(spread[units, None])
        alike.masked_fill_(rank >= rank[units, None], 0)
        scores[units] = 1 - alike.nan_to_num_(0, 0, 0).amax(1)
    constant = spread <= _CONSTANT * mean.abs()
    return scores.clamp_(0, 1).masked_fill_(constant, 0)


def _few_scores(units: int, entries: int) -> tuple[int, int]:
    """The norm of each unit, the same divided, and the sum with what others have shown."""
    return 12 * units, 0


def _comparison(units: int, entries: int) -> tuple[int, int]:
    """A byte for every activation, a count of eight for every unit, and the share."""
    return 16 * units, units * entries


def _correlations(units: int, entries: int) -> tuple[int, int]:
    """Activations by unit, and some units' correlations with all.

    The former are a view where each is one number. Of some units there are the activations less their mean,
    two times the correlations, and which of those count; of all, spread, mean, ranks and scores.
    """
    some = min(_CHUNK, units)
    return 64 * units + 12 * some * units, 4 * entries * (some + (units if entries > 1 else 0))


def random(seen: Evidence) -> Any:
    """Uniform random scores: the control that any other criterion has to beat."""
    first = seen.own[0]
    drawn = seen.generator.random(first.place.num_units, np.float32)
    return kernels_of(first.parameter.data).given(drawn, first.parameter.data)


def check_criterion(name: str, layout: Layout) -> None:
    """Checks that the model has what the criterion looks at.

    Raises:
        ScenarioError: If a group has not.
    """
    criterion = CRITERIA[name]
    if criterion.scales and (lacking := groups_without_scales(layout)):
        raise ScenarioError(
            f"prune.criterion = {name} needs a normalisation layer in every group, and {_named(lacking)} "
            "none; choose another criterion or a model that normalises them (inputs never are: "
            "model.prune_inputs=false keeps those)"
        )
    if criterion.activations and (lacking := groups_without_takers(layout)):
        raise ScenarioError(
            f"prune.criterion = {name} looks at the activations that a layer takes in, and {_named(lacking)} "
            "no layer that takes in all of them; choose another criterion"
        )


def _named(groups: list[str]) -> str:
    return f"{', '.join(map(repr, groups))} {'has' if len(groups) == 1 else 'have'}"


def _sum(seen: Evidence, parts: Iterable[Any]) -> Any:
    return functools.reduce(seen.functions.add, parts)


def _total(seen: Evidence, parts: Iterable[Any]) -> Any:
    return seen.functions.abs(_sum(seen, parts))


def _l1(seen: Evidence, parameters: Iterable[Rows]) -> Any:
    return _sum(seen, (rows.norms(1) for rows in parameters))


def _l2(seen: Evidence, parameters: Iterable[Rows]) -> Any:
    functions = seen.functions
    return functions.sqrt(_sum(seen, (functions.square(rows.norms()) for rows in parameters)))


def _spread(activations: "torch.Tensor") -> "torch.Tensor":
    """Returns the standard deviation of each unit's activations."""
    return activations.std(dim=(0, 2), correction=0)


def _relative(scores: Any) -> Any:
    """Divides by the mean; zeros stay zeros."""
    return scores / max(float(scores.mean()), float(np.finfo(np.float32).tiny))


def _activations(seen: Evidence) -> "torch.Tensor":
    assert seen.activations is not None
    return seen.activations


CRITERIA: dict[str, Criterion] = {
    "taylor": Criterion(taylor, tracked=True, unit_bytes=12),
    "fisher": Criterion(fisher, tracked=True, unit_bytes=12),
    "flexrel": Criterion(flexrel, tracked=True, unit_bytes=24),
    "magnitude": Criterion(magnitude, tracked=False),
    "magnitude_l1": Criterion(magnitude_l1, tracked=False),
    "outgoing": Criterion(outgoing, tracked=False),
    "outgoing_l1": Criterion(outgoing_l1, tracked=False),
    "bn_scale": Criterion(bn_scale, tracked=False, scales=True),
    "activation": Criterion(activation, tracked=True, activations=True, scratch=_few_scores),
    "apoz": Criterion(apoz, tracked=True, activations=True, scratch=_comparison),
    "correlation": Criterion(correlation, tracked=True, activations=True, scratch=_correlations),
    "random": Criterion(random, tracked=False),
}
