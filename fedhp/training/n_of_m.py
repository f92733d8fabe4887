"""N of every M neighbouring inputs' weights, as training keeps them: the largest, or the best combination.

Runs of neighbours are those of `fedhp.compression.layers.input_runs`: of a convolution, input channels at the
same place of the kernel; the last run is shorter where the inputs do not divide.
"""

import math
from itertools import combinations
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

# Weights of a layer are looked at in so many parts, so that what is made of them is smaller than the
# gradients that have just been dropped.
_PARTS = 8


class Choice(Protocol):
    """Says what becomes of each weight of a layer."""

    def factors(self, weights: torch.Tensor, rows: slice, number: int) -> torch.Tensor:
        """Returns what weights are multiplied by, of their shape.

        Args:
            weights: Some rows of a layer's dense weights, of shape ``(outputs, inputs, *kernel)``.
            rows: Which they are.
            number: How many combinations of each run may be left; with 1 factors are 0 or 1.
        """
        ...


def layer_weights(network: nn.Module) -> list[torch.Tensor]:
    """Returns the weights of dense layers and convolutions, each once."""
    layers = (part for part in network.modules() if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d))
    return [*{id(layer.weight): layer.weight for layer in layers}.values()]


def in_runs(weights: torch.Tensor, m: int) -> torch.Tensor:
    """Returns weights ``(outputs, inputs, *kernel)`` as ``(outputs, places, runs, m)``, zeros at the end."""
    laid = weights.flatten(2) if weights.dim() > 2 else weights.unsqueeze(2)
    filled = functional.pad(laid.transpose(1, 2), (0, -weights.shape[1] % m))
    return filled.unflatten(2, (-1, m))


def as_weights(runs: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Returns what `in_runs` has laid out in the shape that it had."""
    return runs.flatten(2)[..., : shape[1]].transpose(1, 2).reshape(shape)


def masked(weights: torch.Tensor, choice: Choice, number: int) -> None:
    """Multiplies a layer's dense weights by what becomes of them, in place, some rows at a time."""
    step = math.ceil(len(weights) / _PARTS)
    for first in range(0, len(weights), step):
        rows = slice(first, first + step)
        weights[rows].mul_(choice.factors(weights[rows], rows, number))


class Largest:
    """The n largest of every m by magnitude; of equals, the first."""

    def __init__(self, n: int, m: int) -> None:
        self._n, self._m = n, m

    def factors(self, weights: torch.Tensor, rows: slice, number: int) -> torch.Tensor:
        """Returns 1 for those that are kept and 0 for others."""
        runs = in_runs(weights, self._m)
        best = runs.abs().argsort(dim=-1, descending=True, stable=True)[..., : self._n]
        return as_weights(torch.zeros_like(runs).scatter_(-1, best, 1.0), weights.shape)


class Combinations:
    """Which of the combinations of n of m are left of each run of a layer, and how good each of them is.

    Learning Best Combination (Zhang et al., NeurIPS 2022, arXiv 2206.06662): each of the C(m, n) combinations
    has a score, 1 / C(m-1, n-1) at first; a weight is multiplied by the sum of the scores of those left that
    it is in, normalised; those with the lowest scores are dropped, for good, until one is left.

    The normaliser is ours, the largest such sum of the run: factors are 1 at first, and 0 or 1 in the end. A
    score's gradient is taken with the normaliser left out, as only a run's own scores are compared: it is
    the sum, over the weights that are in the combination, of weight times gradient. So steps by plain SGD
    keep each score at its first value and the *credits* of its weights,

        score(k) = 1 / C(m-1, n-1) + sum of credit(j) over j in k,   credit(j) -= rate * weight(j) * grad(j),

    and one number for each weight holds the scores of all combinations: 1 for each weight instead of
    C(m, n) / m, which is 1.5 for 2:4 and 8.75 for 4:8.

    Args:
        n: How many are kept.
        m: Of so many.
        weights: The layer's.
        credit: The credit of each weight, of their shape.

    Attributes:
        left: Which combinations are left, of shape ``(outputs, places, runs, C(m, n))``.
    """

    def __init__(self, n: int, m: int, weights: torch.Tensor, credit: torch.Tensor) -> None:
        self._m, self._first, self._credit = m, 1 / math.comb(m - 1, n - 1), credit
        chosen = torch.tensor([*combinations(range(m), n)], device=weights.device)
        self._members = weights.new_zeros(len(chosen), m).scatter_(1, chosen, 1.0)
        whole, rest = divmod(weights.shape[1], m)
        places = weights[0, 0].numel()
        runs = whole + (rest > 0)
        self.left = torch.ones(
            len(weights), places, runs, len(chosen), dtype=torch.bool, device=weights.device
        )
        if rest:  # of a shorter run, those that keep as many of its weights as they can
            self.left[:, :, -1] = self._members[:, :rest].sum(1) == min(n, rest)

    def factors(self, weights: torch.Tensor, rows: slice, number: int) -> torch.Tensor:
        """Drops combinations, the lowest first and of equals the last; returns what the others come to."""
        left = self.left[rows]
        scores = in_runs(self._credit[rows], self._m) @ self._members.T
        scores.add_(self._first)
        if number < self.left.shape[-1]:
            self._drop(scores, left, number)
        sums = scores.clamp_(min=1e-9).mul_(left) @ self._members
        return as_weights(sums.div_(sums.amax(-1, keepdim=True)), weights.shape)

    def _drop(self, scores: torch.Tensor, left: torch.Tensor, number: int) -> None:
        order = scores.masked_fill(~left, -math.inf).argsort(dim=-1, descending=True, stable=True)
        left.scatter_(-1, order[..., number:], False)


def combinations_left(n: int, m: int, share: float) -> int:
    """Returns how many combinations of each run are left after a share of the time of the choice.

    Args:
        n: How many are kept.
        m: Of so many.
        share: 0 to 1, along the cubic of Zhu & Gupta 2017 (arXiv 1710.01878), as LBC has it.
    """
    # The tolerance keeps rounding from leaving one more where the cubic is a whole number.
    return 1 + math.ceil((math.comb(m, n) - 1) * (1 - min(share, 1.0)) ** 3 - 1e-9)
