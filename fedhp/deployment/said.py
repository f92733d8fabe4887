"""What a SuperLink says, as its owner wants to hear it."""

import logging
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedhp.deployment import phrases
from fedhp.deployment.folder import ServerFolder
from fedhp.deployment.keys import fingerprint
from fedhp.errors import DeploymentError

logger = logging.getLogger("fedhp.deployment")

_FOLD_SECONDS = 600.0  # a device that is refused tries again and again


@dataclass
class Said:
    """Reads what a SuperLink says, and tells of it what its owner wants to know.

    Attributes:
        folder: The server's folder.
        listens: Called when the SuperLink says that it listens.
    """

    folder: ServerFolder
    listens: Callable[[], None]
    _names: dict[int, str] = field(default_factory=dict, init=False)
    _told: dict[str, float] = field(default_factory=dict, init=False)

    def __call__(self, line: str) -> None:
        """Reads a line; what keeps it from being told is told itself, and ends nothing."""
        logger.debug("%s", line)
        try:
            self._read(line)
        except (DeploymentError, OSError) as error:
            self._warn(str(error))

    def _read(self, line: str) -> None:
        if phrases.said(line, phrases.LISTENS):
            self.listens()
        elif said := phrases.said(line, phrases.ACTIVATED):
            logger.info("%s has connected", self._name(int(said[1])))
        elif said := phrases.said(line, phrases.DEACTIVATED):
            logger.info("%s has left", self._name(int(said[1])))
        elif phrases.said(line, phrases.NO_HTTP):
            self._warn("something spoke to this port otherwise than it listens: with encryption, or without")
        elif said := phrases.said(line, phrases.API_ERROR):
            self._tell_error(line, *said[2:])
        elif phrases.SUPERLINK_ERROR.match(line) and not phrases.said(line, phrases.NODE_NOT_FOUND):
            logger.warning("SuperLink: %s", line)

    def _tell_error(self, line: str, code: str, text: str) -> None:
        if code == phrases.NOT_LET_IN:
            self._warn(self._refusal(text))
        elif code == phrases.NO_KEY:
            self._warn("a device was refused: it came without a key")
        elif code != phrases.NO_SUCH_NODE:  # whoever asked is told
            logger.warning("SuperLink: %s", line)

    def _refusal(self, text: str) -> str:
        """Says who was refused, and why: its key was said beside it."""
        match = phrases.said(text, phrases.NOT_ACTIVATED)
        key = _key(match[1]) if match else None
        name = None if key is None else self.folder.owner(key)
        if name is None or phrases.KEY_NOT_FOUND.text in text:
            who = "" if key is None else f", {fingerprint(key)} ('ssh-keygen -lf key.pub' shows a device's)"
            return f"a device was refused: its key is not registered here{who}"
        return (
            f"device '{name}' was refused: it is still counted as connected, as it was killed less than a "
            f"minute ago, or another machine has its key"
        )

    def _warn(self, text: str) -> None:
        now = time.monotonic()
        if now - self._told.get(text, -math.inf) > _FOLD_SECONDS:
            self._told[text] = now
            logger.warning("%s", text)

    def _name(self, node: int) -> str:
        if node not in self._names:  # it was added while this server runs
            self._names = {number: name for name, number in self.folder.registered().items()}
        return f"device '{self._names[node]}'" if node in self._names else f"device {node}"


def _key(said: str) -> ec.EllipticCurvePublicKey | None:
    """Returns the public key that a log shows as Python shows bytes, with more behind it."""
    shown = re.match(r"b'(.*?)'", said)
    try:
        key = serialization.load_pem_public_key(shown[1].replace("\\n", "\n").encode() if shown else b"")
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, ec.EllipticCurvePublicKey) else None
