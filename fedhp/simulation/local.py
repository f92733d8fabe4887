"""Clients in the server's own process: no Ray, no interruption, good for debugging."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

from flwr.app import RecordDict

from fedhp.simulation.tasks import Apps, Task


class LocalExecutor:
    """Runs one task after the other, here.

    A client that takes too long cannot be interrupted; it fails after the fact.
    """

    def __init__(self, apps: Apps) -> None:
        self._apps = apps

    def run(self, tasks: Sequence[Task], seconds: float) -> Iterator[Any]:
        """See `fedhp.simulation.grid.Executor`.

        Clients get copies, as in a worker: they must not reach into the server's values. Arrays hold
        immutable bytes, which deepcopy shares.
        """
        contents: dict[int, RecordDict] = {}
        for task in tasks:
            key = id(task.content)
            if key not in contents:
                contents[key] = deepcopy(task.content)
            yield task.job(0).copied().run(self._apps, seconds, contents[key])
