"""SmartDeal: weights as a small basis and coefficients that are powers of two."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.compression.calibration import Rows, solved_layers
from fedhp.compression.figures import FLOAT_BITS, Compressed, LayerFigures
from fedhp.compression.layers import Layer, Matrix, called_layers

COEFFICIENT_BITS, BASIS_BITS = 4, 8

_EXPONENTS = 7  # of a sign and three bits, of which one code is 0
_DENSE_WIDTH = 4
_MOST_TURNS, _SWEEPS, _GAIN = 30, 3, 1e-3
_RIDGE = 1e-9


@dataclass(frozen=True, eq=False)
class Factors:
    """An output's weights, as ``coefficients @ basis``.

    Attributes:
        coefficients: (pieces, width), each 0 or plus or minus one of seven neighbouring powers of two.
        basis: (width, width), whole multiples of a step, -127 .. 127 of it.
    """

    coefficients: Matrix
    basis: Matrix

    @property
    def bits(self) -> int:
        """A bit for each piece, four for each coefficient of pieces that are there, the basis, its step."""
        pieces = int(self.coefficients.any(1).sum())
        width = len(self.basis)
        return len(self.coefficients) + pieces * width * COEFFICIENT_BITS + width**2 * BASIS_BITS + FLOAT_BITS


def smartdeal(network: nn.Module, inputs: torch.Tensor) -> Compressed:
    """Writes each output's weights as coefficients, powers of two or 0, times a small basis.

    Chen, Zhao, Wang et al., "SmartDeal: Re-Modeling Deep Network Weights for Efficient Inference and
    Training", 2021, arXiv 2101.01163: the weights of an output are cut into pieces, for a convolution the
    rows of its kernel, for a dense layer four neighbours each; W = C B is fitted by turns, the coefficients
    with the basis held and the other way round, and coefficients are rounded to powers of two in between.
    Different here: nothing is trained after it; as pieces are dropped only where all of their coefficients
    round to 0, sparsity is what pruning before it left, by pieces; and the weights that are fitted are those
    that are best behind the layers before (`solved_layers`). Single weights that were 0 need not stay so.

    Counted are 4 bits for a coefficient (its sign and an exponent of seven, or 0), a bit for each piece that
    says whether it is there, 8 for each number of the basis, and 32 for its step.

    Args:
        network: Torch's own layers.
        inputs: Calibration samples as it takes them.

    Raises:
        ExportError: See `solved_layers`.
    """
    bits: dict[str, int] = {}

    def solve(rows: Rows) -> Matrix:
        width = piece_width(rows.layer)
        found = [factored(row, width) for row in rows.weights]
        bits[rows.name] = bits.get(rows.name, 0) + sum(one.bits for one in found)
        return np.stack([(one.coefficients @ one.basis).ravel() for one in found])[:, : rows.weights.shape[1]]

    network = solved_layers(network, inputs, solve)
    layers = [
        LayerFigures(name, layer.weight.numel(), int((layer.weight == 0).sum()), bits[name])
        for name, layer in called_layers(network, inputs).items()
    ]
    return Compressed(network, layers)


def piece_width(layer: Layer) -> int:
    """Returns how many neighbouring weights are a piece: a kernel's row, or four where that is one weight."""
    width = 1 if isinstance(layer, nn.Linear) else layer.kernel_size[-1]
    return width if width > 1 else _DENSE_WIDTH


def factored(row: Matrix, width: int) -> Factors:
    """Fits coefficients and a basis to a row of weights by turns, and returns the best of all turns.

    Args:
        row: The weights (n,); the last piece is filled up with zeros.
        width: Of a piece.
    """
    pieces = np.append(row, np.zeros(-len(row) % width)).reshape(-1, width)
    largest = float(np.abs(row).max())
    if largest == 0:
        return Factors(np.zeros(pieces.shape), np.zeros((width, width)))
    basis = _in_bytes(largest * np.eye(width))
    best, least = None, np.inf
    for _ in range(_MOST_TURNS):
        coefficients = _powers(pieces, basis)
        if not coefficients.any():
            break
        normal = coefficients.T @ coefficients
        normal += _RIDGE * np.trace(normal) * np.eye(width)
        basis = _in_bytes(np.linalg.solve(normal, coefficients.T @ pieces))
        loss = float(((pieces - coefficients @ basis) ** 2).sum())
        if best is not None and loss >= least * (1 - _GAIN):
            break
        best, least = Factors(coefficients, basis), loss
    return best if best is not None else Factors(np.zeros(pieces.shape), np.zeros(basis.shape))


def _powers(pieces: Matrix, basis: Matrix) -> Matrix:
    """Returns coefficients with the basis held: least squares, rounded, then improved one by one."""
    found = pieces @ np.linalg.pinv(basis)
    highest = float(np.abs(found).max())
    if highest == 0:
        return found
    values = _values(2.0 ** np.rint(np.log2(highest)))
    found = _nearest(found, values)
    for _ in range(_SWEEPS):
        for place, vector in enumerate(basis):
            length = float(vector @ vector)
            if length > 0:
                best = found[:, place] + (pieces - found @ basis) @ vector / length
                found[:, place] = _nearest(best, values)
    return found


def _values(highest: float) -> Matrix:
    """Returns what coefficients may be: 0, and seven powers of two of either sign."""
    powers = highest * 2.0 ** -np.arange(_EXPONENTS)
    return np.concatenate([-powers, [0.0], powers[::-1]])


def _nearest(coefficients: Matrix, values: Matrix) -> Matrix:
    return values[np.abs(coefficients[..., None] - values).argmin(-1)]


def _in_bytes(basis: NDArray[Any]) -> Matrix:
    """Returns a basis rounded to whole multiples of a step, of which its largest number is 127."""
    step = float(np.abs(basis).max()) / 127
    return step * np.rint(basis / step) if step else np.zeros(basis.shape)
