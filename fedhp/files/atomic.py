"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields where to write a file that takes the place of ``path`` once the block has ended.

    Nobody reads half of it, and no kill leaves that. What fails is removed: on a full disk it would take the
    room of what is written next.
    """
    unfinished = path.with_name(f".{path.name}")
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def replace_text(path: Path, text: str) -> Path:
    """Writes a file, replacing it at once or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return path


def onto_disk(path: Path) -> None:
    """Waits until a file, or the names in a folder, would outlive a power failure."""
    if os.name == "nt" and path.is_dir():  # which knows no such thing
        return
    file = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)
