"""The files that the network of a run was exported to, as `fedhp export` left word of them in the record."""

from functools import partial
from typing import Any, NamedTuple

from fedhp.records.exported_files import read_files
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
    """Returns a row for each file in the record's folders ``export``, and those of compressed ones.

    None of a folder that cannot be read.
    """
    folders = sorted(facts.parent for facts in run.folder.glob("export*/export.json"))
    return [row for folder in folders for row in read_files(folder, partial(_row, folder.name))]


def _row(folder: str, file: dict[str, Any]) -> ExportedRow:
    taken, found = file["input"], file["agreement"]
    return ExportedRow(
        f"{folder}/{file['name']}",
        f"{taken['dtype']}, {' x '.join(f'{size}' for size in taken['shape'])}",
        format_size(file["num_bytes"]),
        f"{file['microseconds']:.1f} µs",
        f"{100 * found['agreement']:.1f}% of {found['num_samples']:,}",
        f"{100 * found['accuracy']:.1f}%",
    )
