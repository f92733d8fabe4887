"""A network as NumPy's arrays, of a device without PyTorch: what it keeps, and what it computes."""

from abc import abstractmethod
from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.model import numpy_kernels
from fedhp.model.dense import CROSS_ENTROPY, Batch, Loss, logits, worked
from fedhp.model.layout import Layout
from fedhp.model.structure import Structure

Floats = NDArray[np.float32]


class Parameter:
    """An array of a network, and its gradient of the step at hand: as PyTorch's parameters have them.

    Attributes:
        data: The weights, in C order.
        grad: Of their shape; None between steps.
    """

    def __init__(self, data: Floats) -> None:
        self.data = data
        self.grad: Floats | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weights."""
        return self.data.shape


class ArrayNetwork:
    """What networks of arrays have in common.

    Args:
        weights: Of the parameters, in order; they are copied.

    Attributes:
        named: The parameters by name.
    """

    def __init__(self, weights: Mapping[str, Floats]) -> None:
        self.named = {name: Parameter(np.array(own, np.float32)) for name, own in weights.items()}

    def named_parameters(self) -> ItemsView[str, Parameter]:
        """Returns the parameters by name."""
        return self.named.items()

    def parameters(self) -> ValuesView[Parameter]:
        """Returns the parameters."""
        return self.named.values()

    @property
    def statistics(self) -> list[Floats]:
        """What it keeps beside parameters: nothing."""
        return []

    def weights(self) -> dict[str, Floats]:
        """Returns the weights as they are."""
        return {name: parameter.data for name, parameter in self.named.items()}

    def cut_statistics(self, layout: Layout, within: Structure, sub: Structure) -> None:
        """Cuts what there is beside parameters."""

    @abstractmethod
    def gradients(
        self, samples: Floats, labels: NDArray[np.int64], loss: Loss = CROSS_ENTROPY
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Computes gradients: see `fedhp.model.gradients.gradients`."""

    @abstractmethod
    def outputs(self, samples: Floats) -> Floats:
        """Returns the logits of samples in evaluation, of shape ``(1, batch, classes)``."""

    @abstractmethod
    def restart_statistics(self) -> None:
        """Makes running statistics the mean over the samples to come."""

    @abstractmethod
    def retake_statistics(self, batches: Iterator[Floats]) -> None:
        """Makes them the mean over these samples, of which one batch is held at a time."""

    def judged(self, samples: Floats, labels: NDArray[np.int64]) -> tuple[int, float]:
        """Returns how many samples are predicted right, and their summed cross-entropy."""
        outputs = self.outputs(samples)
        right = int(numpy_kernels.hits(outputs, labels[None]).sum())
        return right, -float(numpy_kernels.chosen(numpy_kernels.log_softmax(outputs), labels[None]).sum())


class ArrayChain(ArrayNetwork):
    """A dense chain: of each layer in order, weights and biases."""

    def gradients(
        self, samples: Floats, labels: NDArray[np.int64], loss: Loss = CROSS_ENTROPY
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Computes gradients."""
        batch = Batch(samples[None], labels[None], [len(labels)], loss)
        losses, right, grads = worked(numpy_kernels, self._tensors, batch)
        for parameter, grad in zip(self.parameters(), grads, strict=True):
            parameter.grad = grad[0]
        return losses.reshape(()), right.reshape(())

    def outputs(self, samples: Floats) -> Floats:
        """Returns the logits of samples."""
        return logits(numpy_kernels, self._tensors, samples[None])

    @property
    def _tensors(self) -> list[Floats]:
        return [parameter.data[None] for parameter in self.parameters()]
