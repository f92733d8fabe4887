"""Running statistics of a batch normalisation, as they travel: mean and mean *square*.

Both are linear in the samples, so that the example-weighted mean over clients is that of all their samples,
and the variance made of them holds the spread between clients too. The mean of the clients' variances, which
plain averaging would give, lacks it, and is far too small where clients differ (non-IID data).
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

# What their names end in.
MEAN, SQUARE = "running_mean", "running_square"


def named(path: str, leaf: str) -> str:
    """Returns the name of a layer's tensor."""
    return f"{path}.{leaf}" if path else leaf


def impossible_squares(weights: Mapping[str, NDArray[np.float32]]) -> list[str]:
    """Returns the names of mean squares below the square of the mean, as no samples have them."""
    squares = [name for name in weights if name.rpartition(".")[2] == SQUARE]
    return [name for name in squares if (weights[name] < 0.999 * _mean_of(weights, name) ** 2 - 1e-6).any()]


def _mean_of(weights: Mapping[str, NDArray[np.float32]], square: str) -> NDArray[np.float32]:
    return weights[square.removesuffix(SQUARE) + MEAN]
