"""What loading a file and running it takes of memory: measured in a process of its own."""

import json
import logging
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from fedhp.costs.machine import forget_peak, peak_above, resident_memory
from fedhp.exports.formats import FORMATS
from fedhp.exports.inputs import random_sample
from fedhp.threads import threads_of_a_process

_logger = logging.getLogger("fedhp")

_CALLS = 5


def memory_of(path: Path, format_name: str, threads: int) -> int | None:
    """Returns by how many bytes a fresh process grows at most as it loads and runs a file.

    The runtime has been imported before. Its own first use is in it, which is most of it for a small network.

    Returns:
        None where the system does not tell, or the process ended early.
    """
    code = f"from {__name__} import tell; tell({str(path)!r}, {format_name!r}, {threads})"
    environment = {**os.environ, **threads_of_a_process(threads)}
    # -P: of modules that lie where the command was given, none takes the place of fedhp's own.
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        _logger.debug("the memory of %s: %s", path, done.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def tell(path: str, format_name: str, threads: int) -> None:
    """Loads a file, runs it, and prints by how much that made this process grow, as JSON."""
    form = FORMATS[format_name]
    import_module(form.runtime)
    before = resident_memory()
    has_peak = forget_peak()
    opened = form.loaded(Path(path), threads)
    for _ in range(_CALLS):
        opened.runs(random_sample(opened))
    after, above = resident_memory(), peak_above() if has_peak else 0
    grown = None if before is None or after is None else max(0, after + above - before)
    sys.stdout.write(json.dumps(grown) + "\n")
