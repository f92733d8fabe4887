"""Folders of one process at a time."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # Windows, where folders cannot even be opened

    def _lock(handle: int, wait: bool) -> None:
        raise OSError("no locks")
else:

    def _lock(handle: int, wait: bool) -> None:
        flock(handle, LOCK_EX if wait else LOCK_EX | LOCK_NB)


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Locks a folder, until the block or this process ends, however that ends.

    Yields:
        Whether it is locked; on systems and disks without such locks, it is not.

    Raises:
        BlockingIOError: If another process has it, and ``wait`` is false.
    """
    with ExitStack() as held:
        is_ours = False
        try:
            handle = os.open(folder, os.O_RDONLY)
            held.callback(os.close, handle)
            _lock(handle, wait)
            is_ours = True
        except BlockingIOError:
            raise
        except OSError:  # some network file systems lock no folders
            pass
        yield is_ours
