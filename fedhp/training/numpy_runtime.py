"""Training with NumPy's arrays, of a device without PyTorch: see `fedhp.training.runtime.Runtime`.

It takes the room of what it trains and no more: `numpy` alone is a tenth of PyTorch's, on disk and in memory.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fedhp.costs.live_arrays import LiveArrays
from fedhp.data.arrays import made
from fedhp.data.shard import Shard
from fedhp.errors import NeedsTorchError
from fedhp.model.architecture import Architecture
from fedhp.model.array_network import ArrayNetwork
from fedhp.model.array_networks import array_network, has_arrays
from fedhp.model.dense import CROSS_ENTROPY, Loss
from fedhp.model.layout import Layout
from fedhp.model.optimizer import Optimizer
from fedhp.model.state import ModelState, Weights
from fedhp.model.structure import Structure
from fedhp.pruning.criteria import CRITERIA
from fedhp.pruning.cutting import cut_tensors
from fedhp.training.array_optimizer import ArraySGD
from fedhp.training.options import TrainConfig

__all__ = ["live"]

live = LiveArrays


def device(wanted: str) -> str:
    """Returns the processor."""
    if wanted == "cuda":
        raise NeedsTorchError("train.device = cuda")
    return "cpu"


def check(recipe: Any, model: str) -> None:
    """Declines what is PyTorch's alone.

    Raises:
        NeedsTorchError: If there is something of it.
    """
    arch, train, prune = recipe.architecture, recipe.train, recipe.prune
    device(train.device)
    if not has_arrays(arch):
        raise NeedsTorchError(f"the model {model}")
    if train.optimizer != "sgd":
        raise NeedsTorchError(f"train.optimizer = {train.optimizer}")
    for kind in recipe.methods:
        if not kind.on_arrays:
            raise NeedsTorchError(kind.said(recipe))
    if CRITERIA[prune.criterion].activations and prune.target_compression > 1:
        raise NeedsTorchError(f"prune.criterion = {prune.criterion}")


def network(arch: Architecture, state: ModelState, device: str) -> ArrayNetwork:
    """Returns a copy of a model."""
    return array_network(arch.layout, state.weights)


def optimizer(network: ArrayNetwork, train: TrainConfig) -> Optimizer:
    """Returns its optimiser."""
    return ArraySGD(network.parameters(), train.learning_rate, train.momentum, train.weight_decay)


def batch(
    shard: Shard, rows: NDArray[np.intp], inputs: NDArray[np.intp] | None, device: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns samples and classes."""
    return shard.batch(rows, inputs, empty=_empty)


def array(array: NDArray[Any], device: str) -> NDArray[Any]:
    """Returns it as it is."""
    return array


def gradients(
    network: ArrayNetwork,
    samples: NDArray[Any],
    labels: NDArray[np.int64],
    loss: Loss = CROSS_ENTROPY,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Computes gradients."""
    return network.gradients(samples, labels, loss)


def evaluate(
    network: ArrayNetwork, shard: Shard, inputs: NDArray[np.intp] | None, device: str, batch: int
) -> tuple[float, float]:
    """Returns accuracy and mean cross-entropy."""
    right, loss = 0, 0.0
    for start in range(0, len(shard), batch):
        rows = np.arange(start, min(start + batch, len(shard)))
        said = network.judged(*shard.batch(rows, inputs, empty=_empty))
        right, loss = right + said[0], loss + said[1]
    return right / len(shard), loss / len(shard)


def weights(network: ArrayNetwork) -> Weights:
    """Returns the weights."""
    return network.weights()


def cut(
    network: ArrayNetwork, optimizer: Optimizer, layout: Layout, within: Structure, sub: Structure
) -> None:
    """Cuts a network and its optimiser's state."""
    cut_tensors(network, optimizer, layout, within, sub)
    network.cut_statistics(layout, within, sub)


def restart_statistics(network: ArrayNetwork) -> None:
    """Makes running statistics the mean over the samples to come."""
    network.restart_statistics()


def retake_statistics(network: ArrayNetwork, batches: Iterator[NDArray[Any]]) -> None:
    """Makes them the mean over these samples."""
    network.retake_statistics(batches)


def kept(network: ArrayNetwork, optimizer: Optimizer | None = None) -> list[NDArray[Any]]:
    """Returns what lives between steps."""
    states = optimizer.state.values() if optimizer else ()
    of_optimizer = (array for state in states for array in state.values())
    return [*(parameter.data for parameter in network.parameters()), *network.statistics, *of_optimizer]


def form(network: ArrayNetwork, is_alone: bool) -> None:
    """Says that it is computed alone."""


def drawing(seed: int, device: str) -> AbstractContextManager[None]:
    """Does nothing: no layer draws."""
    return nullcontext()


def _empty(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    return made(np.empty(shape, dtype))
