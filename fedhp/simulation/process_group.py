"""A process group that ends with this process, however it ends."""

import subprocess

# The smallest program that can wait: its input ends with this process, and by 0 it means its own group.
_WAIT = "read -r _; kill -KILL 0"


class OwnGroup:
    """A process group, for others to start in.

    Attributes:
        group: Its number, as ``subprocess.Popen`` takes it.
    """

    def __init__(self) -> None:
        none = subprocess.DEVNULL  # whoever reads what this process says is not to wait for this shell too
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _WAIT],
            stdin=subprocess.PIPE,
            stdout=none,
            stderr=none,
            cwd="/",
            process_group=0,
        )
        self.group = self._shell.pid

    def end(self) -> None:
        """Ends whoever is in it."""
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        self._shell.wait()
