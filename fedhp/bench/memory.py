"""How well the memory model predicts: against PyTorch's own tracker, which knows nothing of it."""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from fedhp.costs.memory import Extras
from fedhp.costs.rehearsal import memory_model
from fedhp.data.shard import Shard
from fedhp.model.architecture import Architecture
from fedhp.model.building import initial_state, to_module
from fedhp.model.dense import Loss
from fedhp.model.gradients import gradients
from fedhp.model.modules import thin_before_convolutions
from fedhp.model.options import ModelConfig
from fedhp.model.structure import Structure
from fedhp.model.zoo import architecture
from fedhp.pruning.contributions import Contributions
from fedhp.pruning.criteria import CRITERIA
from fedhp.training.alone import training_step
from fedhp.training.methods.fedprox import keep_received, pull_back
from fedhp.training.methods.masked_loss import class_mask
from fedhp.training.optimizers import allocate_state, state_tensors, unallocated
from fedhp.training.options import OPTIMIZERS, TrainConfig

_MNIST, _CIFAR, _SENSORS = (1, 28, 28), (3, 32, 32), (1, 6, 128)
_MLP, _CNN = ModelConfig("mlp", [300, 100]), ModelConfig("cnn", [16, 32, 128])
# A model, its input, and how many units each group keeps where it is not the full model.
_CASES: tuple[tuple[ModelConfig, tuple[int, ...], dict[str, int]], ...] = (
    (_MLP, _MNIST, {}),
    (_MLP, _MNIST, {"inputs": 784, "fc1": 30, "fc2": 56}),
    (_MLP, _MNIST, {"inputs": 377, "fc1": 58, "fc2": 66}),
    (_CNN, _MNIST, {}),
    (_CNN, _MNIST, {"conv1": 5, "conv2": 9, "fc1": 44}),
    (ModelConfig("cnn", [32, 64, 128]), _CIFAR, {}),
    (ModelConfig("vgg11", [16, 32, 64, 64, 128, 128, 128, 128]), _CIFAR, {}),
    (ModelConfig("resnet20"), _CIFAR, {}),
    (ModelConfig("resnet20", norm="group"), _CIFAR, {}),
    (ModelConfig("conv1d"), _SENSORS, {}),
)
_OPTIMIZERS = (
    ("sgd", TrainConfig(momentum=0.0)),
    ("sgd momentum", TrainConfig()),
    ("adam", TrainConfig(optimizer="adam")),
    ("adamw", TrainConfig(optimizer="adamw")),
    ("sgd momentum, FedProx, masked", TrainConfig(proximal_mu=0.01, masked_loss=True)),
)
_BATCHES = (1, 4, 16, 64, 256, 1024)
_CLASSES = 10


def run_memory(on_model: Callable[[str], None]) -> dict[str, Any]:
    """Measures a step of every model, optimiser and batch.

    Args:
        on_model: Told of each model as its turn comes.

    Returns:
        ``rows`` (model, optimiser, batch, predicted and measured bytes, their relative error), and the
        extremes ``largest_overestimate`` and ``largest_underestimate`` over them.
    """
    rows: list[dict[str, Any]] = []
    for number, (model, shape, kept) in enumerate(_CASES, start=1):
        name = _said(model, kept, shape)
        on_model(f"{number} of {len(_CASES)}: {name}")
        rows.extend(
            {"model": name, **row} for row in _rows(architecture(model, shape, _CLASSES), shape, kept)
        )
    errors = [row["relative_error"] for row in rows]
    return {
        "rows": rows,
        "largest_overestimate": max(errors),
        "largest_underestimate": min(errors),
    }


def _rows(arch: Architecture, shape: tuple[int, ...], kept: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    counts = {**arch.layout.widths, **kept}
    for (name, train), wanted in product(_OPTIMIZERS, _BATCHES):
        batch = max(wanted, arch.layout.smallest_batch)
        shard = _shard(shape, batch)
        counting, pulled = OPTIMIZERS[train.optimizer].counts, int(train.proximal_mu > 0)
        extras = Extras(slots=pulled, masked=train.masked_loss, counts=counting)
        memory = memory_model(arch, train.state_slots, shard.raw_itemsize, extras)
        predicted = memory.training_bytes(counts, batch)
        measured = _measure(arch, train, counts, shard)
        yield {
            "optimizer": name,
            "batch": batch,
            "predicted_bytes": predicted,
            "measured_bytes": measured,
            "relative_error": predicted / measured - 1,
        }


def _said(model: ModelConfig, kept: Mapping[str, int], shape: tuple[int, ...]) -> str:
    cut = f" cut to {'-'.join(map(str, kept.values()))}" if kept else ""
    norm = f", {model.norm} norm" if model.name in ("vgg11", "resnet20", "conv1d") else ""
    return f"{model.said}{norm}{cut} on {'x'.join(map(str, shape))}"


def _measure(arch: Architecture, train: TrainConfig, counts: Mapping[str, int], shard: Shard) -> int:
    """Returns the peak of a step that tracks contributions, after others that have begun to."""
    masks = {group: np.arange(width) < counts[group] for group, width in arch.layout.widths.items()}
    state = initial_state(arch, seed=0).cut(arch.layout, Structure(masks))
    module = to_module(arch, state)
    thin_before_convolutions(module, arch.layout)
    optimizer = unallocated(module.parameters(), train)
    allocate_state(optimizer, train)
    if train.proximal_mu:
        keep_received(optimizer)
    tracked = Contributions(
        arch.layout, CRITERIA["taylor"], module, state.scores, 0.5, np.random.default_rng()
    )
    rows, inputs = np.arange(len(shard)), arch.kept_inputs(state.structure)
    absent = class_mask(shard.classes(), _CLASSES) if train.masked_loss else None
    mask = None if absent is None else torch.from_numpy(absent)
    loss = Loss(mask, train.label_smoothing)

    def on_gradients() -> None:
        tracked.observe()
        if train.proximal_mu:
            pull_back(optimizer, train.proximal_mu)

    training_step(gradients, module, optimizer, *shard.batch(rows, inputs), on_gradients, loss)
    tracker = MemTracker()
    tracker.track_external(module, *state_tensors(optimizer), *([] if mask is None else [mask]))
    with tracker:
        training_step(gradients, module, optimizer, *shard.batch(rows, inputs), on_gradients, loss)
    return sum(kinds["Total"] for kinds in tracker.get_tracker_snapshot("peak").values())


def _shard(shape: tuple[int, ...], num_samples: int) -> Shard:
    images = np.zeros((num_samples, *shape), np.uint8)
    labels = np.zeros(num_samples, np.int64)
    rows = np.arange(num_samples)
    return Shard(images, labels, rows, num_classes=_CLASSES, mean=0.5, std=0.5)
