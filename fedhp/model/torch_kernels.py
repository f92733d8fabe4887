"""`fedhp.model.dense.Kernels` on PyTorch's tensors: the operations that autograd would run.

Beside them, what units are judged and cut by.
"""

import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.model.layout import Layout, Place

# The axes of a convolution's weights from the outermost to the innermost, where channels lie innermost.
_AS_THEY_LIE = (0, 2, 3, 1)

_rectify_back = torch.ops.aten.threshold_backward.default
_log_softmax_back = torch.ops.aten._log_softmax_backward_data.default

product = torch.bmm
rectify = torch.relu_
zeros_like = torch.zeros_like
total = torch.sum


def affine(inputs: torch.Tensor, weights: torch.Tensor, biases: torch.Tensor) -> torch.Tensor:
    """Returns what layers put out."""
    return torch.baddbmm(biases.unsqueeze(1), inputs, weights.transpose(1, 2))


def rectify_back(flow: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """Returns what flows back."""
    return _rectify_back(flow, outputs, 0)


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Returns the logarithms of probabilities."""
    return logits.log_softmax(2)


def log_softmax_back(flow: torch.Tensor, logs: torch.Tensor) -> torch.Tensor:
    """Returns what flows back."""
    return _log_softmax_back(flow, logs, 2, logs.dtype)


def hits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Says which samples are predicted right."""
    return logits.argmax(2) == labels


def chosen(array: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns each sample's entry of its class."""
    return array.gather(2, labels.unsqueeze(2))


def put(array: torch.Tensor, labels: torch.Tensor, value: float) -> None:
    """Sets each sample's entry of its class."""
    array.scatter_(-1, labels.unsqueeze(-1), value)


def given(array: NDArray[Any], like: torch.Tensor) -> torch.Tensor:
    """Returns an array of NumPy's as one of another's kind, where that is."""
    return torch.from_numpy(array).to(like.device)


def said(array: torch.Tensor) -> NDArray[Any]:
    """Returns an array as NumPy's."""
    return array.cpu().numpy()


def drawn_to(average: torch.Tensor, newest: torch.Tensor, weight: float) -> torch.Tensor:
    """Moves an average towards the newest value, in place."""
    return average.lerp_(newest, weight)


def norm(array: torch.Tensor) -> float:
    """Returns the Euclidean norm of all that there is."""
    return torch.linalg.vector_norm(array).item()


def clip(parameters: Sequence[nn.Parameter], largest_norm: float) -> None:
    """Scales gradients down by one factor where their common norm is above the largest one."""
    nn.utils.clip_grad_norm_(parameters, largest_norm)


def copied(array: torch.Tensor) -> torch.Tensor:
    """Returns a copy."""
    return array.clone()


def lessen(array: torch.Tensor, other: torch.Tensor, factor: float) -> None:
    """Takes another, times a factor, from an array, in place and without a temporary."""
    array.sub_(other, alpha=factor)


def row_norms(weights: torch.Tensor, place: Place, order: float) -> torch.Tensor:
    """Returns the norm of each unit's weights, of shape ``(units,)``; without a copy of them."""
    rows = place.unfold(weights)
    others = [axis for axis in range(rows.dim()) if axis != place.axis]
    return torch.linalg.vector_norm(rows, ord=order, dim=others)


def row_dots(weights: torch.Tensor, gradients: torch.Tensor, place: Place) -> torch.Tensor:
    """Returns the dot product of each unit's weights with its gradients, without a temporary of their size.

    Torch's own ways allocate one on the CPU, which would be the step's peak: the largest weight again, on
    top of all gradients. NumPy's ``einsum`` reads the same memory in the order in which it lies, whichever
    axis the units are on, and allocates nothing. Its views are cheaper too.
    """
    if weights.device.type == "cpu":
        own, grads = (place.unfold(tensor.numpy()) for tensor in (weights, gradients))
        axes = string.ascii_lowercase[: own.ndim]
        return torch.from_numpy(np.einsum(f"{axes},{axes}->{axes[place.axis]}", own, grads))
    return torch.bmm(place.rows(weights).unsqueeze(1), place.rows(gradients).unsqueeze(2)).flatten()


def entries(
    tensor: torch.Tensor, takes: Sequence[tuple[int, NDArray[np.intp]]], layout: Layout
) -> torch.Tensor:
    """Returns the entries to keep, in one step: cutting axis by axis would hold two copies for a moment."""
    positions = {axis: torch.from_numpy(p).to(tensor.device) for axis, p in takes}
    if lie_innermost(tensor, layout):
        as_they_lie = {_AS_THEY_LIE.index(axis): chosen for axis, chosen in positions.items()}
        return _pick(tensor.permute(_AS_THEY_LIE), as_they_lie).permute(0, 3, 1, 2)
    return _pick(tensor, positions)


def lie_innermost(weights: torch.Tensor, layout: Layout) -> bool:
    """Says whether the channels of weights lie innermost in memory (``channels_last``), cut or not.

    Those of convolutions over images do, on a CPU: their steps take 0.57 to 0.81 of the time then
    (docs/benchmarks.md). Flattening such maps takes a copy, which the rehearsal of a step sees. On other
    devices weights lie as they come, for want of a measurement.
    """
    return weights.dim() == 4 and weights.device.type == "cpu" and not layout.views_maps


def _pick(tensor: torch.Tensor, positions: Mapping[int, torch.Tensor]) -> torch.Tensor:
    if len(positions) == 1:
        ((axis, chosen),) = positions.items()
        return tensor.index_select(axis, chosen)
    every = (torch.arange(size, device=tensor.device) for size in tensor.shape)
    grid = [positions.get(axis, whole) for axis, whole in enumerate(every)]
    return tensor[tuple(p.view(-1, *[1] * (tensor.dim() - axis - 1)) for axis, p in enumerate(grid))]
