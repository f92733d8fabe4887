"""Each network of a comparison exported to a file of one format."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from fedhp.comparison.manifest import Entry
from fedhp.errors import FedhpError
from fedhp.exports.card import holds
from fedhp.exports.exporting import checked_formats, export
from fedhp.records.load import has_finished, load_state

_logger = logging.getLogger("fedhp")


def check_format(name: str) -> None:
    """Checks that a format is known and its packages are installed, before any run.

    Raises:
        ExportError: If there is no such format.
        MissingExtraError: If what it needs is not installed.
    """
    checked_formats([name])


def export_all(root: Path, entries: Sequence[Entry], name: str, tell: Callable[[str], None]) -> None:
    """Exports the networks of all finished runs, in float32, one after another.

    Files that are there from before stay, with the times that were measured then. A network that cannot be
    exported is told of.

    Args:
        root: The comparison's folder.
        entries: Its runs.
        name: A format.
        tell: Is told of each network before it is exported.
    """
    waiting = [entry for entry in entries if _is_waiting(root / entry.folder, name)]
    for number, entry in enumerate(waiting, 1):
        tell(f"exporting {number} of {len(waiting)} to {name}: {entry.folder}")
        folder = root / entry.folder
        try:
            failures = export(folder, [name]).failures.values()
        except FedhpError as error:
            failures = [str(error)]
        for failure in failures:
            _logger.warning("%s is not exported: %s", entry.folder, failure)


def _is_waiting(folder: Path, name: str) -> bool:
    """Says whether a run has finished and there is no file of its network."""
    if not has_finished(folder):
        return False
    try:
        return not holds(folder / "export", load_state(folder)[0], name)
    except FedhpError:
        return True  # the export says what is wrong
