"""SGD on NumPy's arrays."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from fedhp.model import numpy_kernels
from fedhp.model.array_network import Parameter
from fedhp.training.options import MOMENTUM


class ArraySGD:
    """SGD with momentum and decay, as PyTorch has it: see `fedhp.model.optimizer.Optimizer`."""

    def __init__(
        self, parameters: Iterable[Parameter], lr: float, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        self.param_groups: list[dict[str, Any]] = [{"params": list(parameters), **options}]
        self.state: defaultdict[Parameter, Any] = defaultdict(dict)
        if momentum:
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter][MOMENTUM] = np.zeros_like(parameter.data)

    def step(self) -> None:
        """Updates every parameter that has a gradient, in whose place the update is made."""
        (group,) = self.param_groups
        for parameter in group["params"]:
            if parameter.grad is not None:
                _descend(parameter, parameter.grad, self.state[parameter], group)


def _descend(parameter: Parameter, grad: Any, state: dict[str, Any], options: dict[str, Any]) -> None:
    if options["weight_decay"]:
        numpy_kernels.lessen(grad, parameter.data, -options["weight_decay"])
    if options["momentum"]:
        velocity = state[MOMENTUM]
        velocity *= options["momentum"]
        velocity += grad
        np.multiply(velocity, options["lr"], out=grad)
    else:
        grad *= options["lr"]
    parameter.data -= grad
