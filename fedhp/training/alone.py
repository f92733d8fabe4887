"""A step of one network by itself."""

import math
from collections.abc import Callable

import torch
from torch import nn

from fedhp.model.gradients import gradients
from fedhp.model.optimizer import Optimizer
from fedhp.training.optimizers import drop_gradients


def gradient_norm(optimizer: Optimizer) -> float:
    """Returns the common L2 norm of all gradients.

    Taken in every step, it would cost a small network 4 % of its training. It looks at one gradient after the
    other, and so takes a number where the backward pass, just before, had one for each output of a layer.
    """
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    grads = (parameter.grad for parameter in parameters if parameter.grad is not None)
    return math.hypot(*(torch.linalg.vector_norm(grad).item() for grad in grads))


def training_step(
    module: nn.Module,
    optimizer: Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    observe: Callable[[], None] | None = None,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Takes one step on a batch.

    Args:
        module: The model.
        optimizer: Its optimiser.
        images: Samples, float32 of shape ``(batch, channels, height, width)``, or ``(batch, inputs)`` where
            the model takes some of their entries.
        labels: Classes, int64 of shape ``(batch,)``.
        observe: Called between the backward pass and the update, while there are gradients.
        mask: What is added to the logits, of shape ``(num_classes,)``.

    Returns:
        The mean loss, and the number of samples predicted right, as 0-d tensors.
    """
    loss, right = gradients(module, images, labels, mask)
    if observe is not None:
        observe()
    optimizer.step()
    drop_gradients(optimizer)
    return loss, right
