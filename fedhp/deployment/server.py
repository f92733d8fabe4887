"""A SuperLink with TLS and registered devices, kept going."""

import contextlib
import errno
import json
import logging
import shutil
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from fedhp.deployment import flower
from fedhp.deployment.folder import ServerFolder, add_device
from fedhp.deployment.keys import PUBLIC_KEY
from fedhp.deployment.link import check_accepted, is_here, split
from fedhp.deployment.reading import reading
from fedhp.deployment.registering import known_nodes, registered_nodes
from fedhp.deployment.said import Said
from fedhp.deployment.supervisor import Output, keep_going
from fedhp.errors import DeploymentError
from fedhp.federation.flower_version import check_flower
from fedhp.files.atomic import replace_text
from fedhp.files.locks import locked

logger = logging.getLogger("fedhp.deployment")

_REMEDIES = {
    errno.EADDRINUSE: "choose another --port, or end what listens there",
    errno.EACCES: "choose a --port from 1024 on",
}


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        host: The interface, such as 0.0.0.0 for all.
        port: The port.
        insecure: Whether it listens without encryption, and takes any device.
    """

    host: str
    port: int
    insecure: bool = False

    @property
    def here(self) -> str:
        """How it is reached from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def check_address(address: Address) -> None:
    """Refuses what cannot be listened at, or not without encryption.

    Raises:
        DeploymentError: If so.
    """
    if address.insecure and not is_here(address.host):
        raise DeploymentError(
            f"--insecure is for the loopback only, not for {address.host}: whoever reaches the port could "
            f"start runs, that is, run code on the server and on every device"
        )
    try:
        family = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(*family[:2]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(family[4])
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "give an address of this machine as --host, or none for all")
        raise DeploymentError(
            f"cannot listen at {address.host}:{address.port}: {error.strerror or error}; {remedy}"
        ) from None


def _check_certificate(folder: ServerFolder, address: Address) -> None:
    """Refuses what would be noticed only by commands that wait for the SuperLink, and by devices."""
    key, certificate = folder.server
    host, _ = split(address.here)
    try:
        if not address.insecure:
            check_accepted(host, key, certificate, folder.authority[1])
    except ssl.SSLError as error:
        why = getattr(error, "verify_message", None) or error.reason or error
        raise DeploymentError(
            f"{certificate} would not be accepted for {host}: {why}; 'fedhp serve renew {folder.root} --host "
            f"{host}' makes one that is"
        ) from None


