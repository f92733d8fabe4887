"""Who is connected to a server."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedhp.deployment import flower
from fedhp.deployment.folder import ServerFolder
from fedhp.deployment.server import serving_address
from fedhp.files.marks import DEVICES

_STATES = {"online": "connected", "offline": "away", "registered": "never seen"}


@dataclass(frozen=True)
class Seen:
    """A device as its server sees it.

    Attributes:
        name: Its name; empty where it came without a key.
        state: Whether it is connected.
        last_seen: When it was last: now, or a time in UTC; empty for never.
        device_class: Its class in the newest run; empty where it has no part in it.
        memory_bytes: Its budget there; None where it has none.
        last_failure: The round of that run in which it failed last, and why; empty where it did not.
        node: Flower's number of it.
    """

    name: str
    state: str
    last_seen: str
    device_class: str
    memory_bytes: int | None
    last_failure: str
    node: int


def devices_seen(folder: ServerFolder) -> list[Seen]:
    """Returns the devices of a server, by name.

    Raises:
        DeploymentError: If it does not run.
    """
    serving_address(folder)
    names = {node: name for name, node in folder.registered().items()}
    nodes = flower.asked(folder.flower_home, "supernode", "list")["nodes"]
    took_part = _took_part(folder)
    seen = [_seen(node, names, took_part) for node in nodes if node["status"] in _STATES]
    return sorted(seen, key=lambda device: (device.name, device.node))


def _took_part(folder: ServerFolder) -> Mapping[str, Any]:
    """Returns what the newest run says of its devices, by Flower's number."""
    record = folder.last_run()
    try:
        told = json.loads((record / DEVICES).read_text(encoding="utf-8")) if record else {}
        return {node: dict(said) for node, said in told.items()}
    except (OSError, ValueError, TypeError, AttributeError):  # it has not come so far, or is no more
        return {}


def _seen(node: Mapping[str, Any], names: Mapping[int, str], took_part: Mapping[str, Any]) -> Seen:
    number, state = int(node["node-id"]), _STATES[node["status"]]
    times = {"connected": "now", "away": node["offline-at"], "never seen": ""}
    told = took_part.get(str(number), {})
    return Seen(
        names.get(number, ""),
        state,
        times[state],
        told.get("device_class", ""),
        told.get("memory_bytes"),
        told.get("last_failure", ""),
        number,
    )
