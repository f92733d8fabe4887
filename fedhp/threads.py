"""Cores, and torch's threads: set before anything is built, as more than one rarely pay on small networks.

Processes beside each other, each with all of the machine's threads, take twenty times as long as with one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def cores() -> int:
    """Returns how many cores this process may run on: those of its affinity, where the system has one."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Within it, torch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
