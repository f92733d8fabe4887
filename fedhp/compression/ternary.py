"""Weights of three values: less, nothing or more."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from fedhp.compression.calibration import Rows, solved_layers
from fedhp.compression.figures import FLOAT_BITS, Compressed, LayerFigures
from fedhp.compression.layers import Matrix, called_layers
from fedhp.compression.obq import nearest
from fedhp.compression.obs import fixed_in_turn

TERNARY_BITS = 2

_THRESHOLDS = (0.3, 0.5, 0.7, 0.9, 1.1)  # of the mean magnitude, below which a weight starts as 0
_MOST_SWEEPS = 100
_GAIN = 1e-6  # of the error, less than which a sweep is the last


def ternary(network: nn.Module, inputs: torch.Tensor) -> Compressed:
    """Brings each weight of an output to -a, 0 or a, by coordinate descent from the trained ones.

    After CoNNTrA (Date et al., "Training Deep Neural Networks with Constrained Learning Parameters", 2020,
    arXiv 2009.00540): from trained weights that are rounded, each weight in turn takes the value of the
    three that lowers the loss most, until none does. Different here: the loss is the error of the layer's own
    outputs on calibration samples, a quadratic of which the best value has a closed form, where the paper
    takes the network's loss of training samples; each output has a scale a, fitted in closed form between
    sweeps, where the paper has -1, 0 and 1; of six starts the best counts, for each output: weights rounded
    with five thresholds, and rounded one by one as `obq` does, with the scale of the best of those. A bias
    is refitted and stays in float32. Weights that are 0 stay so.

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
        bits = TERNARY_BITS * size + FLOAT_BITS * len(layer.weight)
        layers.append(LayerFigures(name, size, zeros, bits))
    return Compressed(network, layers)


def _solved(rows: Rows) -> Matrix:
    starts = [_above(rows.weights, threshold) for threshold in _THRESHOLDS]
    scales, signs, losses = _best([descended(rows.weights, rows.hessian, start) for start in starts])
    rounded = np.stack([_in_turn(*one, rows.hessian) for one in zip(rows.weights, scales, strict=True)])
    last = descended(rows.weights, rows.hessian, rounded)
    scales, signs, _ = _best([(scales, signs, losses), last])
    return scales[:, None] * signs


def _above(weights: Matrix, threshold: float) -> Matrix:
    """Returns the signs of those weights that are above so many mean magnitudes of their row."""
    means = np.abs(weights).sum(1) / np.maximum((weights != 0).sum(1), 1)
    return np.sign(weights) * (np.abs(weights) > threshold * means[:, None])


def _in_turn(row: Matrix, scale: float, hessian: Matrix) -> Matrix:
    """Returns the signs to which `obq` would round a row with this scale."""
    own = np.flatnonzero(row)
    signs = np.zeros(len(row))
    if len(own):
        choose = nearest(abs(scale), -1, 1)
        _, _, fixed = fixed_in_turn(row[own], hessian[np.ix_(own, own)], len(own), choose)
        signs[own] = np.sign(fixed)
    return signs


def _best(fits: Sequence[tuple[Matrix, Matrix, Matrix]]) -> tuple[Matrix, Matrix, Matrix]:
    """Returns of each row the fit whose error is least."""
    best = np.argmin([losses[-1] for _, _, losses in fits], axis=0)
    rows = np.arange(len(best))
    scales, signs, losses = (
        np.stack(one)[best, rows] for one in zip(*((a, b, c[-1]) for a, b, c in fits), strict=True)
    )
    return scales, signs, losses[None]


def descended(weights: Matrix, hessian: Matrix, signs: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Finds signs and scales whose products come close to rows of weights, by the error ``d H d^T / 2``.

    All rows take their step on a column together, as no row's error knows of another's.

    Args:
        weights: (rows, n); those that are 0 stay so.
        hessian: H (n, n).
        signs: Those to start from, (rows, n), 0 where weights are.

    Returns:
        The scales (rows,), the signs (rows, n) of -1, 0 and 1, and errors (sweeps + 1, rows), from the start
        on.
    """
    free, signs = weights != 0, signs.copy()
    largest = np.abs(weights).max(1)
    aims, losses = weights @ hessian, list[Matrix]()
    scales = _scales(aims, signs, hessian, np.where(largest > 0, largest, 1.0))
    for _ in range(_MOST_SWEEPS):
        gradient = aims - scales[:, None] * (signs @ hessian)
        losses.append(((weights - scales[:, None] * signs) * gradient).sum(1) / 2)
        if len(losses) > 1 and (losses[-1] >= losses[-2] * (1 - _GAIN)).all():
            break
        for place in range(weights.shape[1]):
            best = signs[:, place] + gradient[:, place] / (scales * hessian[place, place])
            new = np.clip(np.rint(best), -1, 1) * free[:, place]
            gradient -= np.outer(scales * (new - signs[:, place]), hessian[place])
            signs[:, place] = new
        scales = _scales(aims, signs, hessian, scales)
    return scales, signs, np.array(losses)


def _scales(aims: Matrix, signs: Matrix, hessian: Matrix, before: Matrix) -> Matrix:
    """Returns the scales with which signs come closest; those before where all signs of a row are 0."""
    curvature = ((signs @ hessian) * signs).sum(1)
    found = (aims * signs).sum(1)
    usable = (curvature > 0) & (found != 0)
    return np.where(usable, found / np.where(usable, curvature, 1), before)
