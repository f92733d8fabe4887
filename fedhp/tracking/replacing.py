"""Files that are there whole or not at all."""

from pathlib import Path


def replace_text(path: Path, text: str) -> Path:
    """Writes a file, replacing it at once or not at all: nobody reads half of it, and no kill leaves that."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(text, encoding="utf-8")
    return unfinished.replace(path)
