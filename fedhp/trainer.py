"""DynHP on one device: train, prune, grow the batch, never exceed the budget. Knows neither Flower nor Ray."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from fedhp.criteria import CRITERIA
from fedhp.data import Shard
from fedhp.errors import BudgetError, ScenarioError, TrainingError
from fedhp.measure import LiveTensors
from fedhp.memory import MemoryConfig, MemoryModel
from fedhp.models import Architecture, to_module
from fedhp.pruning import Contributions, cut, select
from fedhp.schedule import PruneConfig, scheduled_counts, scheduled_size
from fedhp.seeds import derive, generator
from fedhp.state import ModelState, RoundTask, Statistics, Update
from fedhp.structure import Structure

LR_SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
}


@dataclass(frozen=True)
class TrainConfig:
    """Local training.

    Attributes:
        local_epochs: Passes over the local data per round.
        batch_size: Samples per step; the reference for the batch policies.
        learning_rate: At the reference batch and the start of the schedule.
        optimizer: A name in `OPTIMIZERS`.
        momentum: Of SGD.
        weight_decay: L2 penalty (decoupled for adamw).
        lr_schedule: ``cosine`` falls to zero over the whole training; ``constant``.
        device: ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``.
    """

    local_epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 0.05
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    lr_schedule: str = "cosine"
    device: str = "auto"

    def __post_init__(self) -> None:
        _check_choice("train.optimizer", self.optimizer, OPTIMIZERS)
        _check_choice("train.lr_schedule", self.lr_schedule, LR_SCHEDULES)
        _check_choice("train.device", self.device, ("auto", "cpu", "cuda"))
        if self.local_epochs < 1 or self.batch_size < 1:
            raise ScenarioError(
                f"train.local_epochs and train.batch_size must be at least 1, "
                f"got {self.local_epochs} and {self.batch_size}"
            )
        if not (self.learning_rate > 0 and 0 <= self.momentum < 1 and self.weight_decay >= 0):
            raise ScenarioError(
                "train.learning_rate must be above 0, train.momentum in [0, 1) and "
                f"train.weight_decay 0 or more, got {self.learning_rate}, {self.momentum} and "
                f"{self.weight_decay}"
            )

    @property
    def state_slots(self) -> int:
        """Optimiser tensors per parameter."""
        return len(OPTIMIZERS[self.optimizer].state_names(self))


def _check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ScenarioError(f"{key} must be one of {', '.join(choices)}, got '{value}'")


@dataclass(frozen=True, slots=True)
class OptimizerKind:
    """How to make an optimiser, and which tensors of a parameter's shape it keeps."""

    make: Callable[[Iterable[nn.Parameter], TrainConfig], torch.optim.Optimizer]
    state_names: Callable[[TrainConfig], tuple[str, ...]]


