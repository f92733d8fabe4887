"""Keys, and files that nobody but their owner may read."""

import base64
import os
import re
import stat
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedhp.deployment.reading import reading
from fedhp.errors import DeploymentError
from fedhp.files.atomic import replacing

_OPEN_TO_OTHERS = 0o077
_LONGEST_NAME = 64
_CURVES = ("secp256r1", "secp384r1", "secp521r1")  # Flower takes these, and no ed25519

KEY, PUBLIC_KEY = "key", "key.pub"


def check_name(name: str) -> str:
    """Returns a device's name, which is also its folder's.

    Raises:
        DeploymentError: If it could be no folder everywhere, or no option.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or len(name) > _LONGEST_NAME:
        raise DeploymentError(
            f"a device's name has 1 to {_LONGEST_NAME} letters, digits, dots, dashes and underscores, and "
            f"begins with a letter or digit; got {name!r}"
        )
    return name


def new_key() -> ec.EllipticCurvePrivateKey:
    """Returns a new key on the curve P-384."""
    return ec.generate_private_key(ec.SECP384R1())


def write_private(path: Path, content: bytes) -> None:
    """Writes a file that only its owner can read, from its first moment on, whole or not at all."""
    with replacing(path) as unfinished:
        unfinished.unlink(missing_ok=True)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)


def private_folder(path: Path) -> None:
    """Makes a folder that only its owner may enter; one that is there stays as it is.

    Raises:
        DeploymentError: If it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DeploymentError(f"{path} cannot be a folder: {error.strerror or error}; give another") from None


def check_private(path: Path) -> None:
    """Refuses a private file that is missing, or that others can read.

    Raises:
        DeploymentError: If so; it says how to close the file.
    """
    if not path.is_file():
        raise DeploymentError(f"no file {path}, which should be a private key")
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & _OPEN_TO_OTHERS:
        raise DeploymentError(
            f"{path} is open to others (mode {mode:04o}), and whoever reads it can pass for its owner; close "
            f"it with 'chmod 600 {path}', or replace the key where others may have read it"
        )


def device_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Returns a device's private key.

    Raises:
        DeploymentError: If it is missing, open to others, or none that Flower takes.
    """
    check_private(path)
    flaw = (
        "is no private key that Flower takes: one in OpenSSH's form without a passphrase, on a NIST curve, "
        "as 'fedhp serve add-device' and 'fedhp device key' make"
    )
    with reading(path, "a private key", flaw):
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
            raise TypeError
    return key


def make_device_key(folder: Path, name: str) -> None:
    """Makes a device's pair of keys in a folder, in OpenSSH's form; nothing where that device has one.

    Raises:
        DeploymentError: If there is a key of another device, or the folder cannot be one.
    """
    private_folder(folder)
    if (folder / PUBLIC_KEY).exists() and name_of(folder / PUBLIC_KEY) == name:
        return
    if any((folder / file).exists() for file in (KEY, PUBLIC_KEY)):
        owner = name_of(folder / PUBLIC_KEY) or "another device"
        raise DeploymentError(f"{folder} holds a key of {owner}; give a folder without one")
    key = new_key()
    form = serialization.PrivateFormat.OpenSSH
    secret = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    write_private(folder / KEY, secret)
    write_public(folder / PUBLIC_KEY, key.public_key(), name)


def write_public(path: Path, key: ec.EllipticCurvePublicKey, name: str) -> None:
    """Writes the public half of a device's key, with the device's name as its comment."""
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    with replacing(path) as unfinished:
        unfinished.write_bytes(line + b" " + name.encode() + b"\n")


def read_public(path: Path) -> ec.EllipticCurvePublicKey:
    """Returns the public half of a device's key.

    Raises:
        DeploymentError: If it is missing, or of a kind that Flower does not take.
    """
    with reading(path, "a device's public key", "is no public key in OpenSSH's form"):
        key = serialization.load_ssh_public_key(path.read_bytes())
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise DeploymentError(
            f"{path} is a key of a kind that Flower does not take; it wants one on a NIST curve, as "
            f"'fedhp device key' and 'ssh-keygen -t ecdsa -b 384' make"
        )
    return key


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Returns what OpenSSH calls a key by."""
    digest = serialization.ssh_key_fingerprint(key, hashes.SHA256())
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def name_of(public_key: Path) -> str:
    """Returns the name of a device as its public key's comment says it; empty where there is none.

    Raises:
        DeploymentError: If the file is no text.
    """
    with reading(public_key, "a device's public key", "is no public key in OpenSSH's form"):
        parts = public_key.read_text(encoding="utf-8").split(maxsplit=2) if public_key.is_file() else []
    return parts[2].strip() if len(parts) > 2 else ""
