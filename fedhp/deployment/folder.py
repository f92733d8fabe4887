"""A server's folder: what it consists of, made once, and added to."""

import json
import logging
import os
import shutil
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from fedhp.deployment.authority import (
    check_valid,
    hosts_of,
    is_host,
    make_authority,
    make_server_certificate,
)
from fedhp.deployment.keys import (
    KEY,
    PUBLIC_KEY,
    check_name,
    check_private,
    device_key,
    make_device_key,
    private_folder,
    read_public,
    write_public,
)
from fedhp.deployment.reading import reading
from fedhp.errors import DeploymentError
from fedhp.files.atomic import replace_text

logger = logging.getLogger("fedhp.deployment")

AUTHORITY = "ca.crt"


@dataclass(frozen=True)
class ServerFolder:
    """Where a server keeps its keys, registrations and runs.

    Attributes:
        root: The folder; only its owner may enter it.
    """

    root: Path

    @property
    def authority(self) -> tuple[Path, Path]:
        """The authority's key and certificate."""
        return self.root / "authority" / "ca.key", self.root / "authority" / AUTHORITY

    @property
    def server(self) -> tuple[Path, Path]:
        """The server's key and certificate."""
        return self.root / "server" / "server.key", self.root / "server" / "server.crt"

    @property
    def database(self) -> Path:
        """What the SuperLink knows: registrations, node ids, runs."""
        return self.root / "superlink.db"

    @property
    def flower_home(self) -> Path:
        """Flower's own files, and how its commands find the SuperLink."""
        return self.root / "flower"

    @property
    def runs(self) -> Path:
        """The records of runs."""
        return self.root / "runs"

    def device(self, name: str) -> Path:
        """Returns what is copied to a device."""
        return self.root / "devices" / name

    def devices(self) -> list[str]:
        """Returns the names of the devices that have a key."""
        return sorted(path.parent.name for path in self.root.glob(f"devices/*/{PUBLIC_KEY}"))

    def owner(self, key: ec.EllipticCurvePublicKey) -> str | None:
        """Returns the name of the device that has a key; None where it is nobody's that can be read."""
        for name in self.devices():
            with suppress(DeploymentError):  # of one that is damaged, or is being removed
                if read_public(self.device(name) / PUBLIC_KEY) == key:
                    return name
        return None

    def registered(self) -> dict[str, int]:
        """Returns Flower's number of each device that was registered.

        Raises:
            DeploymentError: If the file that says so is damaged.
        """
        file = self._registrations
        remedy = f"remove it, and 'fedhp serve start {self.root}' makes it anew"
        with reading(file, "the devices' numbers", "is damaged", remedy):
            nodes = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            return {str(name): int(node) for name, node in nodes.items()}

    def keep_registered(self, nodes: dict[str, int]) -> None:
        """Keeps Flower's numbers of devices."""
        replace_text(self._registrations, json.dumps(nodes, indent=2))

    def keep_last_run(self, record: Path) -> None:
        """Keeps where the newest run has its record."""
        replace_text(self.root / "last_run", str(record.absolute()))

    def last_run(self) -> Path | None:
        """Returns where the newest run has its record; None before the first.

        Raises:
            DeploymentError: If the file that says so is damaged.
        """
        file = self.root / "last_run"
        with reading(file, "a record's place", remedy="remove it"):
            return Path(file.read_text(encoding="utf-8")) if file.exists() else None

    @property
    def _registrations(self) -> Path:
        return self.root / "registered.json"

    def check(self) -> list[str]:
        """Refuses to serve with keys that are open, or certificates that are out of date.

        Returns:
            What its owner should know besides.

        Raises:
            DeploymentError: If so, or if something is missing.
        """
        self.check_made()
        check_private(self.server[0])
        for key in (self.authority[0], *self.root.glob(f"devices/*/{KEY}")):
            if key.exists():  # their owner may keep them elsewhere
                check_private(key)
        renew = f"'fedhp serve renew {self.root}' makes a new one"
        notes = (self.check_authority(), check_valid(self.server[1], renew))
        return [note for note in notes if note]

    def check_authority(self) -> str:
        """Refuses an authority whose word nobody takes; returns a remark where that is soon so.

        Raises:
            DeploymentError: If its certificate is out of date or damaged.
        """
        remedy = "make a new folder by 'fedhp serve init', and hand out its devices' keys"
        return check_valid(self.authority[1], remedy)

    def check_made(self) -> None:
        """Refuses a folder that 'fedhp serve init' did not make.

        Raises:
            DeploymentError: If so.
        """
        if not self.authority[1].exists():
            holds = self.root.is_dir() and any(self.root.iterdir())
            init = f"'fedhp serve init {self.root}' makes one"
            remedy = "give the one that 'fedhp serve init' made" if holds else init
            raise DeploymentError(f"{self.root} is no server's folder; {remedy}")


