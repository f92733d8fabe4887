"""Goes through a network layer by layer, and says of each what it must do on calibration samples."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedhp.compression.layers import (
    BATCH,
    Layer,
    Matrix,
    called_layers,
    groups_of,
    matrix,
    patches,
    seeing,
    set_matrix,
)
from fedhp.compression.obs import dampened, restricted
from fedhp.errors import ExportError

# Products of a row: a convolution, which has one at each place of a sample, does with every so many samples.
_ENOUGH = 2**19


@dataclass(frozen=True, eq=False)
class Rows:
    """The outputs of a layer that share their inputs: all of them, or those of one of its groups.

    Attributes:
        name: Of the layer.
        layer: The layer.
        weights: What comes closest to the outputs wanted, (outputs, inputs); its zeros are to stay.
        hessian: ``2 X X^T`` of the inputs, (inputs, inputs), dampened; of inputs less their mean where the
            layer has a bias, which makes up for means.
    """

    name: str
    layer: Layer
    weights: Matrix
    hessian: Matrix


def solved_layers(network: nn.Module, inputs: torch.Tensor, solve: Callable[[Rows], Matrix]) -> nn.Module:
    """Returns a network whose layers were solved in turn, each on what the layers before it now put out.

    A layer is to come as close as it can to the outputs that it had in the network given, on inputs that it
    has in the new one. As that is a quadratic whose least point is not the old weights, these are brought
    there first, by least squares. A bias is where the outputs' means are kept.

    Args:
        network: Torch's own layers; it is left as it is.
        inputs: Calibration samples as it takes them.
        solve: Returns the new weights of outputs, of the same shape.

    Raises:
        ExportError: If there are no samples, or the network's scores of them are not finite.
    """
    before, after = copy.deepcopy(network).eval(), copy.deepcopy(network).eval()
    check_calibration(before, inputs)
    olds = called_layers(before, inputs)
    for name, layer in called_layers(after, inputs).items():
        moments = _moments(before, after, olds[name], layer, inputs)
        weights = matrix(layer)
        parts = np.split(weights, groups_of(layer))
        solved = [solve(_wanted(name, layer, part, one)) for part, one in zip(parts, moments, strict=True)]
        set_matrix(layer, np.concatenate(solved))
        if layer.bias is not None:
            written = np.split(matrix(layer), groups_of(layer))
            shifts = [
                part @ one.old_mean - new @ one.mean
                for part, new, one in zip(parts, written, moments, strict=True)
            ]
            layer.bias.data += torch.from_numpy(np.concatenate(shifts))
    return after


def check_calibration(network: nn.Module, inputs: torch.Tensor) -> None:
    """Refuses samples that say nothing.

    Raises:
        ExportError: If there are none, or scores are not finite.
    """
    if not len(inputs):
        raise ExportError("a network is compressed by its answers to training samples, and there are none")
    with torch.no_grad():
        if not all(bool(network(part).isfinite().all()) for part in inputs.split(BATCH)):
            raise ExportError(
                "the network's scores of training samples are not finite: it cannot be compressed"
            )


@dataclass(frozen=True, eq=False)
class _Moments:
    """Of the inputs of a group: means (inputs,) before and after, and of products ``2 X X^T``.

    Attributes:
        old_mean: In the network given.
        mean: In the new one.
        cross: Of the old with the new.
        hessian: Of the new with itself.
    """

    old_mean: Matrix
    mean: Matrix
    cross: Matrix
    hessian: Matrix


def _moments(
    before: nn.Module, after: nn.Module, old: Layer, new: Layer, inputs: torch.Tensor
) -> list[_Moments]:
    seen: dict[Layer, torch.Tensor] = {}

    def see(layer: Layer, taken: torch.Tensor) -> None:
        found = patches(layer, taken).double()
        seen[layer] = torch.cat([seen[layer], found], 2) if layer in seen else found

    def look(part: torch.Tensor) -> None:
        seen.clear()
        with torch.no_grad(), seeing([old, new], see):
            before(part)
            after(part)

    look(inputs[:1])
    few = max(1, len(inputs) * seen[new].shape[2] // _ENOUGH)
    sums: list[torch.Tensor] = []
    number = 0
    for part in inputs[::few].split(BATCH):
        look(part)
        x, y = seen[old], seen[new]
        number += x.shape[2]
        found = [x.sum(2), y.sum(2), 2 * (x @ y.mT), 2 * (y @ y.mT)]
        sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
    old_mean, mean = (one.numpy() / number for one in sums[:2])
    cross, hessian = (one.numpy() for one in sums[2:])
    if new.bias is not None:
        cross = cross - 2 * number * old_mean[:, :, None] * mean[:, None]
        hessian = hessian - 2 * number * mean[:, :, None] * mean[:, None]
    return [_Moments(*group) for group in zip(old_mean, mean, cross, hessian, strict=True)]


def _wanted(name: str, layer: Layer, weights: Matrix, moments: _Moments) -> Rows:
    """Returns the rows where ``|old X_old - w X|^2`` is least, dampened towards the old weights."""
    hessian = dampened(moments.hessian)
    more = hessian - moments.hessian
    best: Matrix = np.linalg.solve(hessian, (weights @ (moments.cross + more)).T).T.astype(np.float64)
    return Rows(name, layer, restricted(best, hessian, weights != 0), hessian)
