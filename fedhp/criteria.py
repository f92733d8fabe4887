"""Criteria: one score per kept unit of a group; the lowest goes first. They score, nothing else.

A criterion sees the parameters *entering* a group: the tensors whose first axis is the group's units, with
their gradients of the last step. The paper's own score is not available to us; the default is our choice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

Parameters = Sequence[torch.nn.Parameter]
Score = Callable[[Parameters, torch.Generator], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Criterion:
    """A score and when to take it.

    Attributes:
        score: Maps the parameters entering a group, each of shape ``(units, ...)`` and with its gradient if
            ``tracked``, and a random generator to non-negative scores of shape ``(units,)``.
        tracked: Whether the score depends on the data: then it is averaged over the steps; otherwise it is
            taken only when a cut is due.
    """

    score: Score
    tracked: bool


def taylor(parameters: Parameters, generator: torch.Generator) -> torch.Tensor:
    """First-order Taylor term of removing a unit, ``|sum w * dL/dw|`` over its incoming weights and bias.

    Setting a unit's incoming weights and bias to zero changes the loss by minus this sum, to first order
    (Molchanov et al. 2019, arXiv 1906.10771, equation 8, summed before the square as for a whole unit).
    """
    total = torch.zeros(len(parameters[0]), device=parameters[0].device)
    for parameter in parameters:
        assert parameter.grad is not None
        total += _row_dots(_rows(parameter.detach()), _rows(parameter.grad))
    return total.abs_()


def magnitude(parameters: Parameters, generator: torch.Generator) -> torch.Tensor:
    """Euclidean norm of a unit's incoming weights and bias (Li et al. 2017, arXiv 1608.08710, with L2)."""
    total = torch.zeros(len(parameters[0]), device=parameters[0].device)
    for parameter in parameters:
        total += torch.linalg.vector_norm(_rows(parameter.detach()), dim=1).square_()
    return total.sqrt_()


def random(parameters: Parameters, generator: torch.Generator) -> torch.Tensor:
    """Uniform random scores: the control that any other criterion has to beat."""
    return torch.rand(len(parameters[0]), generator=generator).to(parameters[0].device)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """Views a parameter as one row per unit; a bias as rows of one."""
    return tensor.reshape(len(tensor), -1)


def _row_dots(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Returns the dot product of each pair of rows without a temporary of the operands' size.

    Torch's own ways allocate one on the CPU, which would be the step's peak: the largest weight again, on
    top of all gradients. NumPy's ``vecdot`` reads the same memory and allocates nothing.
    """
    if left.device.type == "cpu":
        return torch.from_numpy(np.vecdot(left.numpy(), right.numpy()))
    return torch.bmm(left.unsqueeze(1), right.unsqueeze(2)).flatten()


CRITERIA: dict[str, Criterion] = {
    "taylor": Criterion(taylor, tracked=True),
    "magnitude": Criterion(magnitude, tracked=False),
    "random": Criterion(random, tracked=False),
}
