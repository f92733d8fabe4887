"""Files that one process at a time holds."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

NAME = ".lock"


def of(folder: Path) -> Path:
    """Returns the file that stands for a folder, in which nothing is to be left: a hidden one next to it.

    Where nothing can be written there, as with a disk that is mounted, it is a hidden one within.
    """
    place = folder.resolve()
    return place.parent / f".{place.name}{NAME}" if os.access(place.parent, os.W_OK) else place / NAME


@contextmanager
def locked(file: Path, wait: bool = True) -> Iterator[bool]:
    """Locks a file, which is there meanwhile, until the block or this process ends, however that ends.

    Yields:
        Whether it is locked; on disks without such locks, it is not.

    Raises:
        BlockingIOError: If another process has it, and ``wait`` is false.
    """
    with ExitStack() as held:
        is_ours = False
        try:
            # A marker in place of a lock would outlive a process that is killed.
            held.enter_context(FileLock(file, blocking=wait, fallback_to_soft=False))
            # While it is held: whoever has opened it by then sees that it has no name, and makes another one.
            held.callback(_remove, file)
            is_ours = True
        except Timeout:
            raise BlockingIOError(f"another process has {file}") from None
        except OSError:  # some network file systems lock nothing
            pass
        yield is_ours


def _remove(file: Path) -> None:
    with suppress(OSError):  # Windows removes nothing that is open
        file.unlink()
