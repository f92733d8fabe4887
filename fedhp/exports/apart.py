"""Measuring in a process of its own, which ends alone, whatever a file has its runtime do."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fedhp.bounds import one_line
from fedhp.errors import ExportError, FedhpError
from fedhp.exports.measured import Measurement
from fedhp.exports.reading import read_measurement
from fedhp.simulation.process_group import OwnGroup
from fedhp.threads import threads_of_a_process

_ANSWER, _FAILURE = "measured.json", "failure.txt"
_MOST_BYTES = 2**18


def measure_apart(
    folder: Path, files: Sequence[str], against: str | None, *, threads: int, seconds: float, limit: float
) -> Measurement:
    """Measures files as `fedhp.exports.measuring.measure` does, in a process that may fail.

    It, and what it starts, ends with this process or at the limit.

    Args:
        folder: Where the files lie, and nothing else; the process writes what it has found there.
        files: Their names.
        against: The name of that which all are held against.
        threads: With how many threads each runs.
        seconds: How long each is timed, at least.
        limit: After how many seconds it is ended.

    Raises:
        ExportError: If the process was ended, by its runtime or at the limit, or could not measure.
        WireError: If what it wrote is no measurement.
    """
    if os.name != "posix":
        raise ExportError("on this system, no process is measured in that ends with this one")
    asked = json.dumps([list(files), against, threads, seconds])
    # -P: nothing that lies in the folder takes the place of a module.
    command = [sys.executable, "-P", "-c", f"from {__name__} import tell; tell()", asked]
    none, group = subprocess.DEVNULL, OwnGroup()
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **threads_of_a_process(threads)},
            stdin=none,
            stdout=none,
            stderr=none,
            process_group=group.group,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ExportError(f"measuring took more than {limit:g} s, and was ended") from None
    finally:
        group.end()
    if done.returncode:
        raise ExportError(f"the process that measures {_how(done.returncode)}")
    if failure := _read(folder / _FAILURE):
        raise ExportError(one_line(failure))
    return read_measurement(_read(folder / _ANSWER))


def tell() -> None:
    """Measures what this process was told of, in the folder that it is in, and writes what it has found."""
    from fedhp.exports.measuring import measure

    files, against, threads, seconds = json.loads(sys.argv[1])
    try:
        found = measure(files, against, threads=threads, seconds=seconds)
    except FedhpError as error:
        Path(_FAILURE).write_text(str(error), encoding="utf-8")
        return
    Path(_ANSWER).write_text(json.dumps(found.to_dict()), encoding="utf-8")


def _how(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"


def _read(path: Path) -> str:
    """Returns what a process has written that may not be itself any more; empty where there is nothing."""
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return ""
