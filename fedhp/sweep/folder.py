"""The folder of a study, known again by a file that names the study, and of one process at a time."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fedhp.errors import RecordError
from fedhp.files import locks
from fedhp.files.marks import STUDY
from fedhp.records.record import is_taken, not_writable


def claim(root: Path, title: str) -> None:
    """Takes a folder for a study, before anything costs time.

    Args:
        root: A folder that is `held`: empty, or this study's own from before.
        title: What the study is about.

    Raises:
        RecordError: If the folder holds something else, or cannot be written to.
    """
    try:
        if is_taken(root) and not _is_own(root, title):
            raise RecordError(
                f"{root} holds something else than the study '{title}', and nothing is overwritten; choose "
                "another --out or remove it"
            )
        (root / STUDY).write_text(f"{title}\n", encoding="utf-8")
    except OSError as error:
        raise not_writable(root, error) from None


@contextmanager
def held(root: Path) -> Iterator[None]:
    """Keeps other processes on this machine from working in a study's folder, which is made, meanwhile.

    It is held from before anything in it is read until all is written. The lock ends with the process,
    however that ends; where the file system knows no locks there is none.

    Raises:
        RecordError: If another process is at work there, or nothing can be written to it.
    """
    _make(root)
    with ExitStack() as ours:
        try:
            ours.enter_context(locks.locked(locks.of(root), wait=False))
        except BlockingIOError:
            raise RecordError(
                f"another process is at work in {root}; wait for its end, after which the same command goes "
                "on with what is left, or choose another --out"
            ) from None
        yield


def _make(root: Path) -> None:
    is_taken(root)  # refuses a place that is no folder, or where nothing can be written
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(root, error) from None


def _is_own(root: Path, title: str) -> bool:
    marker = root / STUDY
    return marker.is_file() and marker.read_bytes().strip() == title.encode()
