"""What every command does around its work: logging for a terminal, a clean stop, readable errors."""

import _thread
import io
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from fedhp.errors import FedhpError, needing_torch

# What a command takes that is about a scenario.
ScenarioArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SCENARIO] [KEY=VALUE]...",
        help="A scenario's name or YAML file (default: quickstart), then overrides.",
        show_default=False,
    ),
]

_INPUT_REFUSED = 2
_STOPS = [one for one in signal.Signals if one.name in ("SIGINT", "SIGTERM", "SIGHUP")]  # not all on Windows
_IMPATIENCE_SECONDS = 5.0
_AGAIN_SECONDS = 0.01


class _Stopped(KeyboardInterrupt):
    """Of its own kind: after a bare KeyboardInterrupt in an ``exec``, Python ends itself by SIGINT."""


class _Stop:
    """A signal handler that stops the process once, however often it is called at a time.

    What follows within seconds is the same wish again: it must not cut short the cleaning up that the first
    call began, or the record stays open and Ray's processes stay alive.

    Attributes:
        signal: Which signal stopped the process. Not told by the exception, which Ray replaces by its own.
    """

    def __init__(self) -> None:
        self.signal = signal.SIGINT
        self._patient_until = -math.inf

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Stops what runs, unless it is just being stopped."""
        now = time.monotonic()
        if now <= self._patient_until:
            return
        self.signal = signal.Signals(number)
        if _runs(_Stop.insist, frame):
            self._come_again()
            return
        self._patient_until = now + _IMPATIENCE_SECONDS
        raise _Stopped

    def listen(self) -> None:
        """Handles the signals from now on, but for those that nohup or a script's job ignores."""
        for number in _STOPS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self)
        sys.unraisablehook = self.insist

    def insist(self, lost: "sys.UnraisableHookArgs") -> None:
        """Stops again a moment later where Python dropped the exception, as it does in destructors.

        They run at any time: after every import, and wherever a result of Ray's is let go.
        """
        if not isinstance(lost.exc_value, _Stopped):
            sys.__unraisablehook__(lost)
            return
        self._patient_until = -math.inf
        self._come_again()

    def _come_again(self) -> None:
        def come() -> None:
            time.sleep(_AGAIN_SECONDS)
            if hasattr(signal, "pthread_kill"):
                signal.pthread_kill(threading.main_thread().ident or 0, self.signal)
            else:  # on Windows, where nothing interrupts what the main thread waits for
                _thread.interrupt_main(self.signal)

        # No thread of `threading`: this may run while the main thread holds one of that module's locks.
        _thread.start_new_thread(come, ())

    def retire(self) -> None:
        """Lets the interpreter end undisturbed: it gives signals their default back, which would kill it."""
        for number in _STOPS:
            if signal.getsignal(number) is self:
                signal.signal(number, signal.SIG_IGN)


def _runs(function: Callable[..., object], frame: FrameType | None) -> bool:
    """Says whether a frame, or one that it was called from, is the function's."""
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None


_stop = _Stop()


def stop_cleanly() -> None:
    """Makes SIGTERM and SIGHUP end this process as Ctrl-C does: everything is closed first."""
    _stop.listen()


class _Output(io.FileIO):
    """An output whose reader may leave, as ``head`` does: from then on, what is written goes nowhere."""

    def write(self, data: Any) -> int | None:
        """Writes bytes."""
        try:
            return super().write(data)
        except BrokenPipeError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.fileno())
            return super().write(data)


def outlive_readers() -> None:
    """Lets this process go on when nobody reads its output any more: a run is for its record."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None:  # as it is where the shell has closed it
            raw = _Output(stream.fileno(), "wb", closefd=False)
            buffer = io.BufferedWriter(raw)
            lasting = io.TextIOWrapper(buffer, stream.encoding, stream.errors, line_buffering=True)
            setattr(sys, name, lasting)


class OutputHandler(logging.StreamHandler):
    """Logs to what is the standard output at the time.

    Tests and notebooks exchange it and close what they put in its place, which a handler outlives.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        """The standard output."""
        return sys.stdout

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a line; nothing where the shell has closed the output."""
        if sys.stdout is not None:
            super().emit(record)


@contextmanager
def readable_errors(debug: bool = False) -> Iterator[None]:
    """Sets up logging, and ends with one readable error and exit code 2 where input is refused.

    A signal ends it with 128 and its number, as shells have it: 130 after Ctrl-C, 143 after SIGTERM.

    Args:
        debug: Let tracebacks through and show everything that is logged.
    """
    _set_up_logging(debug)
    try:
        with needing_torch(extra="server"):  # a device's commands say what theirs is
            yield
    except KeyboardInterrupt:
        cause = "" if _stop.signal == signal.SIGINT else f" by {_stop.signal.name}"
        Console(stderr=True).print(f"interrupted{cause}", style="yellow")
        _stop.retire()
        raise typer.Exit(128 + _stop.signal) from None
    except FedhpError as error:
        _refuse(str(error), debug)
    except OSError as error:  # a full disk, a folder that is gone: of the machine, and none of our bugs
        _refuse(f"{type(error).__name__}: {error}", debug)
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        _refuse("this machine has not enough memory for that; choose a smaller model, batch or data", debug)


def _lacks_memory(error: Exception) -> bool:
    """Says whether memory could not be had, which torch says in its own way: on the CPU by text alone."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    return "MemoryError" in kinds or "OutOfMemoryError" in kinds or "can't allocate memory" in str(error)


def _refuse(cause: str, debug: bool) -> NoReturn:
    if debug:
        Console(stderr=True).print_exception()
    # A cause may quote what others wrote, a folder's name or a device's: none of it is to reach the terminal.
    visible = "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in cause)
    Console(stderr=True, soft_wrap=True).print(
        f"[bold red]error:[/bold red] {escape(visible)}", highlight=False, emoji=False
    )
    raise typer.Exit(_INPUT_REFUSED) from None


def _set_up_logging(debug: bool) -> None:
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[OutputHandler()])
    logging.getLogger("fedhp").setLevel(logging.DEBUG if debug else logging.INFO)
