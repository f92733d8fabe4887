"""The folder of a study, known again by a file that names the study."""

from pathlib import Path

from fedhp.errors import RecordError
from fedhp.tracking import is_taken, not_writable

MARKER = "study.txt"


def claim(root: Path, title: str) -> None:
    """Takes a folder for a study, before anything costs time.

    Args:
        root: A folder that is new, empty, or this study's own from before.
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
        root.mkdir(parents=True, exist_ok=True)
        (root / MARKER).write_text(f"{title}\n", encoding="utf-8")
    except OSError as error:
        raise not_writable(root, error) from None


def _is_own(root: Path, title: str) -> bool:
    marker = root / MARKER
    return marker.is_file() and marker.read_bytes().strip() == title.encode()
