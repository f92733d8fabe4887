"""A line between two processes of one machine, over which whole pieces of bytes travel."""

import socket
import struct
from multiprocessing.connection import wait

_LENGTH = struct.Struct("!Q")


class Line:
    """One end; of `multiprocessing.connection.Connection`, it does without a copy of what is large.

    Args:
        end: A connected socket.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def fileno(self) -> int:
        """Returns the descriptor, for who waits for several."""
        return self._end.fileno()

    def send(self, data: bytes) -> None:
        """Sends a piece; waits while the other end takes nothing.

        Raises:
            OSError: If the other end is gone.
        """
        self._end.sendall(_LENGTH.pack(len(data)))
        self._end.sendall(data)

    def receive(self) -> bytearray:
        """Waits for a piece and returns it.

        Raises:
            OSError: If the other end is gone.
        """
        (length,) = _LENGTH.unpack(self._filled(bytearray(_LENGTH.size)))
        return self._filled(bytearray(length))

    def comes_within(self, seconds: float) -> bool:
        """Waits until a piece comes, or the other end is gone; says whether one of them happened."""
        return bool(wait([self._end], seconds))

    def close(self) -> None:
        """Closes this end, which the other one sees."""
        self._end.close()

    def _filled(self, piece: bytearray) -> bytearray:
        rest = memoryview(piece)
        while rest:
            taken = self._end.recv_into(rest, 0, socket.MSG_WAITALL)
            if not taken:
                raise ConnectionResetError("the other end is gone")
            rest = rest[taken:]
        return piece
