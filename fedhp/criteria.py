"""Criteria: one score per kept unit of a group; the lowest goes first. They score, nothing else.

A criterion sees the parameters *entering* a group, one row per unit, with their gradients of the last step;
of the inputs, which nothing enters, those *leaving* it. The paper's own score is not available to us; the
default is our choice.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch


class Rows(NamedTuple):
    """One parameter of a group, seen unit by unit.

    Attributes:
        weights: Shape ``(units, entries)``; a bias has one entry per unit.
        gradients: The same of the last step; None where the criterion is not ``tracked``.
    """

    weights: torch.Tensor
    gradients: torch.Tensor | None


Score = Callable[[Sequence[Rows], torch.Generator], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Criterion:
    """A score and when to take it.

    Attributes:
        score: Maps a group's parameters and a random generator to non-negative scores of shape ``(units,)``.
        tracked: Whether the score depends on the data: then it is averaged over the steps; otherwise it is
            taken only when a cut is due.
    """

    score: Score
    tracked: bool


def taylor(parameters: Sequence[Rows], generator: torch.Generator) -> torch.Tensor:
    """First-order Taylor term of removing a unit, ``|sum w * dL/dw|`` over its weights and bias.

    Setting a unit's incoming weights and bias (an input's outgoing weights) to zero changes the loss by
    minus this sum, to first order (Molchanov et al. 2019, arXiv 1906.10771, equation 8, summed before the
    square as for a whole unit).
    """
    return _sum(map(_row_dots, parameters)).abs()


def magnitude(parameters: Sequence[Rows], generator: torch.Generator) -> torch.Tensor:
    """Euclidean norm of a unit's weights and bias (Li et al. 2017, arXiv 1608.08710, with L2)."""
    return _sum(torch.linalg.vector_norm(rows.weights, dim=1).square() for rows in parameters).sqrt()


def random(parameters: Sequence[Rows], generator: torch.Generator) -> torch.Tensor:
    """Uniform random scores: the control that any other criterion has to beat."""
    weights = parameters[0].weights
    return torch.rand(len(weights), generator=generator).to(weights.device)


def _sum(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    return functools.reduce(torch.add, parts)


def _row_dots(rows: Rows) -> torch.Tensor:
    """Returns the dot product of each row of weights with its gradients, without a temporary of their size.

    Torch's own ways allocate one on the CPU, which would be the step's peak: the largest weight again, on
    top of all gradients. NumPy's ``einsum`` reads the same memory in the order in which it lies, whether the
    units are the tensor's rows or its columns, and allocates nothing.
    """
    weights, gradients = rows
    assert gradients is not None
    if weights.device.type == "cpu":
        return torch.from_numpy(np.einsum("ij,ij->i", weights.numpy(), gradients.numpy()))
    return torch.bmm(weights.unsqueeze(1), gradients.unsqueeze(2)).flatten()


CRITERIA: dict[str, Criterion] = {
    "taylor": Criterion(taylor, tracked=True),
    "magnitude": Criterion(magnitude, tracked=False),
    "random": Criterion(random, tracked=False),
}
