"""Exported files on their way to devices that measure them, and what comes back.

Files go as arrays of bytes, named by their place and suffix: what they are called on the server's machine is
none of a device's business. What a device has measured comes as a text of JSON, which
`fedhp.exports.reading` reads.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedhp.bounds import MOST_THREADS, Bounds
from fedhp.errors import WireError
from fedhp.federation.arrays import read_array, write_array
from fedhp.federation.fields import read_config, read_field
from fedhp.sizes import format_size

MEASURE = "query.measure"  # Flower's type of such messages
# Not .pt2: loading one may run what it holds.
SUFFIXES = (".onnx", ".pte", ".tflite")
MOST_FILES = 32
MOST_BYTES = 64 * 2**20  # of all files: a device holds them in memory
MOST_SECONDS = 600.0  # of measuring; meanwhile, a device answers nothing else

_FILES, _TASK, _MEASURED = "files", "measure", "measured"
_LONGEST_ANSWER = 2**18
_BYTE = np.dtype(np.uint8)
_NAME = re.compile(r"[0-9]{1,2}\.[a-z0-9]{1,8}")
_SECONDS = Bounds(at_least=0.05, at_most=MOST_SECONDS)
_THREADS = Bounds(at_least=1, at_most=MOST_THREADS)


@dataclass(frozen=True)
class MeasuringTask:
    """What a device is asked to measure.

    Attributes:
        files: Their contents by name, such as ``0.onnx``.
        against: The name of that which all are held against; empty for none.
        threads: With how many each runs.
        seconds: How long each is timed, at least.
        limit: After how many seconds a device gives up.
    """

    files: Mapping[str, bytes]
    against: str
    threads: int
    seconds: float
    limit: float


def pack_measuring(task: MeasuringTask) -> RecordDict:
    """Packs files, with the SHA-256 of each."""
    arrays = {name: write_array(np.frombuffer(content, _BYTE)) for name, content in task.files.items()}
    told = ConfigRecord(
        {
            "names": list(task.files),
            "sizes": [len(content) for content in task.files.values()],
            "sha256": [sha256(content).hexdigest() for content in task.files.values()],
            "against": task.against,
            "threads": task.threads,
            "seconds": task.seconds,
            "limit": task.limit,
        }
    )
    return RecordDict({_FILES: ArrayRecord(arrays), _TASK: told})


def unpack_measuring(content: RecordDict) -> MeasuringTask:
    """Unpacks `pack_measuring`, and holds each file against its SHA-256.

    Raises:
        WireError: If a field is missing, of another type or out of its range, the files are too many or too
            large, or one did not come as it was sent.
    """
    told, arrays = read_config(content, _TASK), content.array_records.get(_FILES)
    names, sizes, digests = (read_field(told, key, list) for key in ("names", "sizes", "sha256"))
    if arrays is None or set(arrays) != set(names) or not len(names) == len(sizes) == len(digests):
        raise WireError("files: expected one array, size and SHA-256 of each name")
    check_amount(len(names), _total(sizes))
    if bad := [name for name in names if not (isinstance(name, str) and _NAME.fullmatch(name))]:
        raise WireError(f"files: expected names such as 0.onnx, got {bad[0]!r:.40}")
    files = {name: _file(name, arrays[name], size) for name, size in zip(names, sizes, strict=True)}
    for (name, file), digest in zip(files.items(), digests, strict=True):
        if sha256(file).hexdigest() != digest:
            raise WireError(f"{name}: its SHA-256 is not the one that was sent with it")
    against = read_field(told, "against", str)
    if against and against not in files:
        raise WireError(f"against: no such file was sent: {against!r:.40}")
    threads = _within("threads", read_field(told, "threads", int), _THREADS)
    seconds, limit = (_within(key, read_field(told, key, float), _SECONDS) for key in ("seconds", "limit"))
    return MeasuringTask(files, against, int(threads), seconds, limit)


def check_amount(number: int, num_bytes: int) -> None:
    """Refuses more than a device takes at a time.

    Raises:
        WireError: If the files are too many, or too large together.
    """
    if not 1 <= number <= MOST_FILES:
        raise WireError(f"a device measures 1 to {MOST_FILES} files at a time, got {number}")
    if num_bytes > MOST_BYTES:
        most, got = format_size(MOST_BYTES), format_size(num_bytes)
        raise WireError(f"a device takes files of {most} in all at a time, got {got}")


def pack_measured(text: str) -> RecordDict:
    """Packs what a device has measured."""
    return RecordDict({_MEASURED: ConfigRecord({"json": text})})


def unpack_measured(content: RecordDict) -> str:
    """Unpacks `pack_measured`, whose text is anything yet.

    Raises:
        WireError: If there is none, or one that is too long.
    """
    text = read_field(read_config(content, _MEASURED), "json", str)
    if len(text) > _LONGEST_ANSWER:
        raise WireError(f"json: expected at most {_LONGEST_ANSWER} characters, got {len(text)}")
    return text


def _total(sizes: list[Any]) -> int:
    if not all(type(size) is int and size > 0 for size in sizes):
        raise WireError(f"sizes: expected numbers of bytes, got {sizes!r:.80}")
    return sum(sizes)


def _file(name: str, array: Any, size: int) -> bytes:
    return read_array(name, array, (size,), _BYTE).tobytes()


def _within(key: str, value: float, bounds: Bounds) -> float:
    if flaw := bounds.amiss(value):
        raise WireError(f"{key} {flaw}")
    return value
