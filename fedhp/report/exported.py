"""The files that the network of a run was exported to, as `fedhp export` left word of them in the record."""

from functools import partial
from typing import Any, NamedTuple

from fedhp.records.exported_files import packed_bytes, read_files
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
    packed: str


_HEADING = ExportedRow("file", "takes", "size", "time", "answers as the network", "accuracy", "when packed")


def exported(run: RunResult) -> list[tuple[str, ...]]:
    """Returns a table of the files in the record's folders ``export``, and those of compressed ones.

    Its heading comes first. The last column is left out where nothing is packed; nothing is told of a folder
    that cannot be read, and there is no table without files.
    """
    folders = sorted(facts.parent for facts in run.folder.glob("export*/export.json"))
    rows = [
        row
        for folder in folders
        for row in read_files(folder, partial(_row, folder.name, packed_bytes(folder)))
    ]
    columns = len(_HEADING) if any(row.packed for row in rows) else len(_HEADING) - 1
    return [row[:columns] for row in (_HEADING, *rows)] if rows else []


def _row(folder: str, packed: int | None, file: dict[str, Any]) -> ExportedRow:
    taken, found = file["input"], file["agreement"]
    return ExportedRow(
        f"{folder}/{file['name']}",
        f"{taken['dtype']}, {' x '.join(f'{size}' for size in taken['shape'])}",
        format_size(file["num_bytes"]),
        f"{file['microseconds']:.1f} µs",
        f"{100 * found['agreement']:.1f}% of {found['num_samples']:,}",
        f"{100 * found['accuracy']:.1f}%",
        "" if packed is None else format_size(packed),
    )
