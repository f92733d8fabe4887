"""What a scenario says of local training: its section of keys, and what follows from them by names alone."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from fedhp.bounds import LARGEST_BATCH, MOST_EPOCHS, Bounds, shown
from fedhp.choices import STABLE, OneOf, check_values
from fedhp.errors import ScenarioError
from fedhp.training.method_names import DYNHP

# Where an optimiser keeps a parameter's momentum.
MOMENTUM = "momentum_buffer"

DENSITY_NAMES = ("erk", "uniform")  # those of `fedhp.model.densities.DENSITIES`

LR_SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "step": lambda progress: 1.0 if progress < 0.5 else 0.1,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
}


@dataclass(frozen=True)
class SparseConfig:
    """How sparse training goes, with ``train.method = rigl``, ``set`` or ``static``.

    Attributes:
        densities: How layers share the weights that ``prune.target_compression`` leaves: ``erk`` leaves
            [narrow layers denser](#client-methods), ``uniform`` all alike.
        drop: The share of a layer's weights that are dropped and grown elsewhere at a time, at first; it
            falls to 0 along a cosine until ``train.sparse.end``. Of ``rigl`` and ``set``.
        every: Steps from one such time to the next; a local training of fewer has one half-way.
        end: Progress of the whole training from which on weights stay where they are.
    """

    densities: Annotated[str, OneOf(DENSITY_NAMES)] = "erk"
    drop: Annotated[float, Bounds(above=0, at_most=1)] = 0.3
    every: Annotated[int, Bounds(at_least=1)] = 100
    end: Annotated[float, Bounds(above=0, at_most=1)] = 0.75

    def __post_init__(self) -> None:
        check_values(self, "train.sparse.")

    def share(self, progress: float) -> float:
        """Returns the share that is dropped at this progress (Evci et al. 2020, section 3: a cosine)."""
        if progress >= self.end:
            return 0.0
        return self.drop / 2 * (1 + math.cos(math.pi * progress / self.end))


@dataclass(frozen=True)
class DropFilterConfig:
    """What is dropped of convolutions' filters in training.

    Attributes:
        rate: The probability that an element of a filter is dropped in a step
            ([DropFilter](#client-methods), Pan et al. 2018, arXiv 1811.06783); 0 drops nothing.
        plus: Whether others are dropped at each position of a convolution, as in DropFilter-PLUS.
    """

    rate: Annotated[float, Bounds(at_least=0, below=1, hint="0 drops nothing")] = 0.0
    plus: bool = False

    def __post_init__(self) -> None:
        check_values(self, "train.dropfilter.")
        if self.plus and not self.rate:
            raise ScenarioError(
                "train.dropfilter.plus has no effect without train.dropfilter.rate, such as 0.1"
            )


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
        label_smoothing: The share of a sample's label that training spreads over all classes alike (Szegedy
            et al. 2016, arXiv 1512.00567), which keeps a network from being too sure of what it is shown. The
            training loss that is recorded is that of smoothed labels. Not together with
            ``train.masked_loss``. 0 spreads nothing.
        method: How devices make the network small, with the strategies that prune: one of the [client
            methods](#client-methods) ``dynhp``, ``smcp``, ``rigl``, ``set`` and ``static``, or one of your
            own, ``package.module:Class``.
        sparse: How sparse training goes.
        dropfilter: What is dropped of convolutions' filters.
        methods: Client methods of your own that take part in every training, as ``package.module:Class``. See
            [a client method of your own](#a-client-method-of-your-own).
        lr_schedule: ``cosine`` falls to zero over the whole training, ``step`` to a tenth half-way;
            ``constant`` does not.
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
    label_smoothing: Annotated[float, Bounds(at_least=0, below=1, hint="0 spreads nothing")] = 0.0
    method: str = DYNHP
    sparse: SparseConfig = field(default_factory=SparseConfig)
    dropfilter: DropFilterConfig = field(default_factory=DropFilterConfig)
    methods: list[str] = field(default_factory=list)
    lr_schedule: Annotated[str, OneOf(LR_SCHEDULES)] = "cosine"
    device: Annotated[str, OneOf(("auto", "cpu", "cuda"))] = "auto"

    def __post_init__(self) -> None:
        check_values(self, "train.")
        if self.masked_loss and self.label_smoothing:
            raise ScenarioError(
                f"train.label_smoothing = {self.label_smoothing:g} spreads labels over classes that "
                f"train.masked_loss keeps out of a client's loss; set one of the two"
            )
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
    """Which tensors of a parameter's shape an optimiser keeps, and whether it counts steps."""

    state_names: Callable[[TrainConfig], tuple[str, ...]]
    counts: bool = False


# They are made by `fedhp.training.optimizers.made`.
OPTIMIZERS: Mapping[str, OptimizerKind] = {
    "sgd": OptimizerKind(lambda config: (MOMENTUM,) if config.momentum else ()),
    "adam": OptimizerKind(lambda config: ("exp_avg", "exp_avg_sq"), counts=True),
    "adamw": OptimizerKind(lambda config: ("exp_avg", "exp_avg_sq"), counts=True),
}
