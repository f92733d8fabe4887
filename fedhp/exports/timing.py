"""How long one sample takes."""

import time
from collections.abc import Sequence
from itertools import cycle, islice
from statistics import median
from typing import Any

from numpy.typing import NDArray

from fedhp.exports.formats.format import Runs

_WARM_UP = 20
_LEAST, _MOST = 50, 2000
_SECONDS = 0.5


def timed_calls(
    runs: Runs, samples: Sequence[NDArray[Any]], seconds: float, least: int, most: int
) -> list[float]:
    """Returns what each call takes in microseconds, on samples in turn, for about so many seconds.

    Args:
        runs: The network.
        samples: Batches of one sample.
        seconds: How long.
        least: How many calls at least.
        most: How many calls at most.
    """
    taken: list[float] = []
    end = time.perf_counter() + seconds
    for sample in islice(cycle(samples), most):
        start = time.perf_counter()
        if len(taken) >= least and start >= end:
            break
        runs(sample)
        taken.append(1e6 * (time.perf_counter() - start))
    return taken


def usual_microseconds(runs: Runs, samples: Sequence[NDArray[Any]]) -> float:
    """Returns the median time of a sample once warm, of calls that take about half a second together."""
    for sample in islice(cycle(samples), _WARM_UP):
        runs(sample)
    return round(median(timed_calls(runs, samples, _SECONDS, _LEAST, _MOST)), 2)
