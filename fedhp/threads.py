"""Torch's threads: set before anything is built, since more than one rarely pay on networks this small.

Processes beside each other, each with all of the machine's threads, take twenty times as long as with one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Within it, torch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
