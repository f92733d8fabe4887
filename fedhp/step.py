"""The forward and backward pass of a training step: what the trainer runs and the memory model rehearses."""

import torch
from torch import nn


def gradients(
    module: nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the gradients of a batch's mean cross-entropy, into the parameters' ``grad``.

    Args:
        module: The model.
        images: Samples, float32 of shape ``(batch, *sample)``.
        labels: Classes, int64 of shape ``(batch,)``.

    Returns:
        The mean loss, and the number of samples predicted right, as 0-d tensors.
    """
    logits = module(images)
    loss = nn.functional.cross_entropy(logits, labels)
    right = (logits.detach().argmax(1) == labels).sum()
    del logits  # the backward pass does not need them
    loss.backward()
    return loss.detach(), right
