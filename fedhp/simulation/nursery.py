"""A process that has imported what clients need, and of which workers are born: each takes a fork."""

import logging
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from fedhp.errors import FedhpError
from fedhp.simulation.environment import START_SECONDS, worker_environment
from fedhp.simulation.lines import Line

# Elsewhere, a process that has loaded large libraries cannot be counted on to survive a fork.
AVAILABLE = sys.platform == "linux"
# What is asked of the process, and of which worker; it answers alike, with the worker that was born.
REQUEST = struct.Struct("!cq")
BEAR, END = b"b", b"e"
_PATIENCE_SECONDS = 60.0
# Workers that reserve GPUs are Ray's.
_NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


class Nursery:
    """Starts the process, which imports while this one goes on.

    It forms a process group of its own: a signal to ours, as terminals and service managers send it, is ours
    to deal with. It ends when this process does, however that ends, and its workers with it.

    Args:
        app: The app that imports all that clients need, as ``"module:attr"``.
        environment: See `fedhp.simulation.environment.worker_environment`.

    Attributes:
        made_for: App and environment.
    """

    def __init__(self, app: str, environment: dict[str, str]) -> None:
        self.made_for = (app, environment)
        self._workers: set[int] = set()
        self._control, theirs = socket.socketpair()
        self._control.settimeout(START_SECONDS)
        heard = logging.getLogger("fedhp").isEnabledFor(logging.DEBUG)
        output = None if heard else subprocess.DEVNULL
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fedhp.simulation.birth", str(theirs.fileno()), app],
                env={**os.environ, **environment, **_NO_GPU},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )

    def bear(self) -> tuple[int, Line]:
        """Starts a worker; returns its process and the line to it.

        Raises:
            FedhpError: If the process that starts workers is gone.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                worker = self._ask(BEAR, 0, [theirs.fileno()])
        except OSError as error:
            ours.close()
            raise FedhpError(
                f"the process that starts workers is gone ({error}): 'fedhp run ... --debug' shows what it "
                f"says, and simulation.num_workers=0 does without"
            ) from None
        self._workers.add(worker)
        ours.settimeout(_PATIENCE_SECONDS)  # a client that lets no other thread run stops its worker's line
        return worker, Line(ours)

    def end(self, worker: int) -> None:
        """Ends a worker, unless it was ended already, and waits until it is gone."""
        if worker in self._workers:
            self._workers.remove(worker)
            with suppress(OSError):
                self._ask(END, worker)

    def close(self) -> None:
        """Ends the process and its workers, and waits until they are gone."""
        self._control.close()
        if not self._workers:  # it may still be importing
            self._process.kill()
        try:
            self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, request: bytes, worker: int, descriptors: Sequence[int] = ()) -> int:
        socket.send_fds(self._control, [REQUEST.pack(request, worker)], descriptors)
        answer = self._control.recv(REQUEST.size, socket.MSG_WAITALL)
        if len(answer) < REQUEST.size:
            raise ConnectionResetError("it has ended")
        return REQUEST.unpack(answer)[1]


_waiting: dict[int, Nursery] = {}  # by thread: each has a run of its own


@contextmanager
def begun_early(app: str, num_threads: int, wanted: bool = True) -> Iterator[None]:
    """Has what workers need be imported within the block, where `open_nursery` finds it done.

    Args:
        app: The app that imports all that clients need, as ``"module:attr"``.
        num_threads: Torch threads of a worker.
        wanted: Whether to do so; if not, what was begun around the block ends.
    """
    environment, thread = worker_environment(num_threads), threading.get_ident()
    if not (wanted and thread in _waiting and _waiting[thread].made_for == (app, environment)):
        _end_waiting()
        if wanted and AVAILABLE:
            _waiting[thread] = Nursery(app, environment)
    try:
        yield
    finally:
        _end_waiting()


def _end_waiting() -> None:
    if waiting := _waiting.pop(threading.get_ident(), None):
        waiting.close()


@contextmanager
def open_nursery(app: str, num_threads: int) -> Iterator[Nursery]:
    """Opens one, or takes the one that was begun early."""
    with begun_early(app, num_threads):
        nursery = _waiting.pop(threading.get_ident())
        try:
            yield nursery
        finally:
            nursery.close()
