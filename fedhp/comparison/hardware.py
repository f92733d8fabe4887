"""What the networks of a comparison take on hardware, by the files that they were exported to."""

import json

from fedhp.records.result import RunResult
from fedhp.sweep.texts import Row

_KIBIBYTE = 1024


def figures(run: RunResult, name: str) -> Row:
    """Returns the time of one sample in microseconds, and the file's size in KiB; None where not known."""
    none = {"latency_us": None, "file_kib": None}
    try:
        facts = json.loads((run.folder / "export" / "export.json").read_text(encoding="utf-8"))
        for file in facts["files"]:
            if (file["format"], file["dtype"]) == (name, "float32"):
                return {
                    "latency_us": float(file["microseconds"]),
                    "file_kib": file["num_bytes"] / _KIBIBYTE,
                }
    except (OSError, ValueError, TypeError, LookupError):
        return none
    return none
