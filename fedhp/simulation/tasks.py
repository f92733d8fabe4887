"""Calls of a function, each on a core of its own: on Ray, or one after the other in this process."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from fedhp.errors import MissingExtraError
from fedhp.simulation.signals import keeping_handlers
from fedhp.simulation.turn import TURN

if TYPE_CHECKING:
    from fedhp.scenario.schema import SimulationConfig


class Tasks(Protocol):
    """Runs calls and hands back what they return, in the order in which they end."""

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Takes a call of a function that a worker process can import."""
        ...

    def next_done(self) -> Any:
        """Waits for the next call that ends, and returns its result.

        Raises:
            LostTaskError: If the worker died over it.
        """
        ...


class LostTaskError(Exception):
    """A worker died over a call, whose first argument this error carries."""


class LocalTasks:
    """Runs each call when its result is asked for."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Takes a call."""
        self._waiting.append((function, arguments))

    def next_done(self) -> Any:
        """Makes the call that has waited longest."""
        function, arguments = self._waiting.popleft()
        return function(*arguments)


@contextmanager
def open_tasks(config: "SimulationConfig", num_tasks: int) -> Iterator[Tasks]:
    """Opens as many workers as ``simulation.num_workers`` says, but not more than there are calls.

    Raises:
        FedhpError: If the workers do not start.
        MissingExtraError: If workers are asked for and Ray is not installed.
    """
    if config.num_workers == 0:
        yield LocalTasks()
        return
    try:
        with keeping_handlers():  # an import that is cut short leaves half a Ray behind
            import ray  # noqa: F401
    except ImportError:
        raise MissingExtraError(
            "working in parallel (or set simulation.num_workers=0)", "ray", "sim"
        ) from None
    from fedhp.simulation.ray_tasks import open_ray_tasks

    with TURN, open_ray_tasks(config, num_tasks) as tasks:
        yield tasks
