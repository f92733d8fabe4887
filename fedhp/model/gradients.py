"""The forward and backward pass of a training step: what the trainer runs and the memory model rehearses.

The gradients of plain dense networks are worked out layer by layer instead of by autograd, of many networks
of one shape in one go. The operations are those that autograd would run, in its order, as batched products:
the results are its own but for rounding. Those of a network may depend on its place among others in the last
bit, as products round by where in memory they begin: seen where 4 does not divide the batch or layers are few
units wide, and otherwise never (torch 2.13 with MKL). What is saved is autograd's bookkeeping, and one call
for each network.
"""

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import nn

from fedhp.model import torch_kernels
from fedhp.model.dense import CROSS_ENTROPY, Batch, Loss, Take, Worked, worked


def gradients(
    module: nn.Module, images: torch.Tensor, labels: torch.Tensor, loss: Loss = CROSS_ENTROPY
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the gradients of a batch's mean cross-entropy, into the parameters' ``grad``, now empty.

    Args:
        module: The model.
        images: Samples, float32 of shape ``(batch, *sample)``.
        labels: Classes, int64 of shape ``(batch,)``.
        loss: How outputs are judged; its mask is minus infinity for classes that take no part.

    Returns:
        The mean loss, and the number of samples predicted right, as 0-d tensors.
    """
    layers = dense_chain(module)
    if layers is not None:
        return _of_one(layers, images, labels, loss)
    logits = module(images)
    if loss.mask is not None:
        logits = logits + loss.mask  # not in place: the last layer may keep its output for the backward pass
    mean = nn.functional.cross_entropy(logits, labels, label_smoothing=loss.smoothing)
    right = (logits.detach().argmax(1) == labels).sum()
    del logits  # the backward pass does not need them
    mean.backward()
    return mean.detach(), right


def _of_one(
    layers: Sequence[nn.Linear], images: torch.Tensor, labels: torch.Tensor, loss: Loss
) -> tuple[torch.Tensor, torch.Tensor]:
    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    batch = Batch(images[None], labels[None], [len(labels)], loss)
    losses, right, grads = chain_gradients([p.detach().unsqueeze(0) for p in parameters], batch)
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad[0]
    return losses[0], right[0]


def dense_chain(module: nn.Module) -> list[nn.Linear] | None:
    """Returns the layers of a network that `is_dense`, unless it has hooks, which would see nothing.

    Returns:
        The linear layers in order.
    """
    layers = _dense_layers(module)
    if layers is None or any(map(is_watched, (module, *module.children()))):
        return None
    return layers


def is_dense(module: nn.Module) -> bool:
    """Says whether a network is nothing but linear layers with ReLU between them."""
    return _dense_layers(module) is not None


def _dense_layers(module: nn.Module) -> list[nn.Linear] | None:
    if type(module) is not nn.Sequential:
        return None
    parts = list(module)
    if type(parts[0]) is nn.Flatten:
        parts = parts[1:]
    layers, between = parts[::2], parts[1::2]
    if len(layers) != len(between) + 1 or any(type(part) is not nn.ReLU for part in between):
        return None
    plain = [layer for layer in layers if _is_plain(layer)]
    own = {part for layer in plain for part in (layer.weight, layer.bias)}
    return plain if len(own) == 2 * len(layers) else None  # one that comes twice has two gradients


def is_watched(part: nn.Module) -> bool:
    """Says whether a part of a network has hooks, which see its calls."""
    forward = part._forward_hooks or part._forward_pre_hooks
    own = forward or part._backward_hooks or part._backward_pre_hooks
    return bool(own) or any(p is not None and p._backward_hooks for p in part._parameters.values())


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    linear = isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward
    return linear and layer.bias is not None


@torch.no_grad()
def chain_gradients(tensors: Sequence[torch.Tensor], batch: Batch, take: Take | None = None) -> Worked:
    """Works out the gradients of dense networks: see `fedhp.model.dense.worked`."""
    return worked(torch_kernels, tensors, batch, take)
