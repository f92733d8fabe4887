"""Samples of several shards that are taken step by step, read for several steps at once."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedhp.data.shard import Empty, Shard, tensor, together

# What is read at once at most: one read costs about as much as a step of small networks.
_BYTES = 4 * 2**20
_FLOAT_BYTES = 4


class Source(NamedTuple):
    """Of whom samples are taken: the shard, the positions that are left, and the entries that are picked."""

    shard: Shard
    left: NDArray[np.intp]
    inputs: NDArray[np.intp] | None


class Ahead:
    """Reads ahead for several takers who take together; for a lone one, which may be a device, no further.

    Where a source has fewer samples left than are taken, its first fill up the number.

    Args:
        empty: Makes what they are gathered into.
    """

    def __init__(self, empty: Empty = tensor) -> None:
        self._empty = empty
        self._steps: deque[int] = deque()
        self._read: tuple[Any, ...] = ()
        self._next = -1, -1

    def take(
        self, place: tuple[int, int], size: int, number: int, sources: Callable[[], Sequence[Source]]
    ) -> tuple[Any, Any]:
        """Returns the next samples of the first sources.

        Args:
            place: The pass over the data, and how many samples of it the first source has been taken.
            size: How many are taken of each.
            number: Of how many sources: no more than the last time.
            sources: Tells them, where they are to be read.

        Returns:
            Samples and classes, of shape ``(number, size, ...)``.
        """
        if not self._steps or self._next != place:
            self._read, self._steps = (), deque()  # before the next are made
            self._gather(size, sources())
        self._next = place[0], place[1] + size
        step = self._steps.popleft()
        samples, labels = (part[:number, step] for part in self._read)
        if not self._steps:
            self._read = ()  # the step alone keeps them
        return samples, labels

    def _gather(self, size: int, sources: Sequence[Source]) -> None:
        shards, lefts, inputs = zip(*sources, strict=True)
        entries = math.prod(shards[0].input_shape) if inputs[0] is None else len(inputs[0])
        most = _BYTES // (len(sources) * size * entries * _FLOAT_BYTES) if len(sources) > 1 else 1
        steps = max(1, min(most, -(-max(map(len, lefts)) // size)))
        indices = [np.resize(left[: steps * size], steps * size) for left in lefts]
        parts = together(shards, indices, inputs, self._empty)
        self._read = tuple(part.reshape(len(part), steps, size, *part.shape[2:]) for part in parts)
        self._steps = deque(range(steps))
