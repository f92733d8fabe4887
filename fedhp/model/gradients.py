"""The forward and backward pass of a training step: what the trainer runs and the memory model rehearses.

The gradients of a plain dense network are worked out layer by layer instead of by autograd. The operations
are those that autograd would run, in its order, so that the results are its own to the last bit. What is
saved is its bookkeeping, which is a third of a small network's forward and backward pass.
"""

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import nn

_aten = torch.ops.aten
_MEAN, _NOTHING_IGNORED = 1, -100


def gradients(
    module: nn.Module, images: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the gradients of a batch's mean cross-entropy, into the parameters' ``grad``, now empty.

    Args:
        module: The model.
        images: Samples, float32 of shape ``(batch, *sample)``.
        labels: Classes, int64 of shape ``(batch,)``.
        mask: What is added to each sample's logits first, minus infinity for classes that take no part.

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


def dense_chain(module: nn.Module) -> list[nn.Linear] | None:
    """Returns the layers of a network that is nothing but linear layers with ReLU between them.

    Returns:
        The linear layers in order; None for any other network, and for one with hooks, which would see
        nothing.
    """
    if type(module) is not nn.Sequential:
        return None
    parts = list(module)
    if type(parts[0]) is nn.Flatten:
        parts = parts[1:]
    layers, between = parts[::2], parts[1::2]
    if len(layers) != len(between) + 1 or any(type(part) is not nn.ReLU for part in between):
        return None
    if any(_is_watched(part) for part in module.modules()):
        return None
    plain = [layer for layer in layers if _is_plain(layer)]
    return plain if len({*plain}) == len(layers) else None  # a layer that comes twice has two gradients


def _is_watched(part: nn.Module) -> bool:
    forward = part._forward_hooks or part._forward_pre_hooks
    own = forward or part._backward_hooks or part._backward_pre_hooks
    return bool(own) or any(parameter._backward_hooks for parameter in part.parameters(recurse=False))


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    linear = isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward
    return linear and layer.bias is not None


@torch.no_grad()
def chain_gradients(
    layers: Sequence[nn.Linear], samples: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Does what `gradients` does, for the layers of a `dense_chain`."""
    taken = [samples.flatten(1)]  # what each layer takes in
    for layer in layers[:-1]:
        taken.append(torch.addmm(layer.bias, taken[-1], layer.weight.t()).relu_())
    outputs = torch.addmm(layers[-1].bias, taken[-1], layers[-1].weight.t())
    if mask is not None:
        outputs.add_(mask)
    right = (outputs.argmax(1) == labels).sum()
    outputs = outputs.log_softmax(1)
    loss, flow = _loss(outputs, labels)
    del outputs
    for index in range(len(layers) - 1, -1, -1):
        layer, inputs = layers[index], taken.pop()
        layer.weight.grad = flow.t() @ inputs
        layer.bias.grad = flow.sum(0)
        if index:
            flow = flow @ layer.weight
            flow = _aten.threshold_backward.default(flow, inputs, 0)
    return loss, right


def _loss(logs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the mean cross-entropy of log-probabilities, and its gradient by the logits."""
    how = (None, _MEAN, _NOTHING_IGNORED)
    loss, weight = _aten.nll_loss_forward.default(logs, labels, *how)
    flow = _aten.nll_loss_backward.default(torch.ones_like(loss), logs, labels, *how, weight)
    return loss, _aten._log_softmax_backward_data.default(flow, logs, 1, logs.dtype)
