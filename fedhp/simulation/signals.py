"""Signals that wait until something is done that cannot be left half done."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def keeping_handlers(hold: bool = True) -> Iterator[None]:
    """Gives handlers of signals back when the block ends, whoever takes them meanwhile.

    Args:
        hold: Whether signals wait until then. A Ray that starts cannot be left half done, nor can the import
            of a large library; one that is joined can, and may keep this process waiting for minutes.
    """
    arrived: list[int] = []
    handlers: dict[int, Callable[..., object]] = {}
    if threading.current_thread() is threading.main_thread():
        for number in signal.valid_signals():
            if callable(handler := signal.getsignal(number)):
                handlers[number] = handler
                if hold:
                    signal.signal(number, lambda number, _: arrived.append(number))
    try:
        yield
    except SystemExit:  # Ray's answer to SIGTERM
        arrived.extend({signal.SIGTERM} & handlers.keys())
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(arrived):  # a handler that raises ends it
            signal.raise_signal(number)
