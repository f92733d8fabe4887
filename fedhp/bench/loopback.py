"""A server and its devices as processes of this machine, which speak over TLS on the loopback."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fedhp.costs.machine import own_memory
from fedhp.deployment import flower
from fedhp.deployment.device import DeviceOptions, supernode_words
from fedhp.deployment.folder import ServerFolder, make_folder
from fedhp.deployment.link import free_port
from fedhp.errors import FedhpError, TrainingError
from fedhp.records.load import has_finished
from fedhp.threads import threads_of_a_process

_FEDHP = [sys.executable, "-m", "fedhp"]
_MEBIBYTE = 2**20
_START_SECONDS = 240.0  # for all devices of a slow machine to connect


@dataclass(frozen=True)
class Started:
    """A process, and all that it has started.

    Attributes:
        process: The process.
        log: What they say.
    """

    process: "subprocess.Popen[bytes]"
    log: Path

    def tree(self) -> list[psutil.Process]:
        """Returns those that are there."""
        try:
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def taken(self) -> float:
        """Returns their memory (PSS) in MiB."""
        return sum(own_memory(one.pid) or 0 for one in self.tree()) / _MEBIBYTE

    def kill(self, command: str) -> bool:
        """Kills (-9) the first of them that runs one of Flower's commands; says whether there was one."""
        for one in self.tree():
            with contextlib.suppress(psutil.Error):
                if any(Path(word).name == command for word in one.cmdline()[:2]):
                    os.kill(one.pid, signal.SIGKILL)
                    return True
        return False

    def wait_for(self, text: str, seconds: float = _START_SECONDS) -> None:
        """Waits until they have said something.

        Raises:
            TrainingError: If they have not within so many seconds.
        """
        deadline = time.monotonic() + seconds
        while text not in self.log.read_text(encoding="utf-8"):
            if time.monotonic() > deadline:
                said = self.log.read_text(encoding="utf-8")
                raise TrainingError(f"{self.log.stem}: not '{text}' within {seconds:g} s: {said[-500:]}")
            time.sleep(0.2)


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        folder: Its folder; logs and records are beside it.
        port: Where it listens.
        started: Its process.
        surroundings: Environment of it and its devices, besides.
    """

    folder: ServerFolder
    port: int
    started: Started
    surroundings: Mapping[str, str]

    def run(self, record: Path, *words: str) -> bool:
        """Runs a scenario, or goes on with one, and says whether the record has come to its end."""
        command = [*_FEDHP, "serve", "run", str(self.folder.root), *words]
        with self._runs.open("ab") as log:
            subprocess.run(command, check=False, stdout=log, stderr=log)
        return has_finished(record)

    def last_said(self) -> str:
        """Returns the last line of the last run."""
        return self._runs.read_text(encoding="utf-8", errors="replace").rstrip().rpartition("\n")[2]

    @property
    def _runs(self) -> Path:
        return self.folder.root.parent / "runs.log"


@contextlib.contextmanager
def serving(place: Path, number: int, **surroundings: str) -> Iterator[Server]:
    """Has a server meanwhile, with keys for so many devices.

    Args:
        place: An empty folder, for all that they write.
        number: How many devices.
        surroundings: Environment of server and devices, besides.

    Raises:
        FedhpError: If the system is not Linux, or it does not start.
    """
    if own_memory() is None:
        raise FedhpError("this measurement reads /proc, which only Linux has")
    folder, _ = make_folder(place / "fleet", (), [f"device-{one}" for one in range(number)])
    port = free_port()
    words = [*_FEDHP, "serve", "start", str(folder.root), "--host", "127.0.0.1", "--port", str(port)]
    with _started(words, place / "server.log", folder.root, surroundings) as process:
        process.wait_for("serving at")
        yield Server(folder, port, process, surroundings)


@contextlib.contextmanager
def device(
    server: Server, number: int, port: int | None = None, plain: bool = False, **told: Any
) -> Iterator[Started]:
    """Has a device meanwhile, with samples of its own.

    Args:
        server: The server.
        number: Which of its devices.
        port: Where it finds the server; by default where that listens.
        plain: Whether it is a SuperNode alone, which starts a process for each message, as Flower has it.
        told: Of `DeviceOptions`.
    """
    keys, place = server.folder.device(f"device-{number}"), server.folder.root.parent
    link = f"127.0.0.1:{port or server.port}"
    options = DeviceOptions(link, keys, place / f"{number}.npz", number, name="device", **told)
    words = supernode_words(options, free_port()) if plain else _device_words(options)
    with _started(words, place / f"device-{number}.log", keys / "flower", server.surroundings) as process:
        yield process


def write_samples(place: Path, number: int, samples: int, side: int, classes: int) -> Path:
    """Writes samples for so many devices, and for the server, some to evaluate on; returns the server's.

    Each is a square of noise with a bright row, the row being the class.
    """
    stream = np.random.default_rng(0)
    for one in [*map(str, range(number)), "server"]:
        size = samples if one != "server" else samples * number  # of which a part for each is looked for
        labels = np.arange(size) % classes
        images = stream.integers(0, 160, (size, side, side)).astype(np.uint8)
        images[np.arange(size), labels] = 255
        tests = {"x_test": images[:200], "y_test": labels[:200]} if one == "server" else {}
        np.savez(place / f"{one}.npz", x_train=images, y_train=labels, **tests)
    return place / "server.npz"


def _device_words(options: DeviceOptions) -> list[str]:
    said = {name: value for name, value in vars(options).items() if value not in (None, "")}
    pairs = ((f"--{name.replace('_', '-')}", str(value)) for name, value in said.items())
    return [*_FEDHP, "device", "run", *(word for pair in pairs for word in pair)]


@contextlib.contextmanager
def _started(
    words: Sequence[str], log: Path, home: Path, surroundings: Mapping[str, str]
) -> Iterator[Started]:
    told = flower.environment(home, **threads_of_a_process(1), **surroundings)
    with log.open("wb") as file:
        process = subprocess.Popen(words, env=told, stdout=file, stderr=file)
    try:
        yield Started(process, log)
    finally:
        process.terminate()
        process.wait()
