"""What a training takes of memory: as the memory model predicts it, and as its live tensors show it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from fedhp.costs.watching import Peak

Key = tuple[object, ...]
Live = Callable[[Sequence[Any]], AbstractContextManager[Peak]]


class Meter:
    """Keeps the peaks of an epoch, and the mean over its samples, in bytes.

    Args:
        live: Counts what lives within it, with what lives before: `fedhp.training.runtime.Runtime.live`.

    Attributes:
        predicted: The largest step so far, by the memory model.
        measured: The largest peak so far of live tensors.
    """

    def __init__(self, live: Live) -> None:
        self._live = live
        self.begin(0)

    def begin(self, step_bytes: int) -> None:
        """Begins to count anew, with steps that the memory model predicts to take these bytes."""
        self.predicted, self.measured, self._byte_samples = step_bytes, 0, 0

    def expect(self, step_bytes: int) -> None:
        """Takes in that steps take these bytes from now on, by the memory model."""
        self.predicted = max(self.predicted, step_bytes)

    def count(self, step_bytes: int, num_samples: int) -> None:
        """Takes in a step of so many samples."""
        self._byte_samples += step_bytes * num_samples

    def mean(self, num_samples: int) -> int:
        """Returns the mean over the samples that were counted, so many in all."""
        return round(self._byte_samples / num_samples)

    @contextmanager
    def watching(self, key: Key, held: Callable[[], Sequence[Any]]) -> Iterator[None]:
        """Counts the peak of live tensors of what is done, measured now or on an equal piece of work.

        Args:
            key: Everything that the peak depends on.
            held: Returns what lives before the work; whoever keeps it keeps what the work would free.
        """
        if key in PEAKS:
            yield
        else:
            with self._live(held()) as live:
                yield
            PEAKS[key] = live.peak
        self.measured = max(self.measured, PEAKS[key])


# Peaks already measured in this process; a cache, never state.
PEAKS: dict[Key, int] = {}
