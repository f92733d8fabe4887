"""A device's SuperNode: what it is told, and what comes of it, in a line each."""

import logging
import os
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from fedhp.bounds import MOST_THREADS, shown
from fedhp.deployment import flower, phrases
from fedhp.deployment.authority import check_valid
from fedhp.deployment.beforehand import beyond_budget, beyond_measuring, beyond_partitions, check_data
from fedhp.deployment.executor import Executor
from fedhp.deployment.folder import AUTHORITY
from fedhp.deployment.keys import KEY, PUBLIC_KEY, device_key, name_of
from fedhp.deployment.link import free_port, is_here, obstacle, split
from fedhp.deployment.supervisor import Output, keep_going
from fedhp.errors import DeploymentError, NeedsTorchError
from fedhp.federation.flower_version import check_flower
from fedhp.federation.run_config import written
from fedhp.fleet.devices import name_flaw
from fedhp.sizes import parse_size
from fedhp.threads import RUNTIMES, TORCH, has_torch, threads_of_a_process

logger = logging.getLogger("fedhp.deployment")

_PARTITIONS = 2**63  # of a whole number on Flower's wire
_WITHOUT_EXECUTOR = ("--isolation", "process")
# A device that was killed counts as connected for about a minute, and is refused so long.
_WAITS = (1, 2, 5, 10, 15, 15, 15, 15, 30, 60)
# A server finds out that no answer comes only where the device is away as it looks, every 3 s.
_AWAY_SECONDS = 8.0


@dataclass(frozen=True)
class DeviceOptions:
    """What a device is told.

    Attributes:
        superlink: The server, as ``HOST:PORT``.
        keys: The folder that the server made for this device; None for a server without encryption.
        data: The device's own samples.
        partition_id: The part of the scenario's data that the device plays, and its number in records.
        budget: Memory for training, such as ``2MiB``.
        reserve: Memory that is to stay free while it trains, such as ``16MiB``, the default; ``off`` lets
            nothing watch.
        name: The device class in records; by default the device's name, as its key says it.
        threads: Threads that it trains with.
        runtime: What it trains with, ``torch`` or ``numpy``; by default PyTorch where it is installed.
        model_target: The network of one's own that the server may make it import.
        methods: Client methods of one's own that it may make it import, with commas.
        measures: Whether it may have exported files of its own measured here.
    """

    superlink: str
    keys: Path | None = None
    data: Path | None = None
    partition_id: int | None = None
    budget: str = ""
    reserve: str = ""
    name: str = ""
    threads: int = 1
    runtime: str = ""
    model_target: str = ""
    methods: str = ""
    measures: bool = False

    def check(self) -> None:
        """Refuses what a SuperNode would refuse later, or never.

        Raises:
            FedhpError: If something is missing, open to others or no such value.
        """
        host, _ = split(self.superlink)
        if self.data is None and self.partition_id is None and not self.measures:
            raise DeploymentError(
                "a device needs --data, its own samples, --partition-id, a part to play, or --measures"
            )
        if self.data is not None and not self.data.exists():
            raise DeploymentError(f"--data: no file or folder {self.data}")
        if self.budget:
            parse_size(self.budget, "--budget")
        if self.reserve not in ("", "off"):
            parse_size(self.reserve, "--reserve")
        _check_said(self)
        check_computing(self.runtime, self.threads)
        if self.keys is not None:
            _check_keys(self.keys)
        elif not is_here(host):
            raise DeploymentError(
                f"--insecure is for a server on the loopback only, not for {host}: whoever is between could "
                f"read and send anything; give the --keys that the server made for this device"
            )

    @property
    def authority(self) -> Path | None:
        """The certificate of the authority that vouches for the server."""
        return None if self.keys is None else self.keys / AUTHORITY

    @property
    def class_name(self) -> str:
        """The device class in records; empty where neither an option nor the key's comment says one."""
        return self.name or ("" if self.keys is None else name_of(self.keys / PUBLIC_KEY))

    def node_config(self) -> dict[str, str | int | bool]:
        """Returns the node configuration that says so to the client app."""
        said: dict[str, str | int | bool | None] = {
            "partition-id": self.partition_id,
            "data-path": "" if self.data is None else str(self.data.absolute()),
            "memory-budget": self.budget,
            "memory-reserve": self.reserve,
            "name": self.class_name,
            "threads": self.threads if self.threads > 1 else None,
            "runtime": self.runtime,
            "model-target": self.model_target,
            "methods": self.methods,
            "measures": self.measures or None,
        }
        return {key: value for key, value in said.items() if value not in (None, "")}


