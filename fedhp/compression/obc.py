"""Optimal Brain Compression: which weights go, and what the others become to make up for it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.compression.calibration import Rows, solved_layers
from fedhp.compression.figures import Compressed
from fedhp.compression.layers import Matrix, input_runs
from fedhp.compression.obs import Choice, fixed_in_turn, restricted
from fedhp.compression.sparse import sparse_figures


def obc(network: nn.Module, inputs: torch.Tensor, share: float) -> Compressed:
    """Sets a share of each layer's weights to 0, those that are missed least, and refits the rest.

    Frantar & Alistarh, "Optimal Brain Compression: A Framework for Accurate Post-Training Quantization and
    Pruning", 2022, arXiv 2208.11580, sections 4 and 5: weights of a row go one by one, each time that which
    costs least (ExactOBS); of all rows' traces, those removals are made that cost least in the layer.
    Different here: inputs are those behind the layers that were compressed already, where the paper takes
    the dense network's for pruning; a bias is refitted too. Weights that are 0 stay so, and count.

    Args:
        network: Torch's own layers.
        inputs: Calibration samples as it takes them.
        share: Of each layer's weights, 0 .. 1.

    Raises:
        ExportError: See `solved_layers`.
    """
    return sparse_figures(solved_layers(network, inputs, lambda rows: _pruned(rows, share)), inputs)


def obc_n_of_m(network: nn.Module, inputs: torch.Tensor, n: int, m: int) -> Compressed:
    """Leaves at most n of every m neighbouring inputs, by the same removals: see `obc`, and section 5 there.

    A removal in a run that has no more to give is passed over. Runs are those of `input_runs`.
    """
    return sparse_figures(solved_layers(network, inputs, lambda rows: _thinned(rows, n, m)), inputs)


def _pruned(rows: Rows, share: float) -> Matrix:
    weights, kept = rows.weights, rows.weights != 0
    number = round(share * weights.size) - int((~kept).sum())
    if number <= 0:
        return weights
    orders, traces = [], []
    for row, keep in zip(weights, kept, strict=True):
        own = np.flatnonzero(keep)
        order, losses, _ = fixed_in_turn(row[own], rows.hessian[np.ix_(own, own)], len(own), _cheapest)
        orders.append(own[order])
        traces.append(np.maximum.accumulate(losses))  # what it takes to get so far
    owner = np.repeat(np.arange(len(weights)), [len(trace) for trace in traces])
    cheapest = np.argsort(np.concatenate(traces), kind="stable")[:number]
    for row, gone in enumerate(np.bincount(owner[cheapest], minlength=len(weights))):
        kept[row, orders[row][:gone]] = False
    return restricted(weights, rows.hessian, kept)


def _cheapest(weights: Matrix, diagonal: Matrix, places: NDArray[np.intp]) -> tuple[int, float]:
    return int(np.argmin(weights**2 / diagonal)), 0.0


def _thinned(rows: Rows, n: int, m: int) -> Matrix:
    runs, kept = input_runs(rows.layer, m), rows.weights != 0
    for row, keep in zip(rows.weights, kept, strict=True):
        own = np.flatnonzero(keep)
        order, _, _ = fixed_in_turn(
            row[own], rows.hessian[np.ix_(own, own)], len(own), _cheapest_of_runs(runs[own], n)
        )
        keep[own[order]] = False
    return restricted(rows.weights, rows.hessian, kept)


def _cheapest_of_runs(runs: NDArray[np.intp], n: int) -> Choice:
    """Returns what chooses the cheapest weight of a run that has more than n left."""
    left = np.bincount(runs)

    def choose(weights: Matrix, diagonal: Matrix, places: NDArray[np.intp]) -> tuple[int, float]:
        crowded = left[runs[places]] > n
        if not crowded.any():
            return -1, 0.0
        at = int(np.argmin(np.where(crowded, weights**2 / diagonal, np.inf)))
        left[runs[places[at]]] -= 1
        return at, 0.0

    return choose
