"""A watch over the memory that is left: what the next step may take of it."""

import time
from collections.abc import Callable

from fedhp.costs.this_process import MemorySource

RESERVE_BYTES = 16 * 2**20
_EVERY_SECONDS = 0.05
_SHARE = 1 / 200  # of the time, which looks may take as long as there is enough
_AT_MOST_SECONDS = 0.25  # between looks, whatever one takes: a busy machine may have been elsewhere
_TOLERANCE = 9 / 8  # or memory would be found short time and again, by a page
_NOISE_BYTES = 2**20  # by which systems are wrong about a process's pages


class MemoryWatch:
    """Looks now and then at what is left, and learns whether steps take what was forecast.

    Args:
        memory: Tells what is left.
        reserve_bytes: What is to stay free of it; a step may take all else, or half, whichever is more.
        every_seconds: How long it waits between looks, at least.
        clock: Tells the time in seconds.

    Attributes:
        reserve_bytes: See above.
        least_left: The least bytes that it saw left; None where the system does not tell.
    """

    def __init__(
        self,
        memory: MemorySource,
        reserve_bytes: int = RESERVE_BYTES,
        every_seconds: float = _EVERY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reserve_bytes, self.least_left = reserve_bytes, None
        self._memory, self._every, self._clock = memory, every_seconds, clock
        self._next_look = clock()
        self._forecast = 0  # of the last look: units may have been cut since, after a step
        self._excess = 1.0  # what steps take by the system's count, as a multiple of the forecast
        self._has_failed = self._is_tight = False

    @property
    def is_due(self) -> bool:
        """Whether it is time to look."""
        return self._has_failed or self._clock() >= self._next_look

    def failed(self) -> None:
        """Is told that an allocation failed: the next look finds memory short."""
        self._has_failed = True

    def give_back(self) -> None:
        """Has the system get back what was freed."""
        self._memory.give_back()

    def look(self, held: int, step: int) -> int | None:
        """Returns what a step may take; None where there is as much as it takes.

        Args:
            held: The bytes that are held between steps.
            step: What a step takes by the memory model, with those.

        Returns:
            Bytes by the memory model, with those held. Where steps have taken a multiple of the forecast, a
            byte that is left counts for as much less.
        """
        started, forecast = self._clock(), max(1, step - held)
        spike, taken = self._memory.spike(), max(forecast, self._forecast if held else 0)
        self._excess = spike / taken if held and spike > taken + _NOISE_BYTES else 1.0
        self._forecast = forecast
        allowed = self._allowed(held, forecast)
        if self._has_failed:  # as if there were half of it
            half = held + forecast // 2
            allowed, self._has_failed = half if allowed is None else min(half, allowed), False
        now = self._clock()
        rest = 0.0 if self._is_tight else min((now - started) / _SHARE, _AT_MOST_SECONDS)
        self._next_look = now + max(self._every, rest)
        return allowed

    def _allowed(self, held: int, forecast: int) -> int | None:
        needs, left = self._excess * forecast, self._memory.left()
        if left is not None and needs > self._spare(left):  # but for what allocators keep for later, perhaps
            self._memory.give_back()
            left = self._memory.left()
        if left is None:
            return None
        self.least_left = left if self.least_left is None else min(self.least_left, left)
        spare = self._spare(left)
        self._is_tight = 2 * needs > spare
        return None if needs <= _TOLERANCE * spare else held + int(spare / self._excess)

    def _spare(self, left: int) -> int:
        return max(left - self.reserve_bytes, left // 2)
