"""What a device computes with, and who looks after its memory meanwhile."""

import logging
from functools import cache
from typing import TYPE_CHECKING

from fedhp.bounds import shown
from fedhp.errors import NeedsTorchError, ScenarioError
from fedhp.threads import RUNTIMES, TORCH, has_torch, usual_runtime

from .device import NodeConfig, num_threads, reserve_bytes

if TYPE_CHECKING:
    from fedhp.training.memory_guard import MemoryGuard

# Flower's own: the only logger that a SuperNode shows.
_log = logging.getLogger("flwr")


def runtime_for(node: NodeConfig) -> str:
    """Returns what a device trains with: PyTorch, unless it is not installed or NumPy is asked for.

    Raises:
        ScenarioError: If the node configuration names another.
        NeedsTorchError: If it names PyTorch, which is not installed.
    """
    name = node.get("runtime", usual_runtime())
    if name not in RUNTIMES:
        raise ScenarioError(
            f"node configuration: runtime must be one of {', '.join(RUNTIMES)}, got {shown(name)}"
        )
    if name == TORCH and not has_torch():
        raise NeedsTorchError("node configuration: runtime = torch")
    return name


def keep_to_threads(node: NodeConfig) -> None:
    """Sets torch's threads, before anything is built. Simulated workers set their own.

    Those of NumPy are as many as ``OPENBLAS_NUM_THREADS`` says when it is imported.
    """
    if not node.get("fedhp-simulation") and runtime_for(node) == TORCH:
        import torch

        torch.set_num_threads(num_threads(node))


def memory_guard(node: NodeConfig) -> "MemoryGuard | None":
    """Returns what looks after memory in one training; None in a simulation, and where it is off."""
    reserve = reserve_bytes(node)
    if node.get("fedhp-simulation") or reserve is None:
        return None
    from fedhp.costs.memory_watch import MemoryWatch
    from fedhp.costs.this_process import ThisProcess
    from fedhp.training.memory_guard import MemoryGuard

    memory = ThisProcess()
    if memory.left() is None:
        _say_unseen()
    return MemoryGuard(MemoryWatch(memory, reserve))


@cache
def _say_unseen() -> None:
    _log.warning("this system does not say what memory is left: nothing watches it while this device trains")
