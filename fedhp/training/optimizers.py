"""Local optimisation: the schema of the training section, the optimisers, the learning-rate schedules."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import nn

from fedhp.bounds import LARGEST_BATCH, MOST_EPOCHS, Bounds, shown
from fedhp.choices import STABLE, OneOf, check_values
from fedhp.errors import ScenarioError
from fedhp.model.optimizer import Optimizer

# Where an optimiser keeps a parameter's momentum.
MOMENTUM = "momentum_buffer"

LR_SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
}


@dataclass(frozen=True)
class TrainConfig:
    """Local training.

    Attributes:
        epochs: Passes over all training data in ``fedhp train``; a fleet ignores it.
        local_epochs: Passes over the local data per round.
        batch_size: Samples per step: what the memory policies start from. A device trains with fewer where
            the budget asks for it.
        learning_rate: At that batch and at the start of the schedule.
        optimizer: Whose steps are taken. Adam keeps twice the state of SGD with momentum, which counts
            against the budget.
        momentum: Of ``sgd``; 0 keeps no state.
        weight_decay: L2 penalty; decoupled in ``adamw``.
        proximal_mu: FedProx (Li et al. 2020, arXiv 1812.06127): adds to a client's loss ``mu/2`` times the
            squared distance to the weights that it received, which keeps clients with unlike data together; 0
            switches it off. The received weights stay on the device, one more tensor per parameter, which the
            budget counts.
        clip_norm: The largest Euclidean norm of a step's gradients, all parameters' together; longer ones are
            scaled down to it by one factor. It comes after the penalties of ``prune.regularizer`` and the
            pull of ``train.proximal_mu``, whose gradients it clips too, and before the optimiser with its
            ``train.weight_decay``; what units are judged by is not clipped. 0 does not clip.
        masked_loss: Whether classes that a client has no samples of take no part in its softmax (after
            HeteroFL, Diao et al. 2021, arXiv 2010.01264), so that it does not push down what it never sees. A
            client of a single class then learns nothing, and a client's training accuracy is among its own
            classes. Evaluation is over all classes, so that a personal model may well lose accuracy by it:
            try it with ``data.local_test``.
        methods: Client methods of your own that take part in every training, as ``package.module:Class``. See
            [a client method of your own](#a-client-method-of-your-own).
        lr_schedule: ``cosine`` falls to zero over the whole training; ``constant`` does not.
        device: Where it runs: ``auto`` takes CUDA where there is one.
    """

    epochs: Annotated[int, Bounds(at_least=1, largest=MOST_EPOCHS)] = 10
    local_epochs: Annotated[int, Bounds(at_least=1, largest=MOST_EPOCHS), STABLE] = 1
    batch_size: Annotated[int, Bounds(at_least=1, largest=LARGEST_BATCH), STABLE] = 32
    learning_rate: Annotated[float, Bounds(above=0), STABLE] = 0.02
    optimizer: Annotated[str, OneOf(lambda: OPTIMIZERS), STABLE] = "sgd"
    momentum: Annotated[float, Bounds(at_least=0, below=1), STABLE] = 0.9
    weight_decay: Annotated[float, Bounds(at_least=0), STABLE] = 0.0
    proximal_mu: Annotated[float, Bounds(at_least=0)] = 0.0
    clip_norm: Annotated[float, Bounds(at_least=0, hint="0 does not clip")] = 0.0
    masked_loss: bool = False
    methods: list[str] = field(default_factory=list)
    lr_schedule: Annotated[str, OneOf(LR_SCHEDULES)] = "cosine"
    device: Annotated[str, OneOf(("auto", "cpu", "cuda"))] = "auto"

    def __post_init__(self) -> None:
        check_values(self, "train.")
        for place, name in enumerate(self.methods):
            # OmegaConf lets a list pass for a text within a list.
            if not isinstance(name, str) or not all(name.partition(":")):
                raise ScenarioError(
                    f"train.methods[{place}] must be a reference, such as my_method:Mine, got {shown(name)}"
                )

    @property
    def state_slots(self) -> int:
        """Tensors that the optimiser keeps per parameter."""
        return len(OPTIMIZERS[self.optimizer].state_names(self))


@dataclass(frozen=True, slots=True)
class OptimizerKind:
    """How to make an optimiser, which tensors of a parameter's shape it keeps, and if it counts steps."""

    make: Callable[[Iterable[nn.Parameter], TrainConfig], Optimizer]
    state_names: Callable[[TrainConfig], tuple[str, ...]]
    counts: bool = False


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


OPTIMIZERS: dict[str, OptimizerKind] = {
    "sgd": OptimizerKind(_sgd, lambda config: (MOMENTUM,) if config.momentum else ()),
    "adam": OptimizerKind(_adam, lambda config: ("exp_avg", "exp_avg_sq"), counts=True),
    "adamw": OptimizerKind(_adamw, lambda config: ("exp_avg", "exp_avg_sq"), counts=True),
}


def made(parameters: Iterable[nn.Parameter], config: TrainConfig) -> Optimizer:
    """Returns the optimiser that the configuration names, its state allocated."""
    optimizer = OPTIMIZERS[config.optimizer].make(parameters, config)
    allocate_state(optimizer, config)
    return optimizer


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


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Sets the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def parameters_of(optimizer: Optimizer) -> Iterator[nn.Parameter]:
    """Yields all parameters that an optimiser updates."""
    for group in optimizer.param_groups:
        yield from group["params"]


def state_tensors(optimizer: Optimizer) -> list[torch.Tensor]:
    """Returns every tensor that the optimiser keeps."""
    values = (value for state in optimizer.state.values() for value in state.values())
    return [value for value in values if isinstance(value, torch.Tensor)]


def drop_gradients(optimizer: Optimizer) -> None:
    """Frees all gradients, as ``zero_grad`` does, less its bookkeeping: 30 microseconds of every step."""
    for parameter in parameters_of(optimizer):
        parameter.grad = None