def check_computing(runtime: str, threads: int) -> None:
    """Refuses what this device cannot compute with.

    Raises:
        FedhpError: If so.
    """
    if not 1 <= threads <= MOST_THREADS:
        raise DeploymentError(f"--threads: from 1 to {MOST_THREADS}, got {threads}")
    if runtime and runtime not in RUNTIMES:
        raise DeploymentError(f"--runtime is one of {', '.join(RUNTIMES)}, got {runtime!r}")
    if runtime == TORCH and not has_torch():
        raise NeedsTorchError(f"--runtime {TORCH}")


def supernode_words(options: DeviceOptions, port: int) -> list[str]:
    """Returns the command that starts the device's SuperNode.

    Args:
        options: What the device is told.
        port: Where the SuperNode and its client app meet, on the loopback.
    """
    words = [flower.command("flower-supernode"), "--superlink", options.superlink, "--port", str(port)]
    if options.keys is None:
        words.append("--insecure")
    else:
        words += ["--root-certificates", str(options.keys / AUTHORITY)]
        words += ["--auth-supernode-private-key", str(options.keys / KEY)]
    return [*words, "--node-config", written(options.node_config())]


def checked(options: DeviceOptions) -> Iterator[str]:
    """Refuses what would be refused later, or never, and yields what training would stumble over.

    Raises:
        FedhpError: If the options, the data or what is installed are not fit.
    """
    options.check()
    check_flower()
    if options.budget:
        yield from beyond_budget(parse_size(options.budget))
    if options.data is not None:
        check_data(options.data)
    elif options.partition_id is not None:
        yield from beyond_partitions()
    if options.measures:
        yield from beyond_measuring()


def run_device(options: DeviceOptions) -> None:
    """Takes part in a server's runs until this process is ended.

    Raises:
        FedhpError: If the options are not fit; a server that is away, or refuses, is tried again.
    """
    for note in checked(options):
        logger.warning("%s", note)
    first = free_port()
    words = supernode_words(options, first)
    logger.info("%s", shlex.join([Path(words[0]).name, *words[1:]]))
    surroundings = flower.environment(
        own_home(options.keys),
        **threads_of_a_process(options.threads),  # or all cores are taken, and several times the CPU time
        MALLOC_ARENA_MAX="1",  # or each thread of a process keeps freed memory of its own, 5 MiB in all
    )
    # The one that was told, then others: it may have been taken by another program.
    ports = chain([first], iter(free_port, None))
    with closing(Output()) as output, closing(Executor(surroundings, output)) as executor:

        def begin() -> list[str]:
            port = next(ports)
            executor.begin(port)
            return [*supernode_words(options, port), *_WITHOUT_EXECUTOR]

        heard = Heard(options.superlink, options.authority, executor)
        keep_going(begin, surroundings, heard, output, _WAITS, executor.look, _AWAY_SECONDS)


