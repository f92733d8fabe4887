"""Who lives while something runs, whoever made it: storages, from their creation until they are freed."""

import weakref
from abc import abstractmethod
from typing import Any


class Watch:
    """Sees every storage once."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, int] = {}
        self._num_seen = 0
        self._finalizers: list[weakref.finalize[..., Any]] = []

    @abstractmethod
    def _entered(self, entry: int, num_bytes: int) -> None:
        """Is told of a storage; entries count from 0."""

    @abstractmethod
    def _left(self, entry: int, num_bytes: int) -> None:
        """Is told that a storage was freed."""

    @abstractmethod
    def _storage(self, array: Any) -> tuple[int, Any, int]:
        """Returns the key of an array's storage among the living, what dies with it, and its bytes."""

    def entry(self, array: Any) -> int:
        """Returns the entry of a living array's storage."""
        return self._live[self._storage(array)[0]]

    def _see(self, array: Any) -> None:
        key, storage, num_bytes = self._storage(array)
        if key in self._live:
            return
        entry = self._live[key] = self._num_seen
        self._num_seen += 1
        self._entered(entry, num_bytes)
        self._finalizers.append(weakref.finalize(storage, self._forget, key, entry, num_bytes))

    def _forget(self, key: int, entry: int, num_bytes: int) -> None:
        del self._live[key]
        self._left(entry, num_bytes)

    def _close(self) -> None:
        for finalizer in self._finalizers:
            finalizer.detach()


class Peak(Watch):
    """Counts the bytes that live, and remembers the peak.

    Attributes:
        peak: The largest number of live bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._bytes = 0

    def _entered(self, entry: int, num_bytes: int) -> None:
        self._bytes += num_bytes
        self.peak = max(self.peak, self._bytes)

    def _left(self, entry: int, num_bytes: int) -> None:
        self._bytes -= num_bytes
