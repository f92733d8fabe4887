"""The forward and backward pass of a training step: what the trainer runs and the memory model rehearses."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.model.chains import chain_gradients, dense_chain


def class_mask(
    present: NDArray[np.int64], num_classes: int, device: torch.device | str = "cpu"
) -> torch.Tensor | None:
    """Returns what is added to logits so that absent classes take no part in the softmax.

    Minus infinity: an absent class has the probability 0 and its logit a gradient of exactly 0. HeteroFL
    (Diao et al. 2021, arXiv 2010.01264) replaces the logits of absent classes by 0 in its code.
    Their gradients are 0 there too; but each still takes the weight ``exp(0)`` in the softmax, so that the
    other logits are pushed above 0, even by a client of a single class, which here learns nothing.

    Args:
        present: The classes that the client has.
        num_classes: The number of all classes.
        device: Where the logits are.

    Returns:
        A tensor of shape ``(num_classes,)``; None where no class is absent.
    """
    absent = np.setdiff1d(np.arange(num_classes), present)
    if not absent.size:
        return None
    mask = torch.zeros(num_classes)
    mask[torch.from_numpy(absent)] = -torch.inf
    return mask.to(device)


def gradients(
    module: nn.Module, images: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the gradients of a batch's mean cross-entropy, into the parameters' ``grad``, now empty.

    Args:
        module: The model.
        images: Samples, float32 of shape ``(batch, *sample)``.
        labels: Classes, int64 of shape ``(batch,)``.
        mask: What is added to each sample's logits first, a `class_mask`.

    Returns:
        The mean loss, and the number of samples predicted right, as 0-d tensors.
    """
    layers = dense_chain(module)
    if layers is not None:
        return chain_gradients(layers, images, labels, mask)
    logits = module(images)
    if mask is not None:
        logits = logits + mask  # not in place: the last layer may keep its output for the backward pass
    loss = nn.functional.cross_entropy(logits, labels)
    right = (logits.detach().argmax(1) == labels).sum()
    del logits  # the backward pass does not need them
    loss.backward()
    return loss.detach(), right
