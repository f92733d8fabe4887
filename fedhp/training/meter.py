"""What a training takes of memory: as the memory model predicts it, and as its live tensors show it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from fedhp.costs.live_tensors import LiveTensors

Key = tuple[object, ...]


class Meter:
    """Keeps the peaks of an epoch, and the mean over its samples, in bytes.

    Attributes:
        predicted: The largest step so far, by the memory model.
        measured: The largest peak so far of live tensors.
    """

    def __init__(self) -> None:
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
    def watching(self, key: Key, held: Callable[[], Sequence[torch.Tensor]]) -> Iterator[None]:
        """Counts the peak of live tensors of what is done, measured now or on an equal piece of work.

        Args:
            key: Everything that the peak depends on.
            held: Returns what lives before the work; whoever keeps it keeps what the work would free.
        """
        if key in PEAKS:
            yield
        else:
            with LiveTensors(held()) as live:
                yield
            PEAKS[key] = live.peak
        self.measured = max(self.measured, PEAKS[key])


# Peaks already measured in this process; a cache, never state.
PEAKS: dict[Key, int] = {}
