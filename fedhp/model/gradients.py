"""The forward and backward pass of a training step: what the trainer runs and the memory model rehearses.

The gradients of plain dense networks are worked out layer by layer instead of by autograd, of many networks
of one shape in one go. The operations are those that autograd would run, in its order, as batched products:
the results are its own but for rounding. Those of a network may depend on its place among others in the last
bit, as products round by where in memory they begin: seen where 4 does not divide the batch or layers are few
units wide, and otherwise never (torch 2.13 with MKL). What is saved is autograd's bookkeeping, and one call
for each network.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeGuard

import torch
from torch import nn

_aten = torch.ops.aten

# Is told of a layer, by its place, what flows back into its outputs, of shape (K, batch, outputs), and what
# it took in, of shape (K, batch, inputs).
Take = Callable[[int, torch.Tensor, torch.Tensor], None]


class Batch(NamedTuple):
    """Samples of K clients.

    Attributes:
        samples: Float32 of shape ``(K, batch, *sample)``.
        labels: Classes, int64 of shape ``(K, batch)``.
        sizes: How many samples each one has; those beyond fill up a batch, and count for nothing.
        mask: What is added to the logits, of shape ``(classes,)`` or ``(K, 1, classes)``; None for nothing.
    """

    samples: torch.Tensor
    labels: torch.Tensor
    sizes: Sequence[int]
    mask: torch.Tensor | None = None


# Mean losses and numbers of samples predicted right, of shape (K,), and the gradients of each parameter.
Worked = tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]


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
        return _of_one(layers, images, labels, mask)
    logits = module(images)
    if mask is not None:
        logits = logits + mask  # not in place: the last layer may keep its output for the backward pass
    loss = nn.functional.cross_entropy(logits, labels)
    right = (logits.detach().argmax(1) == labels).sum()
    del logits  # the backward pass does not need them
    loss.backward()
    return loss.detach(), right


def _of_one(
    layers: Sequence[nn.Linear], images: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    batch = Batch(images[None], labels[None], [len(labels)], mask)
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
    """Works out the gradients of each network's mean cross-entropy on its own batch, from the last layer on.

    The gradient of a layer's weights is ``flow^T @ inputs``, that of its biases the sum of ``flow`` over the
    batch.

    Args:
        tensors: Of each layer of K dense networks of one shape, with ReLU between them: the weights, of shape
            ``(K, outputs, inputs)``, and the biases, of shape ``(K, outputs)``.
        batch: What they are shown.
        take: Is told of every layer, and may change it; then there are no gradients.

    Returns:
        What was worked out; without gradients where they were taken.
    """
    samples, labels, sizes, mask = batch
    taken = [samples.flatten(2)]  # what each layer takes in
    last = len(tensors) // 2 - 1
    for place in range(last):
        taken.append(_forward(tensors, place, taken[-1]).relu_())
    outputs = _forward(tensors, last, taken[-1])
    if mask is not None:
        outputs.add_(mask)
    filled = [(row, size) for row, size in enumerate(sizes) if size < labels.shape[1]]
    right = _right(outputs, labels, filled)
    outputs = outputs.log_softmax(2)
    losses = _losses(outputs, labels, filled)
    flow = _flow(outputs, labels, filled)
    del outputs
    grads: list[torch.Tensor] = []
    for place in range(last, -1, -1):
        inputs = taken.pop()
        if take is None:
            grads += flow.sum(1), torch.bmm(flow.transpose(1, 2), inputs)
        onwards = torch.bmm(flow, tensors[2 * place]) if place else None
        if take is not None:
            take(place, flow, inputs)
        if onwards is not None:
            flow = onwards
            del onwards
            flow = _aten.threshold_backward.default(flow, inputs, 0)
    return losses, right, grads[::-1]


def _forward(tensors: Sequence[torch.Tensor], place: int, inputs: torch.Tensor) -> torch.Tensor:
    weights, biases = tensors[2 * place : 2 * place + 2]
    return torch.baddbmm(biases.unsqueeze(1), inputs, weights.transpose(1, 2))


# Rows of batches that are filled up, and how many of their samples count.
_Filled = Sequence[tuple[int, int]]


def _right(outputs: torch.Tensor, labels: torch.Tensor, filled: _Filled) -> torch.Tensor:
    return _without(outputs.argmax(2) == labels, filled).sum(1)


def _losses(logs: torch.Tensor, labels: torch.Tensor, filled: _Filled) -> torch.Tensor:
    said = _without(logs.gather(2, labels.unsqueeze(2)), filled)
    losses = said.sum((1, 2)).div_(-labels.shape[1])
    for row, size in filled:
        losses[row] *= labels.shape[1] / size
    return losses


def _flow(logs: torch.Tensor, labels: torch.Tensor, filled: _Filled) -> torch.Tensor:
    """Returns the gradient of the mean losses by the logits."""
    flow = torch.zeros_like(logs).scatter_(2, labels.unsqueeze(2), -1 / labels.shape[1])
    for row, size in filled:
        flow[row].scatter_(1, labels[row].unsqueeze(1), -1 / size)
    return _aten._log_softmax_backward_data.default(_without(flow, filled), logs, 2, logs.dtype)


def _without(judged: torch.Tensor, filled: _Filled) -> torch.Tensor:
    """Lets what fills up batches count for nothing, in place."""
    for row, size in filled:
        judged[row, size:] = 0
    return judged
