"""The files that the network of a run was exported to, as `fedhp export` left word of them in the record."""

import json
from typing import Any, NamedTuple

from fedhp.records.result import RunResult
from fedhp.sizes import format_size


class ExportedRow(NamedTuple):
    """A file, as texts."""

    name: str
    takes: str
    size: str
    time: str
    agreement: str
    accuracy: str


def exported(run: RunResult) -> list[ExportedRow]:
    """Returns a row for each file in the record's folder ``export``; none where none can be read there."""
    try:
        facts = json.loads((run.folder / "export" / "export.json").read_text(encoding="utf-8"))
        return [_row(file) for file in facts["files"]]
    except (OSError, ValueError, TypeError, LookupError):
        return []


def _row(file: dict[str, Any]) -> ExportedRow:
    taken, found = file["input"], file["agreement"]
    return ExportedRow(
        str(file["name"]),
        f"{taken['dtype']}, {' x '.join(f'{size}' for size in taken['shape'])}",
        format_size(file["num_bytes"]),
        f"{file['microseconds']:.1f} µs",
        f"{100 * found['agreement']:.1f}% of {found['num_samples']:,}",
        f"{100 * found['accuracy']:.1f}%",
    )
