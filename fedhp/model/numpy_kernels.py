"""`fedhp.model.dense.Kernels` on NumPy's arrays: in place where it can be, without a copy that goes unseen.

Arrays are in C order. No intermediate result is left to an expression: each is made, told and freed.
"""

import math
import string
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.data.arrays import made
from fedhp.model.layout import Layout, Place

# Entries that what takes a temporary goes through at a time: 16 KiB, which no budget shows.
_AT_ONCE = 4096

Floats = NDArray[np.float32]


def affine(inputs: Floats, weights: Floats, biases: Floats) -> Floats:
    """Returns what layers put out."""
    outputs = product(inputs, weights.mT)
    outputs += biases[:, None]
    return outputs


def product(left: Floats, right: Floats) -> Floats:
    """Returns products of matrices."""
    return made(np.matmul(left, right))


def rectify(outputs: Floats) -> Floats:
    """Makes what is below zero zero."""
    return np.maximum(outputs, 0, out=outputs)


def rectify_back(flow: Floats, outputs: Floats) -> Floats:
    """Returns what flows back."""
    np.copyto(flow, 0, where=made(outputs <= 0))
    return flow


def log_softmax(logits: Floats) -> Floats:
    """Returns the logarithms of probabilities, in the logits' place."""
    logits -= made(logits.max(2, keepdims=True))
    sums = made(made(np.exp(logits)).sum(2, keepdims=True))
    logits -= np.log(sums, out=sums)
    return logits


def log_softmax_back(flow: Floats, logs: Floats) -> Floats:
    """Returns what flows back, in the flow's place."""
    np.exp(logs, out=logs)
    logs *= made(flow.sum(2, keepdims=True))
    flow -= logs
    return flow


def zeros_like(array: Floats) -> Floats:
    """Returns as many zeros."""
    return made(np.zeros_like(array))


def hits(logits: Floats, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Says which samples are predicted right."""
    return made(made(logits.argmax(2)) == labels)


def chosen(array: Floats, labels: NDArray[np.int64]) -> Floats:
    """Returns each sample's entry of its class."""
    return made(array.reshape(-1)[_places(array, labels)]).reshape(*labels.shape, 1)


def put(array: Floats, labels: NDArray[np.int64], value: float) -> None:
    """Sets each sample's entry of its class."""
    array.reshape(-1)[_places(array, labels)] = value


def total(array: NDArray[Any], axes: int | tuple[int, ...]) -> NDArray[Any]:
    """Returns sums along axes."""
    return made(array.sum(axes))


def _places(array: Floats, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    places = made(np.arange(0, array.size, array.shape[-1]))
    places += labels.reshape(-1)
    return places


def given(array: NDArray[Any], like: NDArray[Any]) -> NDArray[Any]:
    """Returns an array of NumPy's."""
    return made(array)


def said(array: NDArray[Any]) -> NDArray[Any]:
    """Returns an array of NumPy's."""
    return array


def drawn_to(average: Floats, newest: Floats, weight: float) -> Floats:
    """Moves an average towards the newest value, in place; that value is given away."""
    newest -= average
    newest *= weight
    average += newest
    return average


def norm(array: Floats) -> float:
    """Returns the Euclidean norm of all that there is."""
    flat = array.reshape(-1)
    return math.sqrt(np.dot(flat, flat))


def clip(parameters: Sequence[Any], largest_norm: float) -> None:
    """Scales gradients down by one factor where their common norm is above the largest one."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    factor = largest_norm / (math.hypot(*map(norm, grads)) + 1e-6)  # as PyTorch has it
    if factor < 1:
        for grad in grads:
            grad *= factor


def copied(array: Floats) -> Floats:
    """Returns a copy."""
    return made(array.copy())


def lessen(array: Floats, other: Floats, factor: float) -> None:
    """Takes another, times a factor, from an array."""
    flat, taken = array.reshape(-1), other.reshape(-1)
    for some in _some(len(flat), 1):
        flat[some] -= factor * taken[some]


def row_norms(weights: Floats, place: Place, order: float) -> Floats:
    """Returns the norm of each unit's weights."""
    rows = place.unfold(weights)
    if order == 2:
        squares = _row_dots(rows, rows, place.axis)
        return np.sqrt(squares, out=squares)
    norms = made(np.empty(place.num_units, np.float32))
    others = tuple(axis for axis in range(rows.ndim) if axis != place.axis)
    for units in _some(place.num_units, rows.size // place.num_units):
        np.abs(rows[(slice(None),) * place.axis + (units,)]).sum(others, out=norms[units])
    return norms


def row_dots(weights: Floats, gradients: Floats, place: Place) -> Floats:
    """Returns the dot product of each unit's weights with its gradients."""
    return _row_dots(place.unfold(weights), place.unfold(gradients), place.axis)


def entries(array: Floats, takes: Sequence[tuple[int, NDArray[np.intp]]], layout: Layout) -> Floats:
    """Returns the entries to keep, in C order; row by row where two axes are cut, without a second copy."""
    (axis, positions), *others = takes
    shape = list(array.shape)
    for cut, left in takes:
        shape[cut] = len(left)
    kept = made(np.empty(shape, array.dtype))
    if not others:
        return np.take(array, positions, axis, out=kept, mode="clip")  # else into a copy first
    ((other, columns),) = others
    assert axis == 0
    for row, own in zip(positions, kept, strict=True):
        np.take(array[row], columns, other - 1, out=own, mode="clip")
    return kept


def _row_dots(one: Floats, other: Floats, axis: int) -> Floats:
    axes = string.ascii_lowercase[: one.ndim]
    return made(np.einsum(f"{axes},{axes}->{axes[axis]}", one, other))


def _some(number: int, size: int) -> Iterator[slice]:
    """Yields stretches of so many units that few entries are gone through at a time."""
    step = max(1, _AT_ONCE // size)
    for start in range(0, number, step):
        yield slice(start, start + step)
