"""Calls of a function, each on a core of its own: on Ray, or one after the other in this process."""

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol


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
