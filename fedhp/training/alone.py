"""A step of one network by itself."""

import math
from collections.abc import Callable
from typing import Any

from fedhp.model.dense import CROSS_ENTROPY, Loss
from fedhp.model.kernels import kernels_of
from fedhp.model.optimizer import Optimizer, drop_gradients, parameters_of

Gradients = Callable[[Any, Any, Any, Any], tuple[Any, Any]]


def gradient_norm(optimizer: Optimizer) -> float:
    """Returns the common L2 norm of all gradients.

    Taken in every step, it would cost a small network 4 % of its training. It looks at one gradient after the
    other, and so takes a number where the backward pass, just before, had one for each output of a layer.
    """
    grads = (parameter.grad for parameter in parameters_of(optimizer) if parameter.grad is not None)
    return math.hypot(*(kernels_of(grad).norm(grad) for grad in grads))


def training_step(
    gradients: Gradients,
    module: Any,
    optimizer: Optimizer,
    images: Any,
    labels: Any,
    observe: Callable[[], None] | None = None,
    loss: Loss = CROSS_ENTROPY,
) -> tuple[Any, Any]:
    """Takes one step on a batch.

    Args:
        gradients: Computes the gradients: `fedhp.training.runtime.Runtime.gradients`.
        module: The model.
        optimizer: Its optimiser.
        images: Samples, float32 of shape ``(batch, channels, height, width)``, or ``(batch, inputs)`` where
            the model takes some of their entries.
        labels: Classes, int64 of shape ``(batch,)``.
        observe: Called between the backward pass and the update, while there are gradients.
        loss: How outputs are judged.

    Returns:
        The mean loss, and the number of samples predicted right, as 0-d tensors.
    """
    mean, right = gradients(module, images, labels, loss)
    if observe is not None:
        observe()
    optimizer.step()
    drop_gradients(optimizer)
    return mean, right
