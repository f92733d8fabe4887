"""What a training computes with: PyTorch's modules, or NumPy's arrays on a device that has no room for it."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedhp.costs.watching import Peak
from fedhp.data.shard import Shard
from fedhp.model.architecture import Architecture
from fedhp.model.dense import CROSS_ENTROPY, Form, Loss
from fedhp.model.layout import Layout
from fedhp.model.optimizer import Optimizer
from fedhp.model.state import ModelState, Weights
from fedhp.model.structure import Structure
from fedhp.threads import NUMPY, TORCH
from fedhp.training.options import TrainConfig

# PyTorch's tensors, modules and devices, or what stands for them.
Array = Any
Network = Any
Device = Any


class Runtime(Protocol):
    """How networks are held in training, and what computes on them: one of the modules below."""

    def device(self, wanted: str, /) -> Device:
        """Returns the device of ``train.device``.

        Raises:
            ScenarioError: If it is not there.
        """
        ...

    def check(self, recipe: Any, model: str, /) -> None:
        """Checks that it can train so.

        Args:
            recipe: How, an `fedhp.training.recipe.Recipe`.
            model: What the network is called.

        Raises:
            NeedsTorchError: If it cannot.
        """
        ...

    def network(self, arch: Architecture, state: ModelState, device: Device, /) -> Network:
        """Returns a copy of a model, to be trained."""
        ...

    def optimizer(self, network: Network, train: TrainConfig, /) -> Optimizer:
        """Returns its optimiser, all state allocated."""
        ...

    def batch(
        self, shard: Shard, rows: NDArray[np.intp], inputs: NDArray[np.intp] | None, device: Device, /
    ) -> tuple[Array, Array]:
        """Returns samples, as far as the model takes them, and their classes, where the model is."""
        ...

    def array(self, array: NDArray[Any], device: Device, /) -> Array:
        """Returns an array of NumPy's as what computes takes it."""
        ...

    def gradients(
        self, network: Network, samples: Array, labels: Array, loss: Loss = CROSS_ENTROPY, /
    ) -> tuple[Array, Array]:
        """Computes gradients: see `fedhp.model.gradients.gradients`."""
        ...

    def cut(
        self, network: Network, optimizer: Optimizer, layout: Layout, within: Structure, sub: Structure, /
    ) -> None:
        """Cuts a network and its optimiser's state: see `fedhp.pruning.cutting.cut`."""
        ...

    def evaluate(
        self,
        network: Network,
        shard: Shard,
        inputs: NDArray[np.intp] | None,
        device: Device,
        batch: int,
        /,
    ) -> tuple[float, float]:
        """Returns accuracy and mean cross-entropy: see `fedhp.training.evaluation.evaluate_module`."""
        ...

    def weights(self, network: Network, /) -> Weights:
        """Returns the weights as they are; what must outlive the next step is to be copied."""
        ...

    def restart_statistics(self, network: Network, /) -> None:
        """Makes a network's running statistics the mean over the samples to come."""
        ...

    def retake_statistics(self, network: Network, batches: Iterator[Array], /) -> None:
        """Makes them the mean over these samples, of which one batch is held at a time."""
        ...

    def kept(self, network: Network, optimizer: Optimizer | None = None, /) -> list[Array]:
        """Returns what lives between steps."""
        ...

    def live(self, existing: Iterable[Array], /) -> AbstractContextManager[Peak]:
        """Counts the bytes that live within it, with those that exist."""
        ...

    def form(self, network: Network, is_alone: bool, /) -> Form | None:
        """Returns how it is computed beside others: see `fedhp.model.side_by_side.form_of`."""
        ...

    def drawing(self, seed: int, device: Device, /) -> AbstractContextManager[None]:
        """Within it, whatever layers draw is a function of the seed alone."""
        ...


_MODULES = {TORCH: "fedhp.training.torch_runtime", NUMPY: "fedhp.training.numpy_runtime"}


def runtime_of(name: str) -> Runtime:
    """Returns a runtime by its name."""
    return import_module(_MODULES[name])  # pyright: ignore[reportReturnType] - a module of such functions
