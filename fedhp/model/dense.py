"""The forward and backward pass of dense chains, written once over the kernels of whoever holds the arrays.

K networks of one shape are worked out in one go, layer by layer: `fedhp.model.torch_kernels` computes on
PyTorch's tensors, `fedhp.model.numpy_kernels` on NumPy's arrays, of a device without PyTorch.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

Array = Any  # a tensor of PyTorch's or an array of NumPy's, float32 unless it says otherwise

# Is told of a layer, by its place, what flows back into its outputs, of shape (K, batch, outputs), and what
# it took in, of shape (K, batch, inputs).
Take = Callable[[int, Array, Array], None]


class Loss(NamedTuple):
    """How far outputs are from being right: a cross-entropy.

    Attributes:
        mask: What is added to the logits, of shape ``(classes,)`` or ``(K, 1, classes)``; None for nothing.
        smoothing: The share of a sample's label that is spread over all classes alike (Szegedy et al. 2016,
            arXiv 1512.00567, section 7).
    """

    mask: Array | None = None
    smoothing: float = 0.0


CROSS_ENTROPY = Loss()


class Batch(NamedTuple):
    """Samples of K clients.

    Attributes:
        samples: Float32 of shape ``(K, batch, *sample)``.
        labels: Classes, int64 of shape ``(K, batch)``.
        sizes: How many samples each one has; those beyond fill up a batch, and count for nothing.
        loss: How its outputs are judged.
    """

    samples: Array
    labels: Array
    sizes: Sequence[int]
    loss: Loss = CROSS_ENTROPY


# Mean losses and numbers of samples predicted right, of shape (K,), and the gradients of each parameter.
Worked = tuple[Array, Array, list[Array]]


class Form(Protocol):
    """How networks of one shape are computed together: see `fedhp.model.side_by_side`.

    Attributes:
        is_dense: Whether they are dense chains: one alone is a stack of one.
    """

    is_dense: bool

    def gradients(self, tensors: Sequence[Array], batch: Batch, /) -> Worked:
        """Computes the gradients of mean cross-entropies.

        Args:
            tensors: The networks' parameters in a module's order, an axis for the networks first.
            batch: What they are shown.

        Returns:
            With gradients that lie in memory as the parameters do.
        """
        ...


class Kernels(Protocol):
    """What differs between those who hold the arrays, by name or where speed and memory are."""

    def affine(self, inputs: Array, weights: Array, biases: Array, /) -> Array:
        """Returns what layers put out: ``inputs @ weights^T + biases``, network by network."""
        ...

    def product(self, left: Array, right: Array, /) -> Array:
        """Returns products of matrices, network by network."""
        ...

    def rectify(self, outputs: Array, /) -> Array:
        """Makes what is below zero zero, in place."""
        ...

    def rectify_back(self, flow: Array, outputs: Array, /) -> Array:
        """Returns what flows back through `rectify`, which put this out; ``flow`` is given away."""
        ...

    def log_softmax(self, logits: Array, /) -> Array:
        """Returns the logarithms of probabilities; ``logits`` are given away."""
        ...

    def log_softmax_back(self, flow: Array, logs: Array, /) -> Array:
        """Returns what flows back through `log_softmax`, which put this out; both are given away."""
        ...

    def zeros_like(self, array: Array, /) -> Array:
        """Returns as many zeros."""
        ...

    def hits(self, logits: Array, labels: Array, /) -> Array:
        """Says of each sample whether its largest logit is its class's."""
        ...

    def chosen(self, array: Array, labels: Array, /) -> Array:
        """Returns each sample's entry of its class, of shape ``(K, batch, 1)``."""
        ...

    def put(self, array: Array, labels: Array, value: float, /) -> None:
        """Sets each sample's entry of its class."""
        ...

    def total(self, array: Array, axes: int | tuple[int, ...], /) -> Array:
        """Returns sums along axes."""
        ...


