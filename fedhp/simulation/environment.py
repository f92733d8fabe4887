"""What a worker's process has: time to start, its environment, the bytes that it may have in hand."""

import logging
import os
import site
import sys
import sysconfig

from fedhp.threads import threads_of_a_process

SLICE_BYTES = 8 * 2**20
# Within which it has to be ready; to import torch from a disk far away takes a minute.
START_SECONDS = 180.0

# Tells a worker from which level on it is to say what fedhp logs: its clients' tracebacks, in debugging.
LOG_LEVEL = "FEDHP_LOG_LEVEL"


def worker_environment(num_threads: int) -> dict[str, str]:
    """Returns a worker's environment.

    The last three are for GNU's allocator: memory of a chunk's replies is kept for the next chunk's rather
    than given back and faulted in again, and Ray's many threads share few pools. Elsewhere they do nothing.
    """
    return {
        "PYTHONPATH": os.pathsep.join(_own_path()),
        LOG_LEVEL: str(logging.getLogger("fedhp").getEffectiveLevel()),
        **threads_of_a_process(num_threads),
        "MKL_NUM_THREADS": str(num_threads),
        "MALLOC_ARENA_MAX": "2",
        "MALLOC_MMAP_THRESHOLD_": str(4 * SLICE_BYTES),
        "MALLOC_TRIM_THRESHOLD_": str(4 * SLICE_BYTES),
    }


def _own_path() -> list[str]:
    """Returns this process's path without its interpreter's own, which workers have too."""
    theirs = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), *site.getsitepackages())
    entries = (os.path.abspath(entry) for entry in sys.path)
    ours = (entry for entry in entries if os.path.isdir(entry) and not entry.startswith(theirs))
    return list(dict.fromkeys(ours))
