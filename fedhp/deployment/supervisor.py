"""A process that is kept going: started again when it ends, and ended with this one."""

import codecs
import ctypes
import logging
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from fedhp.errors import DeploymentError, FedhpError

logger = logging.getLogger("fedhp.deployment")

_LOOK_SECONDS = 1.0
_PATIENCE_SECONDS = 15.0  # for a process to end by itself once it was asked to
_STEADY_SECONDS = 60.0  # after which a process that ends begins with the shortest wait again
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG, of Linux
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def keep_going(
    begin: Callable[[], Sequence[str]],
    environment: Mapping[str, str],
    hear: Callable[[str], None],
    output: "Output",
    waits: Sequence[float] = (1, 2, 5, 10),
    look: Callable[[], bool] = lambda: True,
    away: float = 0.0,
) -> None:
    """Runs a command, and again whenever it ends; until a signal ends this process, and it with it.

    Args:
        begin: Returns the command; called before each start.
        environment: What it runs in.
        hear: Called with each line that it says, without colours.
        output: Where it says them.
        waits: Seconds before it starts again: after the first end, the second, ...; the last from then on.
        look: Called about once a second; where it says no, the command is ended, and starts again.
        away: Seconds for which it then stays away at least.

    Raises:
        DeploymentError: On Windows, whose pipes and signals are others.
    """
    failures = 0
    while True:
        words = begin()
        name = os.path.basename(words[0])
        if os.name != "posix":
            raise DeploymentError(f"on this system, start {name} yourself: docs/deployment.md")
        since = time.monotonic()
        how, has_hope = _attended(words, environment, output, hear, look)
        failures = 0 if time.monotonic() - since > _STEADY_SECONDS else failures
        wait = max(waits[min(failures, len(waits) - 1)], 0.0 if has_hope else away)
        failures += 1
        logger.warning("%s %s; it starts again in %g s", name, how, wait)
        time.sleep(wait)


def _attended(
    words: Sequence[str],
    environment: Mapping[str, str],
    output: "Output",
    hear: Callable[[str], None],
    look: Callable[[], bool],
) -> tuple[str, bool]:
    """Runs a command to its end; says how it ended, and whether not because ``look`` said no."""
    has_hope = True
    try:
        with running(words, environment, output) as process:
            for lines in output.said(process):
                for line in lines:
                    hear(line)
                if not (has_hope := look()):
                    break
        return how_it_ended(process.returncode), has_hope
    except (FedhpError, OSError) as error:  # a disk that is full, memory that ran out: it may pass
        return f"cannot go on: {error}", has_hope


class Output:
    """A pipe into which processes say what they have to say."""

    def __init__(self) -> None:
        self._read, self.write = os.pipe()
        os.set_blocking(self._read, False)

    def said(self, process: "subprocess.Popen[bytes]") -> Iterator[list[str]]:
        """Yields the lines that are said until a process ends, and none each second in which none is.

        Others may hold the pipe for longer.
        """
        rest, decoder = "", codecs.getincrementaldecoder("utf-8")("replace")
        with selectors.DefaultSelector() as ready:
            ready.register(self._read, selectors.EVENT_READ)
            while True:
                is_over = process.poll() is not None
                if ready.select(0 if is_over else _LOOK_SECONDS):
                    *lines, rest = (rest + decoder.decode(os.read(self._read, 1 << 16))).split("\n")
                    yield [_plain(line) for line in lines]
                elif is_over:
                    rest += decoder.decode(b"", final=True)
                    yield [_plain(rest)] if rest else []
                    return
                else:
                    yield []

    def close(self) -> None:
        """Closes the pipe."""
        os.close(self._read)
        os.close(self.write)


@contextmanager
def running(
    words: Sequence[str], environment: Mapping[str, str], output: Output
) -> Iterator["subprocess.Popen[bytes]"]:
    """Runs a command meanwhile; however the block or this process ends, so does the command."""
    process = started(words, environment, output)
    try:
        yield process
    finally:
        end(process)


def started(
    words: Sequence[str], environment: Mapping[str, str], output: Output
) -> "subprocess.Popen[bytes]":
    """Starts a command, which ends when this process does."""
    # In a session of its own, or Ctrl-C reaches it before this process has a say.
    return subprocess.Popen(
        words,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output.write,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process, politely first, and what is left then of what it started in its session.

    To be called once: the number of a session that has ended may be another's.
    """
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE_SECONDS)
    with suppress(ProcessLookupError, PermissionError):  # nobody is left, in the words of Linux and of macOS
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    """Has the kernel end the process that is about to start when its parent is killed."""
    assert _libc is not None
    _libc.prctl(_DIE_WITH_PARENT, signal.SIGTERM)


def _plain(line: str) -> str:
    return _COLOURS.sub("", line).rstrip()


def how_it_ended(status: int) -> str:
    """Says how a process ended, by its status."""
    if status >= 0:
        return f"ended with exit status {status}"
    return f"was ended by {signal.Signals(-status).name}"
