"""Why a device does not reach its server: what Flower keeps to itself."""

import contextlib
import re
import socket
import ssl
from ipaddress import ip_address
from pathlib import Path

from fedhp.bounds import shown
from fedhp.errors import DeploymentError

_SECONDS = 5.0


def split(superlink: str) -> tuple[str, int]:
    """Returns the host and the port of ``HOST:PORT``.

    Raises:
        DeploymentError: If it reads otherwise.
    """
    match = re.fullmatch(r"\[?([^\s/\[\]\x00-\x1f]+)\]?:([0-9]{1,5})", superlink)
    if not match or not 0 < int(match[2]) < 2**16:
        raise DeploymentError(
            f"--superlink reads HOST:PORT, such as server.example:8000; got {shown(superlink)}"
        )
    return match[1], int(match[2])


def free_port() -> int:
    """Returns a port of the loopback at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def is_here(host: str) -> bool:
    """Says whether a host is this machine's loopback."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def obstacle(superlink: str, authority: Path | None) -> str:
    """Says what is between this device and its server; empty where nothing is.

    Args:
        superlink: The server, as ``HOST:PORT``.
        authority: The certificate of the server's authority; None for a server without encryption.
    """
    host, port = split(superlink)
    try:
        with socket.create_connection((host, port), timeout=_SECONDS) as link:
            return _without_encryption(link) if authority is None else _with_encryption(link, host, authority)
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not accepted: {error.verify_message}"
    except ssl.SSLError as error:
        if "WRONG_VERSION_NUMBER" in str(error) or "record layer failure" in str(error):
            return "it speaks without encryption, and this device does not"
        return f"no encrypted link: {error.reason or error}"
    except OSError as error:
        return f"it is not reached: {error.strerror or error}"


def check_accepted(host: str, key: Path, certificate: Path, authority: Path) -> None:
    """Has a server and a client shake hands in memory, by Python's own TLS.

    Args:
        host: What the client calls the server.
        key: The server's key.
        certificate: The server's certificate.
        authority: The certificate of the authority that the client trusts.

    Raises:
        ssl.SSLError: If the key is not the certificate's, or the client does not accept that.
    """
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate, key, password="")  # or a key with a passphrase has it asked for here
    client = ssl.create_default_context(cafile=authority)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(back, there, server_hostname=host)
    far = server.wrap_bio(there, back, server_side=True)
    for side in (near, far, near):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()


def _with_encryption(link: socket.socket, host: str, authority: Path) -> str:
    context = ssl.create_default_context(cafile=authority)
    with context.wrap_socket(link, server_hostname=host):
        return ""


def _without_encryption(link: socket.socket) -> str:
    link.sendall(b"GET /health HTTP/1.0\r\n\r\n")
    with contextlib.suppress(ConnectionResetError):
        if link.recv(5) == b"HTTP/":
            return ""
    return "it speaks with encryption only; give this device the --keys that the server made for it"
