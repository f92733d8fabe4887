"""Optimal Brain Quantization: weights of few bits, each rounded where the others can make up for it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.compression.calibration import Rows, solved_layers
from fedhp.compression.figures import FLOAT_BITS, Compressed, LayerFigures, sparse_bits
from fedhp.compression.layers import Matrix, called_layers
from fedhp.compression.obs import Choice, fixed_in_turn


def obq(network: nn.Module, inputs: torch.Tensor, bits: int) -> Compressed:
    """Rounds weights to 2^bits values of each output, one by one, and has those that are left make up for it.

    Frantar & Alistarh, "Optimal Brain Compression", 2022, arXiv 2208.11580, section 6: next is the weight
    whose rounding costs least, or one that is half a step or more off the grid at once. The grid of an
    output goes from its least to its largest weight and holds 0; weights that are 0 stay so. Inputs are those
    behind the layers that were quantised already, as in the paper; a bias is refitted too, and stays in
    float32.

    Args:
        network: Torch's own layers.
        inputs: Calibration samples as it takes them.
        bits: Of a weight, 2 .. 8.

    Raises:
        ExportError: See `solved_layers`.
    """
    network = solved_layers(network, inputs, lambda rows: _quantised(rows, bits))
    layers = []
    for name, layer in called_layers(network, inputs).items():
        size, zeros = layer.weight.numel(), int((layer.weight == 0).sum())
        grids = len(layer.weight) * (FLOAT_BITS + bits)  # a step, and which of its values is 0
        layers.append(LayerFigures(name, size, zeros, sparse_bits(size, zeros, bits) + grids))
    return Compressed(network, layers)


def _quantised(rows: Rows, bits: int) -> Matrix:
    found = rows.weights.copy()
    for row in found:
        own = np.flatnonzero(row)
        if len(own):
            step, low, high = grid(row, bits)
            _, _, row[own] = fixed_in_turn(
                row[own], rows.hessian[np.ix_(own, own)], len(own), nearest(step, low, high)
            )
    return found


def grid(row: Matrix, bits: int) -> tuple[float, int, int]:
    """Returns the step of a row's grid, and the numbers of steps that its least and largest values are."""
    least, largest = min(float(row.min()), 0.0), max(float(row.max()), 0.0)
    step = (largest - least) / (2**bits - 1)
    low = round(least / step)
    return step, low, low + 2**bits - 1


def nearest(step: float, low: int, high: int) -> Choice:
    """Returns what chooses a weight by what its rounding costs, those off the grid first."""

    def choose(weights: Matrix, diagonal: Matrix, places: NDArray[np.intp]) -> tuple[int, float]:
        values = step * np.clip(np.rint(weights / step), low, high)
        gaps = np.abs(weights - values)
        outside = gaps > step / 2 * (1 + 1e-9)
        at = int(np.argmax(np.where(outside, gaps, -1)) if outside.any() else np.argmin(gaps**2 / diagonal))
        return at, float(values[at])

    return choose