def make_folder(root: Path, hosts: Sequence[str], devices: Iterable[str]) -> tuple[ServerFolder, list[str]]:
    """Makes a server's folder, or what one lacks; nothing that is there is made anew.

    Args:
        root: The folder.
        hosts: Names and addresses under which devices reach the server, beside this machine's name.
        devices: Names of devices that are to be let in.

    Returns:
        The folder, and the devices that are new.

    Raises:
        DeploymentError: If a host or a name cannot be one, or the folder holds something else.
    """
    names, folder = dict.fromkeys(map(check_name, devices)), ServerFolder(root)
    private_folder(root)
    is_new = not folder.authority[1].exists()
    if is_new and not _is_free(folder):
        raise DeploymentError(f"{root} holds something else; give a new folder")
    for place in (root, folder.authority[0].parent, folder.server[0].parent):
        _closed(place)
    if is_new:
        make_authority(*folder.authority)
    if not all(file.exists() for file in folder.server):
        certify(folder, hosts)
    elif hosts:
        logger.warning(
            "the server's certificate is kept; 'fedhp serve renew %s --host ...' makes one for more", root
        )
    new = [name for name in names if name not in folder.devices()]
    for name in new:
        add_device(folder, name)
    return folder, new


def _is_free(folder: ServerFolder) -> bool:
    """Says whether a folder is empty; what a kill leaves of making one, before its authority, is as good."""
    key, certificate = folder.authority
    begun = {key.parent, key, folder.server[0].parent}
    begun |= {file.with_name(f".{file.name}") for file in (key, certificate)}
    return all(place in begun for place in folder.root.rglob("*"))


def certify(folder: ServerFolder, hosts: Sequence[str]) -> None:
    """Makes the server's key and certificate, in the place of those that are there, whose names it keeps.

    Raises:
        DeploymentError: If the authority's key is missing or open, its certificate is out of date, or a host
            cannot be one.
    """
    folder.check_made()
    folder.check_authority()
    own = filter(is_host, [*_hosts_before(folder.server[1]), socket.gethostname()])
    make_server_certificate(*folder.authority, *folder.server, [*hosts, *own])


def _hosts_before(certificate: Path) -> list[str]:
    try:
        return hosts_of(certificate) if certificate.exists() else []
    except DeploymentError as error:
        logger.warning("%s; give each --host that it was for", error)
        return []


def add_device(folder: ServerFolder, name: str, public_key: Path | None = None) -> Path:
    """Makes what is copied to a device: the authority's certificate and a key of its own.

    Args:
        folder: The server's folder.
        name: The device's name.
        public_key: The public half of a key that the device has made itself, and keeps.

    Raises:
        DeploymentError: If there is such a device, or the public key is of no use, or another device's.
    """
    folder.check_made()
    place = folder.device(check_name(name))
    if name in folder.devices():
        raise DeploymentError(f"device '{name}' has a key: {place}; choose another name")
    brought = None if public_key is None else read_public(public_key)
    if brought and (owner := folder.owner(brought)):
        raise DeploymentError(f"{public_key} is the key of device '{owner}'; each device has one of its own")
    _closed(place.parent)
    _closed(place)
    shutil.copyfile(folder.authority[1], place / AUTHORITY)
    if brought is None and (place / KEY).exists():  # a kill came before its public half was written
        brought = device_key(place / KEY).public_key()
    if brought is None:
        make_device_key(place, name)
    else:
        write_public(place / PUBLIC_KEY, brought, name)
    return place


def _closed(place: Path) -> None:
    private_folder(place)
    os.chmod(place, 0o700)
