"""Each network of a comparison exported to a file of one format."""

import logging
from collections.abc import Sequence
from pathlib import Path

from fedhp.comparison.manifest import Entry
from fedhp.errors import FedhpError
from fedhp.exports.exporting import checked_formats, export
from fedhp.records.load import has_finished

_logger = logging.getLogger("fedhp")


def check_format(name: str) -> None:
    """Checks that a format is known and its packages are installed, before any run.

    Raises:
        ExportError: If there is no such format.
        MissingExtraError: If what it needs is not installed.
    """
    checked_formats([name])


def export_all(root: Path, entries: Sequence[Entry], name: str) -> None:
    """Exports the networks of all finished runs, in float32, one after another: times are of one machine.

    Those that are there from before are exported anew, for the same reason. One that cannot be exported is
    told of.

    Args:
        root: The comparison's folder.
        entries: Its runs.
        name: A format.
    """
    for entry in entries:
        folder = root / entry.folder
        if not has_finished(folder):
            continue
        try:
            failures = export(folder, [name]).failures.values()
        except FedhpError as error:
            failures = [str(error)]
        for failure in failures:
            _logger.warning("%s is not exported: %s", entry.folder, failure)