@dataclass
class Heard:
    """Reads what a SuperNode says, and tells of it what the device's owner wants to know.

    Attributes:
        superlink: The server.
        authority: The certificate of its authority; None without encryption.
        executor: What trains when a message has come.
        obstacle: Says what is between the two.
        told: What was said last of the link; it is said once.
    """

    superlink: str
    authority: Path | None
    executor: Executor
    obstacle: Callable[[str, Path | None], str] = obstacle
    told: str = field(default="", init=False)

    def __call__(self, line: str) -> None:
        """Reads a line."""
        logger.debug("%s", line)
        if phrases.said(line, phrases.RECEIVING):
            self.executor.wake()
        elif phrases.said(line, phrases.SENDING):
            self.executor.sends()
        elif phrases.said(line, *phrases.DONE):
            self.executor.rest()
        elif phrases.said(line, *phrases.LOST):
            self.executor.give_up()
        if said := phrases.said(line, phrases.CONNECTED):
            self.told = ""  # a link that came back is told again
            self._say(logging.INFO, f"connected to {self.superlink}, as node {said[1]}")
        elif phrases.said(line, *phrases.NO_LINK):
            if cause := self.obstacle(self.superlink, self.authority):
                self._say(logging.WARNING, f"no link to {self.superlink}: {cause}; trying again")
        elif phrases.said(line, phrases.LINKED_AGAIN):
            if self.told.startswith("no link"):
                self._say(logging.INFO, f"the link to {self.superlink} is back")
        elif said := phrases.said(line, phrases.REFUSED):
            meant = _meant(said[1], said[2])
            self._say(logging.WARNING, f"refused by {self.superlink} (code {said[1]}): {meant}")
        elif said := phrases.said(line, phrases.OTHER_VERSION):
            self._say(logging.WARNING, said[0])
        elif own := phrases.OWN.match(line):
            logger.info("%s", own[1])
        elif phrases.SUPERNODE_ERROR.match(line):
            logger.warning("SuperNode: %s", line)

    def _say(self, level: int, text: str) -> None:
        if text != self.told:
            logger.log(level, "%s", text)
        self.told = text


def _meant(code: str, text: str) -> str:
    """Says what Flower's answers to a SuperNode mean."""
    if code == phrases.NOT_LET_IN:
        return (
            "the server does not know this device's key ('fedhp serve add-device' makes it known), or has "
            "not noticed yet that the device was killed less than a minute ago, or another machine is "
            "connected with this key"
        )
    if code == phrases.NO_KEY:
        return "the server wants a key; give this device the --keys that it made for it"
    return text


def _check_said(options: DeviceOptions) -> None:
    """Refuses what each query of a server would be declined for."""
    if options.class_name and (flaw := name_flaw(options.class_name)):
        said_by = (
            "--name" if options.name else f"the comment of {options.keys}/{PUBLIC_KEY}, without a --name"
        )
        raise DeploymentError(f"{said_by}: {flaw}")
    if not 0 <= (options.partition_id or 0) < _PARTITIONS:
        raise DeploymentError(f"--partition-id: from 0 to 2**63 - 1, got {shown(options.partition_id)}")
    for option, said in (("--model-target", options.model_target), ("--methods", options.methods)):
        for reference in filter(None, map(str.strip, said.split(","))):
            if not re.fullmatch(r"\w+(\.\w+)*(:\w+)?", reference):
                raise DeploymentError(f"{option}: expected MODULE:NAME, got {shown(reference)}")


def _check_keys(keys: Path) -> None:
    for name in (KEY, AUTHORITY):
        if not (keys / name).is_file():
            raise DeploymentError(
                f"no file {keys / name}: --keys is the folder of one device, of which the server has "
                f"{AUTHORITY}, and the key too if it made that, in devices/NAME"
            )
    device_key(keys / KEY)
    check_valid(keys / AUTHORITY, "ask the server's owner for a new folder of keys")


def own_home(keys: Path | None) -> Path | None:
    """Returns where this device's SuperNode keeps its files: two that share a place write over each other's.

    None is Flower's usual place.
    """
    return (keys / "flower").absolute() if keys is not None and os.access(keys, os.W_OK) else None
