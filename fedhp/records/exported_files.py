"""The files that a run's network was exported to, as `fedhp export` left word of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

_BITS = 8  # of a byte
_Read = TypeVar("_Read")


def read_files(folder: Path, read: Callable[[dict[str, Any]], _Read]) -> list[_Read]:
    """Returns what is read of each file of an export's folder; nothing where it cannot be read."""
    try:
        files = json.loads((folder / "export.json").read_text(encoding="utf-8"))["files"]
        return [read(file) for file in files]
    except (OSError, ValueError, TypeError, LookupError):
        return []


def packed_bytes(folder: Path) -> int | None:
    """Returns what an export's network would take when packed; None where that is not counted."""
    try:
        network = json.loads((folder / "export.json").read_text(encoding="utf-8"))["network"]
        found = network["compression"] or network["pattern"]
        return None if found is None else -(-int(found["packed_bits"]) // _BITS)
    except (OSError, ValueError, TypeError, LookupError):
        return None
