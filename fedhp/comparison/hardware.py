"""What the networks of a comparison take on hardware, by the files that they were exported to."""

from typing import Any

from fedhp.records.exported_files import read_files
from fedhp.records.result import RunResult
from fedhp.sweep.texts import Row

_KIBIBYTE = 1024


def figures(run: RunResult, name: str) -> Row:
    """Returns the time of one sample in microseconds, and the file's size in KiB; None where not known.

    Args:
        run: A run.
        name: The format of the file, which is in float32.
    """
    found = dict(read_files(run.folder / "export", _costs))
    return found.get((name, "float32"), {"latency_us": None, "file_kib": None})


def _costs(file: dict[str, Any]) -> tuple[tuple[str, str], Row]:
    costs = {"latency_us": float(file["microseconds"]), "file_kib": file["num_bytes"] / _KIBIBYTE}
    return (file["format"], file["dtype"]), costs
