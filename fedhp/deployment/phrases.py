"""What is listened for in the output of Flower's processes: its own words, as its sources have them.

`tests/test_phrases.py` finds each in the Flower that is installed.
"""

import re
from dataclasses import dataclass
from functools import cached_property

# Before what Flower's logger says, and before what its web server does, in a SuperNode and in a SuperLink.
_HEAD = r"(?:[A-Z]+ *: +|\S+Z [A-Z]+ \[[\w.]+\] )?"


@dataclass(frozen=True)
class Phrase:
    """What begins a line.

    Attributes:
        module: Where Flower says it.
        text: How it is written there, with ``%s`` for each value.
    """

    module: str
    text: str

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Its groups are what is said, and the values."""
        words = "(.*?)".join(map(re.escape, self.text.split("%s")))
        return re.compile(f"{_HEAD}({words}{'$' if self.text.endswith('%s') else '.*'})")


def said(line: str, *phrases: Phrase) -> tuple[str, ...] | None:
    """Returns what a line says, and the values in it; None where it says none of the phrases."""
    for phrase in phrases:
        if match := phrase.pattern.match(line):
            return match.groups()
    return None


_SUPERNODE = "flwr.supernode.start_client_internal"
_RETRYING = "flwr.supercore.retry.http_retry"
_FLEET = "flwr.superlink.servicer.fleet.fleet_handlers"
_CONTROL = "flwr.superlink.servicer.control.control_handlers"
_ERROR = "flwr.supercore.error.http"

# A SuperNode has a message for its client app,
RECEIVING = Phrase(_SUPERNODE, "Receiving: %s message")
# passes on the answer, whose parts may come yet,
SENDING = Phrase(_SUPERNODE, "Sending: %s message")
# then none,
DONE = (
    Phrase(_SUPERNODE, "Sent successfully"),
    Phrase(_SUPERNODE, "Run ID %s is not in `RUNNING` status. Ignoring reply message"),
    Phrase(_SUPERNODE, "Run ID %s is not in `RUNNING` status. Ignoring message"),
)
# or none on one side only: it tries nothing twice.
LOST = (
    Phrase(_SUPERNODE, "Failed to create task"),
    Phrase(_SUPERNODE, "Failed to send message"),
    Phrase(_SUPERNODE, "Failed to receive message"),
)

CONNECTED = Phrase(_SUPERNODE, "SuperNode ID: %s")
NO_LINK = (
    Phrase(_RETRYING, "Connection attempt failed, retrying"),
    Phrase(_RETRYING, "SSL/TLS handshake error detected."),
)
LINKED_AGAIN = Phrase(_RETRYING, "Connection successful after")
REFUSED = Phrase("flwr.supernode.fleet_http_connection", "[code: %s] %s")
OTHER_VERSION = Phrase(
    "flwr.supercore.runtime_version_compatibility", "%s version %s detected a runtime version mismatch: "
)

LISTENS = Phrase("uvicorn.server", "Uvicorn running on %s (Press CTRL+C to quit)")
ACTIVATED = Phrase(_FLEET, "[Fleet.ActivateNode] Activated node_id=%s")
DEACTIVATED = Phrase(_FLEET, "[Fleet.DeactivateNode] Deactivated node_id=%s")
API_ERROR = Phrase(_ERROR, "[%s][ApiError:%s] %s")
NO_HTTP = Phrase("uvicorn.protocols.http.h11_impl", "Invalid HTTP request received.")
NODE_NOT_FOUND = Phrase(_CONTROL, "Node ID not found for account")
# Of a device that is not let in: its key, and after it that nobody has that.
NOT_ACTIVATED = Phrase(_FLEET, "Attempted to register SuperNode with public key: %s")
KEY_NOT_FOUND = Phrase(_FLEET, "No SuperNode found with the given public key.")

# What fedhp says on a device, by Flower's logger.
OWN = re.compile(_HEAD + r"(fedhp(?: round|:) .*)")
_ERROR_LINE = r"(?:\S+Z )?(?:ERROR|CRITICAL)\b"
SUPERNODE_ERROR = re.compile(_ERROR_LINE + r"(?!.*Exit Code)|[\w.]*(?:Error|Exception): ")
SUPERLINK_ERROR = re.compile(_ERROR_LINE + "|Traceback")

# Codes of Flower's errors, by their names there.
CODES = {
    "FLEET_SUPERNODE_REGISTRATION_DISABLED": "2001",
    "FLEET_NODE_ACTIVATION_FAILED": "2004",
    "NODE_NOT_FOUND": "24",
}
NO_KEY = CODES["FLEET_SUPERNODE_REGISTRATION_DISABLED"]
NOT_LET_IN = CODES["FLEET_NODE_ACTIVATION_FAILED"]
NO_SUCH_NODE = CODES["NODE_NOT_FOUND"]
