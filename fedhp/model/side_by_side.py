"""How several networks of one shape are computed together, by what kind of network they are.

Dense chains are worked out layer by layer, each as it would be alone. Others come within 1e-5: a grouped
convolution is other code than a single one, and rounds otherwise. So what is computed together is chosen by
shapes, and never by a clock: a measurement at the start of a run would choose results there, and last bits
would differ from run to run.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from fedhp.model.dense import Batch, Form, Worked
from fedhp.model.gradients import chain_gradients, dense_chain, is_watched
from fedhp.model.grouped import Logits, grouped
from fedhp.model.mapped import mapped


class Dense:
    """Dense chains: a network alone is a stack of one."""

    is_dense = True
    gradients = staticmethod(chain_gradients)


class ByAutograd:
    """Networks whose logits are computed together, and whose gradients are autograd's."""

    is_dense = False

    def __init__(self, logits: Logits) -> None:
        self._logits = logits

    def gradients(self, tensors: Sequence[torch.Tensor], batch: Batch) -> Worked:
        """Computes gradients in one pass."""
        rows = [tensor.detach().requires_grad_() for tensor in tensors]
        losses, right = _judged(self._logits(rows, batch.samples), batch)
        grads = torch.autograd.grad(losses.sum(), rows)
        return losses.detach(), right, [_as_it_lies(*pair) for pair in zip(grads, tensors, strict=True)]


def form_of(module: nn.Module, is_alone: bool = False) -> Form | None:
    """Returns how networks like this one are computed together; None where each is by itself.

    Those with hooks are, which would see nothing, or what is several networks'.

    Args:
        module: The network; beside others it must be known to be fit for it.
        is_alone: Whether no other will ever lie beside it.
    """
    if dense_chain(module) is not None:
        return Dense()
    if is_alone or any(map(is_watched, module.modules())):
        return None
    return ByAutograd(grouped(module) or mapped(module))


def _judged(logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    mask, smoothing = batch.loss
    if mask is not None:
        logits = logits + mask
    labels = batch.labels
    shares = torch.zeros(labels.shape, device=logits.device)
    for row, size in zip(shares, batch.sizes, strict=True):
        row[:size] = 1 / size
    each = functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=smoothing
    )
    right = (logits.detach().argmax(2) == labels) & (shares > 0)
    return (each.view_as(labels) * shares).sum(1), right.sum(1)


def _as_it_lies(grad: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    return grad if grad.stride() == tensor.stride() else torch.empty_like(tensor).copy_(grad)