def _sgd(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters,
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _adam(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.Adam(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )


def _adamw(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )


OPTIMIZERS: dict[str, OptimizerKind] = {
    "sgd": OptimizerKind(_sgd, lambda config: ("momentum_buffer",) if config.momentum else ()),
    "adam": OptimizerKind(_adam, lambda config: ("exp_avg", "exp_avg_sq")),
    "adamw": OptimizerKind(_adamw, lambda config: ("exp_avg", "exp_avg_sq")),
}


@dataclass(frozen=True)
class Recipe:
    """How every client trains: the read-only part of a scenario that the trainer needs.

    Attributes:
        rounds: Rounds of the whole training, over which schedules run.
        seed: The run's seed.
    """

    architecture: Architecture
    train: TrainConfig
    prune: PruneConfig
    memory: MemoryConfig
    rounds: int
    seed: int

    def memory_model(self, raw_itemsize: int) -> MemoryModel:
        """Returns the memory model for this recipe's optimiser and data stored at this item size."""
        return self.architecture.memory_model(self.train.state_slots, raw_itemsize)

    def without_pruning(self) -> "Recipe":
        """Returns the recipe of a dense model: nothing is cut."""
        return replace(self, prune=replace(self.prune, target_compression=1.0, marginal=0.0))

    def device(self) -> torch.device:
        """Returns the device to compute on."""
        wanted = self.train.device
        if wanted == "auto":
            wanted = "cuda" if torch.cuda.is_available() else "cpu"
        if wanted == "cuda" and not torch.cuda.is_available():
            raise ScenarioError("train.device = cuda, but torch sees no CUDA device; use auto or cpu")
        return torch.device(wanted)


def train_locally(recipe: Recipe, task: RoundTask, shard: Shard) -> Update:
    """Trains one client for one round, pruning as the schedule demands, within its budget throughout.

    Args:
        recipe: How to train.
        task: The round, the device and the model that it was assigned.
        shard: The client's own data.

    Returns:
        The trained, perhaps smaller, model and what was measured.

    Raises:
        BudgetError: If the assigned model does not fit the device's budget with one sample.
        TrainingError: If the loss is not finite.
    """
    if not len(shard):
        raise TrainingError(f"client {task.client} has no training samples")
    return _Session(recipe, task, shard).run()


class _Session:
    """One client's local training in one round: the DynHP loop and the state that it carries."""

    def __init__(self, recipe: Recipe, task: RoundTask, shard: Shard) -> None:
        self.recipe, self.task, self.shard = recipe, task, shard
        self.layout = recipe.architecture.layout
        self.device = recipe.device()
        self.structure = task.state.structure
        self.memory = recipe.memory_model(shard.raw_itemsize)
        self.module = to_module(recipe.architecture, task.state, self.device)
        self.optimizer = OPTIMIZERS[recipe.train.optimizer].make(
            self.module.parameters(), recipe.train
        )
        _allocate_state(self.optimizer, recipe.train)
        self.order = generator(recipe.seed, "batches", task.round, task.client)
        self.contributions = self._contributions()
        self.predicted = self.measured = 0
        self._begin_phase()
        self.first_batch = self.batch

    def run(self) -> Update:
        started = time.perf_counter()
        for epoch in range(self.recipe.train.local_epochs):
            self._epoch(epoch)
        seconds = time.perf_counter() - started
        weights = {n: p.detach().cpu().numpy() for n, p in self.module.named_parameters()}
        statistics = Statistics(
            train_loss=self.loss,
            accuracy=self.accuracy,
            memory_predicted_bytes=self.predicted,
            memory_measured_bytes=self.measured,
            batch_size_first=self.first_batch,
            batch_size_last=self.batch,
            seconds=seconds,
        )
        state = ModelState(weights, self.structure)
        return Update(
            self.task.client, self.task.state.structure, state, len(self.shard), statistics
        )

    def _epoch(self, epoch: int) -> None:
        total = len(self.shard)
        order = self.order.permutation(total)
        loss_sum = torch.zeros((), device=self.device)
        num_right = torch.zeros((), dtype=torch.int64, device=self.device)
        done = 0
        while done < total:
            rows = order[done : done + self.batch]
            self._set_learning_rate(self._progress(epoch, done), len(rows))
            loss, right = self._measured_step(rows)
            loss_sum += loss * len(rows)
            num_right += right
            done += len(rows)
            self._prune_if_due(self._progress(epoch, done))
        self.loss, self.accuracy = float(loss_sum) / total, float(num_right) / total
        if not math.isfinite(self.loss):
            raise TrainingError(
                f"the training loss of client {self.task.client} in round {self.task.round} is "
                f"{self.loss}; lower train.learning_rate"
            )

    def _step(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = self.shard.batch(rows)
        if self.device.type != "cpu":
            images, labels = images.to(self.device), labels.to(self.device)
        logits = self.module(images)
        loss = nn.functional.cross_entropy(logits, labels)
        right = (logits.detach().argmax(1) == labels).sum()
        del logits  # the backward pass does not need them
        loss.backward()
        if self.contributions is not None:
            self.contributions.observe()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach(), right

    def _measured_step(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs a step, measuring its peak if no step of its shape was measured in this process yet.

        The live tensors of a step are a function of shapes alone, so that one measurement serves every
        client and round that takes a step of the same shape.
        """
        key = self._shape_key(len(rows))
        if key not in _MEASURED:
            existing = [*self.module.parameters(), *_state_tensors(self.optimizer)]
            with LiveTensors(existing) as meter:
                result = self._step(rows)
            _MEASURED[key] = meter.peak
        else:
            result = self._step(rows)
        self.measured = max(self.measured, _MEASURED[key])
        return result

    def _shape_key(self, batch: int) -> tuple[object, ...]:
        shapes = tuple(tuple(p.shape) for p in self.module.parameters())
        tracked = self.contributions is not None
        return shapes, batch, self.recipe.train.optimizer, self.memory.state_slots, tracked

    def _progress(self, epoch: int, done: int) -> float:
        """Returns the share of the whole training that is done, 0 to 1."""
        local = (epoch + done / len(self.shard)) / self.recipe.train.local_epochs
        return (self.task.round - 1 + local) / self.recipe.rounds

    def _set_learning_rate(self, progress: float, batch: int) -> None:
        train = self.recipe.train
        # Scaled by the batch that the policy chose, not by an epoch's shorter last one.
        factor = self.recipe.memory.lr_factor(self.batch, train.batch_size)
        rate = train.learning_rate * LR_SCHEDULES[train.lr_schedule](progress) * factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _begin_phase(self) -> None:
        """Chooses the batch for the structure just reached."""
        self.batch = choose_batch(
            self.recipe, self.memory, self.structure, self.task.profile.memory_bytes
        )
        self.batch = min(self.batch, len(self.shard))
        peak = self.memory.training_bytes(self.structure.counts, self.batch)
        self.predicted = max(self.predicted, peak)

    def _contributions(self) -> Contributions | None:
        """Returns the tracker, or None when nothing will be cut in this round and tracking is for nothing."""
        prune = self.recipe.prune
        if not prune.marginal and not self._excess(self.task.round / self.recipe.rounds):
            return None
        source = torch.Generator().manual_seed(
            derive(self.recipe.seed, "criterion", self.task.round, self.task.client)
        )
        return Contributions(self.layout, CRITERIA[prune.criterion], self.module, source)

    def _excess(self, progress: float) -> bool:
        """Says whether the structure is larger than the schedule allows at this progress."""
        allowed = scheduled_counts(self.layout, self.recipe.prune, progress)
        return any(count > allowed[group] for group, count in self.structure.counts.items())

    def _prune_if_due(self, progress: float) -> None:
        if self.contributions is None or scheduled_size(self.recipe.prune, progress) >= 1:
            return
        allowed = scheduled_counts(self.layout, self.recipe.prune, progress)
        if not self.recipe.prune.marginal and not self._excess(progress):
            return
        scores = {g: s.cpu().numpy() for g, s in self.contributions.scores().items()}
        marginal = self.recipe.prune.marginal
        target = select(scores, self.structure, allowed, self.layout.floors, marginal)
        if target == self.structure:
            return
        cut(self.module, self.optimizer, self.layout, self.structure, target)
        self.contributions.cut(self.structure, target)
        self.structure = target
        self._begin_phase()


# Peaks already measured in this process, by the shape of the step; a cache, never state.
_MEASURED: dict[tuple[object, ...], int] = {}


def choose_batch(
    recipe: Recipe, memory: MemoryModel, structure: Structure, budget_bytes: int | None
) -> int:
    """Returns the batch that the policy takes for this structure within the budget.

    Raises:
        BudgetError: If not even one sample fits.
    """
    wanted = recipe.train.batch_size
    if budget_bytes is None:
        return wanted
    largest = memory.largest_batch(structure.counts, budget_bytes)
    if largest < 1:
        needed = memory.training_bytes(structure.counts, 1)
        raise BudgetError(
            f"training this model with one sample takes {needed:,} bytes; the budget is "
            f"{budget_bytes:,} bytes"
        )
    if recipe.memory.batch_policy == "fill":
        return min(largest, max(recipe.memory.max_batch, 1))
    return min(largest, wanted)


def _allocate_state(optimizer: torch.optim.Optimizer, config: TrainConfig) -> None:
    """Allocates the optimiser's state before the first step, as zeros, which is what it starts from.

    So every step takes the same memory, the first one too, and a cut finds all state in place.
    """
    names = OPTIMIZERS[config.optimizer].state_names(config)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            for name in names:
                state[name] = torch.zeros_like(parameter)
            if config.optimizer != "sgd":
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)


def _state_tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    values = (value for state in optimizer.state.values() for value in state.values())
    return [value for value in values if isinstance(value, torch.Tensor)]


@torch.inference_mode()
def evaluate(
    architecture: Architecture,
    state: ModelState,
    shard: Shard,
    device: torch.device | str = "cpu",
    batch: int = 1000,
) -> tuple[float, float]:
    """Returns accuracy (0 to 1) and mean cross-entropy of a model on a shard."""
    module = to_module(architecture, state, device)
    num_right, loss_sum = 0, 0.0
    for start in range(0, len(shard), batch):
        images, labels = shard.batch(np.arange(start, min(start + batch, len(shard))))
        logits, labels = module(images.to(device)), labels.to(device)
        loss_sum += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        num_right += int((logits.argmax(1) == labels).sum())
    return num_right / len(shard), loss_sum / len(shard)
