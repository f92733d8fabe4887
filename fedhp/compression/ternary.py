"""Weights of three values: less, nothing or more."""

import numpy as np
import torch
from torch import nn

from fedhp.compression.calibration import Rows, solved_layers
from fedhp.compression.figures import FLOAT_BITS, Compressed, LayerFigures
from fedhp.compression.layers import Matrix, called_layers, groups_of

TERNARY_BITS = 2

_THRESHOLDS = (0.3, 0.5, 0.7, 0.9, 1.1)  # of the mean magnitude, below which a weight starts as 0
_MOST_SWEEPS = 100
_GAIN = 1e-6  # of the error, less than which a sweep is the last


def ternary(network: nn.Module, inputs: torch.Tensor) -> Compressed:
    """Brings each weight of a layer to -a, 0 or a, by coordinate descent from the trained ones.

    After CoNNTrA (Date et al., "Training Deep Neural Networks with Constrained Learning Parameters", 2020,
    arXiv 2009.00540): from trained weights that are rounded, each weight in turn takes the value of the
    three that lowers the loss most, until none does. Different here: the loss is the error of the layer's own
    outputs on calibration samples, a quadratic of which the best value has a closed form, where the paper
    takes the network's loss of training samples; a scale a for each layer, and each group of one, is fitted
    in closed form between sweeps, where the paper has -1, 0 and 1; of five starts the best counts. A bias is
    refitted and stays in float32. Weights that are 0 stay so.

    Two bits are counted for a weight, and 32 for a scale.

    Args:
        network: Torch's own layers.
        inputs: Calibration samples as it takes them.

    Raises:
        ExportError: See `solved_layers`.
    """
    network = solved_layers(network, inputs, _solved)
    layers = []
    for name, layer in called_layers(network, inputs).items():
        size, zeros = layer.weight.numel(), int((layer.weight == 0).sum())
        layers.append(LayerFigures(name, size, zeros, TERNARY_BITS * size + FLOAT_BITS * groups_of(layer)))
    return Compressed(network, layers)


def _solved(rows: Rows) -> Matrix:
    if not rows.weights.any():
        return rows.weights
    fits = [descended(rows.weights, rows.hessian, threshold) for threshold in _THRESHOLDS]
    scale, signs, _ = min(fits, key=lambda fit: fit[2][-1])
    return scale * signs


def descended(weights: Matrix, hessian: Matrix, threshold: float) -> tuple[float, Matrix, list[float]]:
    """Finds signs and a scale whose product comes close to weights, by the error ``tr(D H D^T) / 2``.

    All rows take their step on a column together: the error is a sum over rows.

    Args:
        weights: (rows, n), not all of them 0; those that are stay so.
        hessian: H (n, n).
        threshold: Weights below it, in mean magnitudes, start as 0.

    Returns:
        The scale, the signs (-1, 0 and 1), and the error at the start and after each sweep.
    """
    free = weights != 0
    signs = np.sign(weights) * (np.abs(weights) > threshold * np.abs(weights[free]).mean())
    aims, losses = weights @ hessian, list[float]()
    scale = _scale(aims, signs, hessian, float(np.abs(weights).max()))
    for _ in range(_MOST_SWEEPS):
        gradient = aims - scale * signs @ hessian
        losses.append(float(((weights - scale * signs) * gradient).sum()) / 2)
        if len(losses) > 1 and losses[-1] >= losses[-2] * (1 - _GAIN):
            break
        for place in range(weights.shape[1]):
            best = signs[:, place] + gradient[:, place] / (scale * hessian[place, place])
            new = np.clip(np.rint(best), -1, 1) * free[:, place]
            gradient -= scale * (new - signs[:, place])[:, None] * hessian[place]
            signs[:, place] = new
        scale = _scale(aims, signs, hessian, scale)
    return scale, signs, losses


def _scale(aims: Matrix, signs: Matrix, hessian: Matrix, before: float) -> float:
    """Returns the scale with which signs come closest; the one before where all are 0."""
    return float((aims * signs).sum()) / float((signs @ hessian * signs).sum()) if signs.any() else before
