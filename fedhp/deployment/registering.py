"""Devices' keys in a SuperLink's database, by Flower's own state: before it listens, and all at once.

``flwr supernode register`` asks a SuperLink that runs, and takes a second for each key. This process takes as
long for any number, and ends: a server that waits holds nothing of what it imports.
"""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from fedhp.deployment.keys import read_public
from fedhp.errors import DeploymentError

logger = logging.getLogger("fedhp.deployment")

_LOOK, _LET_IN = "look", "let in"
_ATTEMPTS = 4  # each waits, as Flower does, 5 s for others that write
_EXCEPTION = re.compile(r"[\w.]+(Error|Exception)(: |$)")
_BUSY = re.compile("database (table )?is locked")
# What is no database, or one with other tables or another history of them than this Flower has.
_OF_ANOTHER = re.compile(
    r"not a database|malformed|no such (table|column)|has no column|[Rr]evision|[Mm]igrat"
)


def known_nodes(database: Path, keys: Mapping[str, Path]) -> dict[str, int]:
    """Returns Flower's number of each device whose key a SuperLink lets in; see `registered_nodes`."""
    return _nodes(database, keys, _LOOK)


def registered_nodes(database: Path, keys: Mapping[str, Path]) -> dict[str, int]:
    """Has a SuperLink let in the devices of some keys, whether it runs or not.

    Args:
        database: The SuperLink's; made where there is none.
        keys: The file of each device's public key.

    Returns:
        Flower's number of each device, but of those whose key was removed.

    Raises:
        DeploymentError: If the database cannot be opened, or stays busy, or a file is no key.
    """
    return _nodes(database, keys, _LET_IN)


def _nodes(database: Path, keys: Mapping[str, Path], how: str) -> dict[str, int]:
    for key in keys.values():
        read_public(key)
    words = [sys.executable, "-m", "fedhp.deployment.registering", how, str(database)]
    words += map(str, keys.values())
    done = _done(words)
    for _ in range(_ATTEMPTS - 1):
        if not (done.returncode and _BUSY.search(_cause(done))):
            break
        logger.info("%s is busy; asking again", database)
        done = _done(words)
    if done.returncode:
        raise DeploymentError(f"no device can be registered in {database}: {_with_remedy(_cause(done))}")
    nodes = json.loads(done.stdout.splitlines()[-1])
    return {name: node for name, node in zip(keys, nodes, strict=True) if node is not None}


def _done(words: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, capture_output=True, text=True, check=False)


def _cause(done: "subprocess.CompletedProcess[str]") -> str:
    """Returns the line of a traceback that names the exception: SQLAlchemy says more behind it."""
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return next(filter(_EXCEPTION.match, reversed(lines)), lines[-1])


def _with_remedy(cause: str) -> str:
    if _BUSY.search(cause):
        return f"{cause}: the server, or another program, is at work on it; ask again"
    if _OF_ANOTHER.search(cause):
        return (
            f"{cause}; install the Flower that made it, or remove it: all devices are registered anew, "
            f"with other numbers"
        )
    return cause


def main() -> None:
    """Prints the numbers of the devices that have the keys of files, registered where that is asked for."""
    from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
    from flwr.server.superlink.linkstate import LinkStateFactory
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes
    from flwr.superlink.federation import NoOpFederationManager

    how, database, *files = sys.argv[1:]
    state = LinkStateFactory(database, NoOpFederationManager(), ObjectStoreFactory(database)).state()
    nodes = list[int | None]()
    for file in files:
        key = public_key_to_bytes(read_public(Path(file)))
        node = state.get_node_id_by_public_key(key)
        if node is None and how == _LET_IN:
            with suppress(ValueError):  # it was removed, and is kept so that it does not come back
                # In the name of whoever asks a SuperLink that knows no accounts: it can be taken back so.
                node = state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, HEARTBEAT_DEFAULT_INTERVAL)
        nodes.append(node)
    sys.stdout.write(f"{json.dumps(nodes)}\n")


if __name__ == "__main__":
    main()
