"""This process and what memory is left to it, as who trains on a device looks at it."""

import ctypes
import sys
from typing import Protocol

from fedhp.costs.machine import forget_peak, peak_above, room

# Of mallopt(3), and from how many bytes on an allocation has pages of its own.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGE_BYTES = 128 * 2**10

# What PyTorch says where an allocation failed, for which it has no class of errors on every device.
_TORCH_SAYS = ("can't allocate memory", "out of memory")


class MemorySource(Protocol):
    """Tells what memory is left, and gives some back."""

    def left(self) -> int | None:
        """Returns the bytes that are left to the process; None where the system does not tell."""
        ...

    def spike(self) -> int:
        """Returns how many bytes more than now the process has taken at once, since the last call."""
        ...

    def give_back(self) -> None:
        """Has the system get back what was freed, and from now on at once what is large."""
        ...


class ThisProcess:
    """The process itself: see `MemorySource`."""

    def __init__(self) -> None:
        self._has_peak = forget_peak()

    def left(self) -> int | None:
        """Asks control group and machine."""
        return room().bytes

    def spike(self) -> int:
        """Asks the system for the peak, which then begins anew; 0 where it does not tell."""
        spike = peak_above() if self._has_peak else 0
        self._has_peak = forget_peak()
        return spike

    def give_back(self) -> None:
        """Empties the free lists of glibc's allocator, as others cannot be; the peak begins anew."""
        library = ctypes.CDLL(None) if sys.platform == "linux" else None
        if hasattr(library, "malloc_trim"):
            # Or it raises them to what was freed last, and keeps as much for later.
            library.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
            library.mallopt(_TRIM_THRESHOLD, _LARGE_BYTES)
            library.malloc_trim(0)
        self._has_peak = forget_peak()


def is_out_of_memory(error: BaseException) -> bool:
    """Says whether an allocation failed, of Python's, NumPy's or PyTorch's."""
    said = str(error).lower() if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError) or any(text in said for text in _TORCH_SAYS)
