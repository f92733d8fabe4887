"""Samples for a file of which nothing is known but what it takes: time does not depend on their values."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.exports.formats.format import Opened


def random_sample(opened: Opened) -> NDArray[Any]:
    """Returns a sample of a file's shape and type, the same for every file that takes as much."""
    stream = np.random.default_rng(0)
    if opened.dtype == "uint8":
        return stream.integers(0, 256, opened.shape, np.uint8)
    return stream.normal(size=opened.shape).astype(opened.dtype)
