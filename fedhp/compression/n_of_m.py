"""N of M: the pattern that sparse matrix units read."""

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.compression.calibration import check_calibration
from fedhp.compression.figures import Compressed
from fedhp.compression.layers import Matrix, called_layers, input_runs, matrix, set_matrix
from fedhp.compression.sparse import sparse_figures


def n_of_m(network: nn.Module, inputs: torch.Tensor, n: int, m: int) -> Compressed:
    """Keeps the n largest of every m neighbouring inputs' weights by magnitude, and sets the others to 0.

    Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021, arXiv 2104.08378, section 4.1, without
    the training after it. A run at the end that is shorter keeps n too, and weights that are kept stay as
    they are.

    Args:
        network: Torch's own layers.
        inputs: Samples as it takes them; only the order of layers is learnt from them.
        n: How many are kept.
        m: Of so many.

    Raises:
        ExportError: If there are no samples, or the network's scores of them are not finite.
    """
    network = copy.deepcopy(network).eval()
    check_calibration(network, inputs)
    for layer in called_layers(network, inputs).values():
        weights = matrix(layer)
        set_matrix(layer, np.where(largest_of_runs(weights, input_runs(layer, m), n), weights, 0))
    return sparse_figures(network, inputs)


def has_pattern(network: nn.Module, inputs: torch.Tensor, n: int, m: int) -> bool:
    """Says whether at most n of every m neighbouring inputs' weights of each layer are not 0.

    Args:
        network: Torch's own layers.
        inputs: Samples as it takes them.
        n: How many may be left.
        m: Of so many.
    """
    for layer in called_layers(network, inputs).values():
        weights, runs = matrix(layer), input_runs(layer, m)
        if not (largest_of_runs(weights, runs, n) | (weights == 0)).all():
            return False
    return True


def largest_of_runs(weights: Matrix, runs: NDArray[np.intp], n: int) -> NDArray[np.bool_]:
    """Says which weights are among the n largest of their run in their row; of equals, the first.

    Args:
        weights: (rows, columns).
        runs: Which run each column belongs to.
        n: How many of each.
    """
    kept = np.zeros(weights.shape, bool)
    for run in np.unique(runs):
        own = np.flatnonzero(runs == run)
        best = np.argsort(-np.abs(weights[:, own]), axis=1, kind="stable")[:, :n]
        np.put_along_axis(kept, own[best], True, axis=1)
    return kept
