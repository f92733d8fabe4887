"""A relay between a device and its server that counts what passes: bytes as they are on the wire."""

import contextlib
import selectors
import socket
import threading
from collections import Counter


class CountingRelay:
    """Listens on the loopback, passes on both ways, and counts.

    Args:
        port: Of the server, on the loopback.

    Attributes:
        port: Where it listens.
        counted: Bytes ``up`` to the server and ``down`` from it.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.counted = Counter[str]()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stops listening."""
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._listening.accept()
                threading.Thread(target=self._pass_on, args=[link], daemon=True).start()

    def _pass_on(self, link: socket.socket) -> None:
        with link, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._target)) as far:
            ways = {link: (far, "up"), far: (link, "down")}
            with selectors.DefaultSelector() as ready:
                for end in ways:
                    ready.register(end, selectors.EVENT_READ)
                while True:
                    for key, _ in ready.select():
                        source = link if key.fileobj is link else far
                        target, way = ways[source]
                        if not (chunk := source.recv(1 << 16)):
                            return
                        target.sendall(chunk)
                        self.counted[way] += len(chunk)
