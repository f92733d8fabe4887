"""What trains, while there is something to do: idle, it would hold nearly as much memory as the SuperNode."""

import logging
import subprocess
import sys
import time
from collections.abc import Mapping

from fedhp.deployment.supervisor import Output, end, how_it_ended, started

logger = logging.getLogger("fedhp.deployment")

_CLIENT = (sys.executable, "-m", "fedhp.deployment.client")
_IDLE_SECONDS = 60.0  # a run asks again sooner; its start takes seconds
# Seconds before a process that died over a message starts again; after the last, the message is given up.
_WAITS = (1, 2, 5, 10)


class Executor:
    """Has a client process there while a message waits for its answer, and for a while after.

    Flower's SuperNode waits for an answer for as long as it takes, and meanwhile receives nothing: a process
    that dies before it took the message would keep the device from every later one.

    Args:
        environment: What it runs in, and what trains.
        output: Where it says what it says.
    """

    def __init__(self, environment: Mapping[str, str], output: Output) -> None:
        self._environment, self._output = environment, output
        self._process: subprocess.Popen[bytes] | None = None
        self._address = ""
        self._is_awaited, self._is_sent, self._failures = False, False, 0
        self._due = 0.0  # when it is to start where it is awaited, or to end where it is not

    def begin(self, port: int) -> None:
        """Turns to a SuperNode that starts; the message of the one before is lost with it.

        Args:
            port: Where it is asked, on the loopback.
        """
        self.close()
        self._address, self._is_awaited, self._failures = f"127.0.0.1:{port}", False, 0

    def wake(self) -> None:
        """Has it there for a message, unless one before was given up, which the server is to learn first."""
        if self._has_hope:
            self._is_awaited, self._is_sent, self._failures, self._due = True, False, 0, 0.0
            self.look()

    def sends(self) -> None:
        """Knows that its answer is on its way: what it has not handed over yet, no other has."""
        self._is_sent = True

    def rest(self) -> None:
        """Lets it go, unless it is asked for again soon."""
        self._is_awaited, self._due = False, time.monotonic() + _IDLE_SECONDS

    def give_up(self) -> None:
        """Leaves no hope for a message that the server waits for: it hears so where the SuperNode goes."""
        self._is_awaited, self._failures = False, len(_WAITS) + 1

    def look(self) -> bool:
        """Sees after it, about once a second; says whether there is hope for the message that is waiting."""
        if self._process is not None and self._process.poll() is not None:
            cause = f"the process that trains {how_it_ended(self._process.returncode)}"
            self.close()
            if self._is_awaited:
                self._failed(cause)
        if time.monotonic() >= self._due:
            if not self._is_awaited:
                self.close()
            elif self._process is None:
                self._start()
        return self._has_hope

    @property
    def _has_hope(self) -> bool:
        return self._failures <= len(_WAITS)

    def close(self) -> None:
        """Ends it."""
        if self._process is not None:
            end(self._process)
            self._process = None

    def _start(self) -> None:
        try:
            self._process = started([*_CLIENT, self._address], self._environment, self._output)
        except OSError as error:  # such as memory that ran out
            self._failed(f"the process that trains does not start: {error}")

    def _failed(self, cause: str) -> None:
        self._failures += 1
        if self._is_sent or not self._has_hope:
            logger.warning("%s; the message is given up", cause)
            self.give_up()
            return
        wait = _WAITS[self._failures - 1]
        self._due = time.monotonic() + wait
        logger.warning("%s before it answered; it starts again in %g s", cause, wait)