def superlink_words(folder: ServerFolder, address: Address) -> list[str]:
    """Returns the command that starts the SuperLink."""
    key, certificate = folder.server
    # With a database, registrations and node ids outlive the process; without one, devices are strangers.
    words = [flower.command("flower-superlink"), "--host", address.host, "--port", str(address.port)]
    words += ["--database", str(folder.database), "--log-file", str(folder.root / "superlink.log")]
    if address.insecure:
        return [*words, "--insecure"]
    words += ["--enable-supernode-auth", "--ssl-ca-certfile", str(folder.authority[1])]
    return [*words, "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)]


def serve(folder: ServerFolder, address: Address, ready: Callable[[], None]) -> None:
    """Runs a SuperLink until this process is ended, and again whenever it ends.

    Args:
        folder: The server's folder.
        address: Where it listens.
        ready: Called once it listens and knows the devices' keys.

    Raises:
        DeploymentError: If keys, certificates or the port are not fit, or another process serves the folder.
    """
    folder.check_made()
    with _alone(folder):  # first: a port that its own server has is to be told by that
        for note in checked(folder, address):
            logger.warning("%s", note)
        with _listed(folder, address), contextlib.closing(Output()) as output:
            _make_known(folder, address)
            logger.info("starting the SuperLink; devices that come before it listens try again")
            surroundings = flower.environment(folder.flower_home.absolute())
            keep_going(lambda: superlink_words(folder, address), surroundings, Said(folder, ready), output)


def checked(folder: ServerFolder, address: Address) -> Iterator[str]:
    """Refuses what could not be served, or by whom no device is let in, and yields what an owner should know.

    Raises:
        DeploymentError: If keys, certificates, the port or what is installed are not fit.
    """
    check_flower()
    yield from folder.check()
    check_address(address)
    _check_certificate(folder, address)
    if address.insecure:
        yield "--insecure: nothing is encrypted, and any process here can take part"


def _make_known(folder: ServerFolder, address: Address) -> None:
    """Tells Flower's commands where the SuperLink is, and it, before it listens, of its devices."""
    authority = None if address.insecure else folder.authority[1].absolute()
    flower.keep_connection(folder.flower_home, address.here, authority)
    with _registering(folder):
        if not folder.database.exists():  # it was removed, and with it what the SuperLink knew
            folder.keep_registered({})
    if not address.insecure:
        register(folder)


def register(folder: ServerFolder) -> list[str]:
    """Has the SuperLink let in the devices that it does not know; returns those that it now knows."""
    with _registering(folder):
        nodes = folder.registered()
        keys = {name: folder.device(name) / PUBLIC_KEY for name in folder.devices() if name not in nodes}
        if not keys:
            return []
        found = registered_nodes(folder.database, keys)
        new = {name: node for name, node in found.items() if node not in nodes.values()}
        folder.keep_registered(nodes | new)
    for name in keys.keys() - new:
        logger.warning(
            "device '%s' has a key that was registered before, as another device or as one that was removed: "
            "'fedhp serve remove-device' and 'add-device' make it a new one",
            name,
        )
    return list(new)


def admit(folder: ServerFolder, name: str, public_key: Path | None = None) -> tuple[Path, bool]:
    """Lets one more device in; at once where the server runs.

    Args:
        folder: The server's folder.
        name: The device's name.
        public_key: As `add_device` takes it.

    Returns:
        What is copied to the device, and whether a server that runs knows it.

    Raises:
        DeploymentError: If it cannot be let in; nothing of it is kept then.
    """
    place = add_device(folder, name, public_key)
    try:
        if not is_serving(folder):
            return place, False
        register(folder)
        if name in folder.registered():  # by now, or by a server that has just started
            return place, True
        raise DeploymentError(f"{public_key} was registered here before; let the device make another key")
    except BaseException:
        shutil.rmtree(place)
        raise


def remove_device(folder: ServerFolder, name: str) -> None:
    """Lets a device in no more, and removes what is kept for it; its key is of no use here ever after.

    Raises:
        DeploymentError: If there is none of that name, or the server that knows it does not run.
    """
    folder.check_made()
    with _registering(folder):
        nodes = folder.registered()
        if name not in {*nodes, *folder.devices()}:
            raise DeploymentError(f"{folder.root} has no device '{name}'; 'fedhp serve devices' lists them")
        node = _node_of(folder, name, nodes)
        if node is not None:
            serving_address(folder)
            _unregister(folder, node)
            folder.keep_registered({one: other for one, other in nodes.items() if other != node})
        shutil.rmtree(folder.device(name), ignore_errors=True)


def _node_of(folder: ServerFolder, name: str, nodes: Mapping[str, int]) -> int | None:
    """Returns Flower's number of a device; where its entry was lost, it is found by the device's key."""
    if name not in nodes and folder.database.exists():
        nodes = known_nodes(folder.database, {name: folder.device(name) / PUBLIC_KEY})
    return nodes.get(name)


def _unregister(folder: ServerFolder, node: int) -> None:
    try:
        flower.asked(folder.flower_home, "supernode", "unregister", str(node))
    except DeploymentError as error:
        if "not found" not in str(error):  # as it is where Flower's own command was there first
            raise


def serving_address(folder: ServerFolder) -> Address:
    """Returns where a folder's server listens.

    Raises:
        DeploymentError: If none runs.
    """
    folder.check_made()
    if not is_serving(folder):
        raise DeploymentError(
            f"the server of {folder.root} does not run; 'fedhp serve start {folder.root}' starts it"
        )
    with reading(_place(folder), "where the server listens", remedy="end the server, and start it again"):
        told = json.loads(_place(folder).read_text(encoding="utf-8"))
        return Address(str(told["host"]), int(told["port"]), bool(told["insecure"]))


def is_serving(folder: ServerFolder) -> bool:
    """Says whether a folder's server runs."""
    try:
        with (
            _turn(folder),
            locked(_lock(folder), wait=False) as is_ours,
        ):  # a server that was killed left its word behind
            return not is_ours and _place(folder).exists()  # not ours: on some disks, nobody's
    except BlockingIOError:
        return _place(folder).exists()


@contextlib.contextmanager
def _alone(folder: ServerFolder) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        try:
            with _turn(folder):
                held.enter_context(locked(_lock(folder), wait=False))
        except BlockingIOError:
            raise DeploymentError(f"another process serves {folder.root}; end it first") from None
        yield


def _turn(folder: ServerFolder) -> AbstractContextManager[bool]:
    """Lets one process at a time see whether the folder is served: a look takes the server's lock for it."""
    return locked(folder.root / ".looking")


def _registering(folder: ServerFolder) -> AbstractContextManager[bool]:
    """Lets one process at a time change who is registered."""
    return locked(folder.root / ".registering")


@contextlib.contextmanager
def _listed(folder: ServerFolder, address: Address) -> Iterator[None]:
    """Says where this server listens, meanwhile."""
    replace_text(_place(folder), json.dumps(vars(address)))
    try:
        yield
    finally:
        _place(folder).unlink(missing_ok=True)


def _place(folder: ServerFolder) -> Path:
    return folder.root / "serving.json"


def _lock(folder: ServerFolder) -> Path:
    return folder.root / ".lock"
