"""One model's running statistics out of those that some of a round's devices take of it."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedhp.aggregation.options import RobustConfig
from fedhp.aggregation.robust import middle

Statistics = Mapping[str, NDArray[np.float32]]


class StatisticsMean(Protocol):
    """Takes what devices answer, and says what it comes to beside those that stay as they are."""

    def add(self, taken: Statistics, share: float, examples: int) -> None:
        """Adds a device's statistics, of whose difference to the model's a share counts."""
        ...

    def over(self, examples: int, clients: int) -> Statistics:
        """Returns those of so many examples, or clients: of whoever was not added they stay."""
        ...


def statistics_mean(config: RobustConfig, old: Statistics) -> StatisticsMean:
    """Returns what makes one of devices' statistics.

    Args:
        config: By which rule.
        old: The model's, which stay for all others.
    """
    return _Sums(old) if config.rule == "mean" else _Middles(old, config)


class _Sums:
    """The mean by examples, of running sums."""

    def __init__(self, old: Statistics) -> None:
        self._old, self._examples = old, 0
        self._sums = {name: np.zeros(values.shape) for name, values in old.items()}

    def add(self, taken: Statistics, share: float, examples: int) -> None:
        self._examples += examples
        for name, values in _scaled(taken, self._old, share).items():
            self._sums[name] += examples * values.astype(np.float64)

    def over(self, examples: int, clients: int) -> Statistics:
        others = np.float64(examples - self._examples)  # so that what nobody takes stays, to the last bit
        return {
            name: ((values + others * self._old[name]) / examples).astype(np.float32)
            for name, values in self._sums.items()
        }


class _Middles:
    """The trimmed mean or median of each entry.

    That of mean squares is not below the square of that of the means: the trimmed mean of larger numbers is
    larger, and so (of absolute values, which stand in the order of their squares) not below the square.
    """

    def __init__(self, old: Statistics, config: RobustConfig) -> None:
        self._old, self._config = old, config
        self._taken: list[Statistics] = []

    def add(self, taken: Statistics, share: float, examples: int) -> None:
        self._taken.append(_scaled(taken, self._old, share))

    def over(self, examples: int, clients: int) -> Statistics:
        stay = [self._old] * (clients - len(self._taken))
        return {
            name: middle(np.stack([one[name] for one in (*self._taken, *stay)]), values, self._config)
            for name, values in self._old.items()
        }


def _scaled(taken: Statistics, old: Statistics, share: float) -> Statistics:
    if share == 1:
        return taken
    part = np.float32(share)
    return {name: (values + part * (taken[name] - values)).astype(np.float32) for name, values in old.items()}
