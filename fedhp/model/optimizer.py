"""What an optimiser is to those who look at it or cut it: parameters in groups, and what each has kept."""

from collections import defaultdict
from typing import Any, Protocol

import torch


class Optimizer(Protocol):
    """An optimiser, PyTorch's or ours.

    Attributes:
        param_groups: As ``torch.optim.Optimizer`` has them: ``params`` and options such as ``lr``.
        state: By parameter, what is kept for it, by name.
    """

    param_groups: list[dict[str, Any]]
    state: defaultdict[torch.Tensor, Any]

    def step(self) -> Any:
        """Updates every parameter that has a gradient."""
        ...
