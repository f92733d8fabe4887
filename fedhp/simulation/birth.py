"""The process of a nursery: imports what clients need, then forks a worker whenever it is asked to.

It starts no thread, so that nothing is lost in a fork; what it has imported, its workers share.
"""

import gc
import os
import signal
import socket
import sys
from contextlib import suppress

from fedhp.references import resolve
from fedhp.simulation.lines import Line
from fedhp.simulation.nursery import BEAR, REQUEST
from fedhp.simulation.serving import serve


def main(descriptor: int, app: str) -> None:
    """Does what the nursery asks for, until that is gone."""
    control = socket.socket(fileno=descriptor)
    gc.disable()  # or the collector looks through what is imported again and again
    with suppress(Exception):  # the workers will say what is wrong with it
        resolve(app)
    gc.collect()
    gc.freeze()  # or the collector writes to every page that is shared
    gc.enable()
    workers: set[int] = set()
    while request := _asked(control):
        kind, worker, line = request
        if kind == BEAR:
            worker = os.fork()
            if not worker:
                control.close()
                serve(Line(socket.socket(fileno=line)))
            os.close(line)
            workers.add(worker)
        else:
            workers.remove(worker)
            _end(worker)
        control.sendall(REQUEST.pack(kind, worker))
    for worker in workers:
        _end(worker)


def _asked(control: socket.socket) -> tuple[bytes, int, int] | None:
    """Returns what is asked for, of which worker, and the descriptor that came along; None at the end."""
    data, descriptors, _, _ = socket.recv_fds(control, REQUEST.size, 1)
    if not data:
        return None
    kind, worker = REQUEST.unpack(data)
    return kind, worker, descriptors[0] if descriptors else -1


def _end(worker: int) -> None:
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
