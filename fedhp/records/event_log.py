"""The log of what happened in a run."""

from datetime import datetime
from pathlib import Path
from typing import TextIO


class EventLog:
    """``events.log``: what happened, a line each with its time; nothing before it is opened."""

    def __init__(self) -> None:
        self._file: TextIO | None = None

    def open(self, path: Path) -> None:
        """Makes the file, or goes on with it."""
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, text: str) -> None:
        """Adds a line."""
        if self._file is not None:
            self._file.write(f"{datetime.now():%Y-%m-%dT%H:%M:%S} {text}\n")

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
