"""Whose hand writes a simulation's Flower messages.

``Message(...)`` reads the run and the node it comes from off a process-wide class, Flower's
``TaskIdentity``. Its runtimes set that; a simulation is a runtime of its own, as the client process of a
device is (`fedhp.deployment.client`), so both have to set it too, and there is no public way yet.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from flwr.supercore.task_identity import TaskIdentity

RUN_ID = 1
SERVER_NODE_ID = 0
_TASK_ID = 1


@contextmanager
def acting_as(node_id: int) -> Iterator[None]:
    """Lets messages made inside the block come from ``node_id`` in the simulated run."""
    before = (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = _TASK_ID, RUN_ID, node_id
    try:
        yield
    finally:
        # The public setters refuse None, which is what stands there before any runtime has begun.
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before
