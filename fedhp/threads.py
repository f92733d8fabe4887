"""Cores, and torch's threads: set before anything is built, as more than one rarely pay on small networks.

Processes beside each other, each with all of the machine's threads, take twenty times as long as with one.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

# What trains.
TORCH, NUMPY = RUNTIMES = ("torch", "numpy")


def cores() -> int:
    """Returns how many cores this process may run on: those of its affinity, where the system has one."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def usual_runtime() -> str:
    """Returns what trains in a process by default: PyTorch, where it is installed."""
    return TORCH if has_torch() else NUMPY


def has_torch() -> bool:
    """Says whether PyTorch can be imported, without importing it: on a device that is most of its memory."""
    try:
        return importlib.util.find_spec("torch") is not None
    except ModuleNotFoundError:  # from whoever keeps it away
        return False


def threads_of_a_process(number: int) -> dict[str, str]:
    """Returns the variables that say with how many threads NumPy and PyTorch compute.

    They look when they are imported.
    """
    return {"OMP_NUM_THREADS": str(number), "OPENBLAS_NUM_THREADS": str(number)}


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Within it, torch computes with so many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