def worked(kernels: Kernels, tensors: Sequence[Array], batch: Batch, take: Take | None = None) -> Worked:
    """Works out the gradients of each network's mean cross-entropy on its own batch, from the last layer on.

    The gradient of a layer's weights is ``flow^T @ inputs``, that of its biases the sum of ``flow`` over the
    batch.

    Args:
        kernels: What computes on these tensors.
        tensors: Of each layer of K dense networks of one shape, with ReLU between them: the weights, of shape
            ``(K, outputs, inputs)``, and the biases, of shape ``(K, outputs)``.
        batch: What they are shown.
        take: Is told of every layer, and may change it; then there are no gradients.

    Returns:
        What was worked out; without gradients where they were taken.
    """
    taken: list[Array] = []
    losses, right, flow = judged(kernels, logits(kernels, tensors, batch.samples, taken), batch)
    grads: list[Array] = []
    for place in range(len(taken) - 1, -1, -1):
        inputs = taken.pop()
        if take is None:
            grads += kernels.total(flow, 1), kernels.product(flow.swapaxes(1, 2), inputs)
        onwards = kernels.product(flow, tensors[2 * place]) if place else None
        if take is not None:
            take(place, flow, inputs)
        if onwards is not None:
            flow = onwards
            del onwards
            flow = kernels.rectify_back(flow, inputs)
    return losses, right, grads[::-1]


def logits(
    kernels: Kernels, tensors: Sequence[Array], samples: Array, taken: list[Array] | None = None
) -> Array:
    """Returns the logits, of shape ``(K, batch, classes)``.

    Args:
        kernels: What computes.
        tensors: The networks.
        samples: What they are shown, of shape ``(K, batch, *sample)``.
        taken: Is given what each layer takes in.
    """
    inputs = samples if samples.ndim == 3 else samples.reshape(*samples.shape[:2], -1)
    last = len(tensors) - 2
    for place in range(0, last + 1, 2):
        if taken is not None:
            taken.append(inputs)
        inputs = kernels.affine(inputs, *tensors[place : place + 2])
        if place < last:
            inputs = kernels.rectify(inputs)
    return inputs


def judged(kernels: Kernels, outputs: Array, batch: Batch) -> tuple[Array, Array, Array]:
    """Returns losses, right samples, and the gradient of the mean losses by the logits.

    Args:
        kernels: What computes.
        outputs: The logits, of shape ``(K, batch, classes)``, which are given away: who calls keeps none.
        batch: What was shown.
    """
    labels, most = batch.labels, batch.labels.shape[1]
    filled = [(row, size) for row, size in enumerate(batch.sizes) if size < most]
    mask, smoothing = batch.loss
    if mask is not None:
        outputs += mask
    right = kernels.total(_without(kernels.hits(outputs, labels), filled), 1)
    outputs = kernels.log_softmax(outputs)
    losses = _losses(kernels, outputs, labels, filled, smoothing)
    return losses, right, _flow(kernels, outputs, labels, filled, smoothing)


# Rows of batches that are filled up, and how many of their samples count.
_Filled = Sequence[tuple[int, int]]


def _losses(kernels: Kernels, logs: Array, labels: Array, filled: _Filled, smoothing: float) -> Array:
    said = kernels.chosen(logs, labels)
    if smoothing:
        spread = kernels.total(logs, 2)[..., None]
        spread *= smoothing / logs.shape[2]
        said *= 1 - smoothing
        said += spread
    said = _without(said, filled)
    losses = kernels.total(said, (1, 2))
    losses /= -labels.shape[1]
    for row, size in filled:
        losses[row] *= labels.shape[1] / size
    return losses


def _flow(kernels: Kernels, logs: Array, labels: Array, filled: _Filled, smoothing: float) -> Array:
    """Returns the gradient of the mean losses by the logits."""
    flow, spread = kernels.zeros_like(logs), smoothing / logs.shape[2]
    for part, own, size in [(flow, labels, labels.shape[1]), *((flow[r], labels[r], s) for r, s in filled)]:
        if spread:
            part[:] = -spread / size
        kernels.put(part, own, -(1 - smoothing + spread) / size)
    return kernels.log_softmax_back(_without(flow, filled), logs)


def _without(judged: Array, filled: _Filled) -> Array:
    """Lets what fills up batches count for nothing, in place."""
    for row, size in filled:
        judged[row, size:] = 0
    return judged
