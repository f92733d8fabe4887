"""How long one sample takes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.exports.formats.format import Runs

_WARM_UP = 20
_LEAST, _MOST = 50, 2000
_SECONDS = 0.5


@dataclass(frozen=True)
class Latency:
    """Of one sample at a time, in microseconds, once warm.

    Attributes:
        median: The middle one.
        p95: What 95 of 100 stay below.
        num_calls: How many were timed.
    """

    median: float
    p95: float
    num_calls: int


def latency(runs: Runs, samples: Sequence[NDArray[Any]]) -> Latency:
    """Times a network on samples in turn, for about half a second."""
    for number in range(_WARM_UP):
        runs(samples[number % len(samples)])
    taken: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(taken) < _LEAST or (len(taken) < _MOST and time.perf_counter() < end):
        sample = samples[len(taken) % len(samples)]
        start = time.perf_counter()
        runs(sample)
        taken.append(1e6 * (time.perf_counter() - start))
    median, p95 = np.quantile(taken, (0.5, 0.95)).tolist()
    return Latency(round(median, 2), round(p95, 2), len(taken))
