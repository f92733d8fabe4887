"""What networks of an architecture take in a runtime, by their widths: fitted to some that were measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from fedhp.latency.work import TERMS, Counts, Work

_BLOCKS = (1, 4, 8, 16)


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """What networks of an architecture take in a runtime, by their widths.

    A sum of `fedhp.latency.work.TERMS`, none of which takes less than no time.

    Attributes:
        work: Of the architecture.
        block: Channels that the runtime computes together.
        microseconds: Of each term, for one of it.
        error: How far off it is, in parts of the time: the root of the mean square over the networks that it
            was fitted to, each predicted by a fit to the others.
    """

    work: Work
    block: int
    microseconds: NDArray[np.float64]
    error: float

    def predict(self, counts: Counts) -> float:
        """Returns the time of a sample in microseconds."""
        return float(self.work.terms(counts, self.block) @ self.microseconds)


def fit(work: Work, counts: Sequence[Counts], measured: Sequence[float]) -> LatencyModel:
    """Returns the model of networks that were measured.

    Least squares of relative errors, coefficients not negative (Lawson and Hanson 1974, Solving Least Squares
    Problems, chapter 23), with the block that predicts networks left out best.

    Args:
        work: Of the architecture.
        counts: The units of each network.
        measured: What each took, in microseconds.
    """
    taken = np.asarray(measured, float)
    found = [_with_block(work, counts, taken, block) for block in _BLOCKS]
    return min(found, key=lambda model: model.error)  # of equals the first, whose block is the smallest


def _with_block(work: Work, counts: Sequence[Counts], taken: NDArray[np.float64], block: int) -> LatencyModel:
    terms = np.array([work.terms(one, block) for one in counts])
    rows = np.arange(len(taken))
    errors = [_solved(terms[rows != row], taken[rows != row]) @ terms[row] / taken[row] - 1 for row in rows]
    error = float(np.sqrt(np.mean(np.square(errors))))
    return LatencyModel(work, block, _solved(terms, taken), error)


def _solved(terms: NDArray[np.float64], taken: NDArray[np.float64]) -> NDArray[np.float64]:
    scale = terms.max(axis=0)
    scale[scale == 0] = 1  # of what no network has, nothing is known
    solution, _ = nnls(terms / scale / taken[:, None], np.ones_like(taken))
    assert solution.shape == (len(TERMS),)
    return solution / scale
