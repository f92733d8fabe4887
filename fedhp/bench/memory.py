"""How well the memory model predicts: against PyTorch's own tracker, which knows nothing of it."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from torch.distributed._tools.mem_tracker import MemTracker

from fedhp.data import Shard
from fedhp.models import ModelConfig, architecture, initial_state, to_module
from fedhp.optimizers import OPTIMIZERS, TrainConfig, allocate_state
from fedhp.trainer import training_step

_MODELS = (
    (ModelConfig("mlp", [300, 100]), (1, 28, 28)),
    (ModelConfig("mlp", [29, 76]), (1, 28, 28)),
    (ModelConfig("cnn", [16, 32, 128]), (1, 28, 28)),
    (ModelConfig("cnn", [5, 9, 44]), (1, 28, 28)),
    (ModelConfig("cnn", [32, 64, 128]), (3, 32, 32)),
)
_OPTIMIZERS = (
    ("sgd", TrainConfig(momentum=0.0)),
    ("sgd momentum", TrainConfig()),
    ("adam", TrainConfig(optimizer="adam")),
    ("adamw", TrainConfig(optimizer="adamw")),
)
_BATCHES = (1, 4, 16, 64, 256, 1024)
_CLASSES = 10


def run_memory() -> dict[str, Any]:
    """Measures a step of every model, optimiser and batch.

    Returns:
        ``rows`` (model, optimiser, batch, predicted and measured bytes, their relative error), and the
        extremes ``largest_overestimate`` and ``largest_underestimate`` over them.
    """
    rows = list(_rows())
    errors = [row["relative_error"] for row in rows]
    return {
        "rows": rows,
        "largest_overestimate": max(errors),
        "largest_underestimate": min(errors),
    }


def _rows() -> Iterator[dict[str, Any]]:
    for (model, shape), (name, train), batch in product(_MODELS, _OPTIMIZERS, _BATCHES):
        arch = architecture(model, shape, _CLASSES)
        shard = _shard(shape, batch)
        memory = arch.memory_model(train.state_slots, shard.raw_itemsize)
        predicted = memory.training_bytes(arch.layout.widths, batch)
        measured = _measure(arch, train, shard)
        yield {
            "model": f"{model.name} {'-'.join(map(str, model.widths))} on {'x'.join(map(str, shape))}",
            "optimizer": name,
            "batch": batch,
            "predicted_bytes": predicted,
            "measured_bytes": measured,
            "relative_error": predicted / measured - 1,
        }


def _measure(arch: Any, train: TrainConfig, shard: Shard) -> int:
    module = to_module(arch, initial_state(arch, seed=0))
    optimizer = OPTIMIZERS[train.optimizer].make(module.parameters(), train)
    allocate_state(optimizer, train)
    tracker = MemTracker()
    tracker.track_external(module, optimizer)
    with tracker:
        training_step(module, optimizer, *shard.batch(np.arange(len(shard))))
    return sum(kinds["Total"] for kinds in tracker.get_tracker_snapshot("peak").values())


def _shard(shape: tuple[int, ...], num_samples: int) -> Shard:
    images = np.zeros((num_samples, *shape), np.uint8)
    labels = np.zeros(num_samples, np.int64)
    rows = np.arange(num_samples)
    return Shard(images, labels, rows, num_classes=_CLASSES, mean=0.5, std=0.5)
