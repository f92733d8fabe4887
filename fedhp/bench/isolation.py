"""Measuring in a process of its own, so that nothing inherits another measurement's peak."""

import multiprocessing
import os
from collections.abc import Callable, Mapping
from typing import Any


def isolated(
    function: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] | None = None
) -> Any:
    """Returns what a function that can be imported returns, called in a fresh process.

    Args:
        function: The function.
        arguments: Its arguments, which are pickled.
        environment: Variables of the fresh process beside this one's: libraries read theirs when they start.

    Raises:
        EOFError: If the process died.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, function, arguments))
    before = dict(os.environ)
    os.environ.update(environment or {})
    try:
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


def _answer(pipe: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    pipe.send(function(*arguments))
