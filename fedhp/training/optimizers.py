"""Local optimisation: the optimisers, and what they keep of parameters."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fedhp.model.optimizer import Optimizer, parameters_of
from fedhp.training.options import MOMENTUM, OPTIMIZERS, TrainConfig


class SGD:
    """SGD with momentum and decay, by torch's fused update alone.

    The step of torch's own class takes thrice as long on a small model, and to make one, or any of torch's
    optimisers, loads torch's compiler into the process (torch 2.13): a second and 65 MiB on every device
    and in every worker.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        self.param_groups: list[dict[str, Any]] = [{"params": list(parameters), **options}]
        self.state: defaultdict[torch.Tensor, Any] = defaultdict(dict)

    @torch.no_grad()
    def step(self) -> None:
        """Updates every parameter that has a gradient; the state must have been allocated.

        It goes through a parameter, its gradient and its state as they lie in memory, which must be alike.
        """
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            momentum = group["momentum"]
            torch._fused_sgd_(  # pyright: ignore[reportPrivateImportUsage]
                parameters,
                [p.grad for p in parameters],
                [self.state[p][MOMENTUM] for p in parameters] if momentum else [],
                weight_decay=group["weight_decay"],
                momentum=momentum,
                lr=group["lr"],
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,  # the state is there
            )


@torch.no_grad()
def descend(tensors: list[torch.Tensor], directions: list[torch.Tensor], rates: Sequence[float]) -> None:
    """Moves the rows of tensors against those of directions, each as far as its learning rate says."""
    if len({*rates}) == 1:
        _move(tensors, directions, rates[0])
        return
    each = torch.tensor(rates, device=tensors[0].device)
    for tensor, direction in zip(tensors, directions, strict=True):
        tensor.addcmul_(direction, each.view(-1, *[1] * (tensor.dim() - 1)), value=-1)


def _move(tensors: list[torch.Tensor], directions: list[torch.Tensor], rate: float) -> None:
    torch._fused_sgd_(  # pyright: ignore[reportPrivateImportUsage]
        tensors,
        directions,
        [],
        weight_decay=0.0,
        momentum=0.0,
        lr=rate,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )


def _sgd(parameters: Iterable[nn.Parameter], config: TrainConfig) -> Optimizer:
    return SGD(parameters, config.learning_rate, config.momentum, config.weight_decay)


def _adam(parameters: Iterable[nn.Parameter], config: TrainConfig) -> Optimizer:
    return torch.optim.Adam(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


def _adamw(parameters: Iterable[nn.Parameter], config: TrainConfig) -> Optimizer:
    return torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )


_MAKERS: Mapping[str, Callable[[Iterable[nn.Parameter], TrainConfig], Optimizer]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
}


def made(parameters: Iterable[nn.Parameter], config: TrainConfig) -> Optimizer:
    """Returns the optimiser that the configuration names, its state allocated."""
    optimizer = unallocated(parameters, config)
    allocate_state(optimizer, config)
    return optimizer


def unallocated(parameters: Iterable[nn.Parameter], config: TrainConfig) -> Optimizer:
    """Returns the optimiser that the configuration names, without state."""
    return _MAKERS[config.optimizer](parameters, config)


def allocate_state(optimizer: Optimizer, config: TrainConfig) -> None:
    """Allocates the optimiser's state before the first step, as zeros, which is what it starts from.

    So every step takes the same memory, the first one too, and a cut finds all state in place.
    """
    names = OPTIMIZERS[config.optimizer].state_names(config)
    for parameter in parameters_of(optimizer):
        state = optimizer.state[parameter]
        for name in names:
            state[name] = torch.zeros_like(parameter)
        if OPTIMIZERS[config.optimizer].counts:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)


def state_tensors(optimizer: Optimizer) -> list[torch.Tensor]:
    """Returns every tensor that the optimiser keeps."""
    values = (value for state in optimizer.state.values() for value in state.values())
    return [value for value in values if isinstance(value, torch.Tensor)]
