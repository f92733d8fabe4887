"""What a device says of itself in its own log: one line a round."""

import logging
from collections.abc import Mapping
from typing import Any

from fedhp.devices import DeviceProfile, format_size
from fedhp.state import Update
from fedhp.structure import Layout

# Flower's own: the only logger that a SuperNode shows.
_log = logging.getLogger("flwr")


def tell(
    node: Mapping[str, Any], server_round: int, profile: DeviceProfile, update: Update, layout: Layout
) -> None:
    """Logs how a round went; not in fedhp's simulation, where the server's lines tell of all devices."""
    if not node.get("fedhp-simulation"):
        _log.info("%s", line(server_round, profile, update, layout))


def line(server_round: int, profile: DeviceProfile, update: Update, layout: Layout) -> str:
    """Says with which budget and structure a device trained, and what it took and brought."""
    said, budget = update.statistics, profile.memory_bytes
    received, sent = update.assigned.counts, update.state.structure.counts
    units = ", ".join(
        f"{group} {count}" if sent[group] == count else f"{group} {count} to {sent[group]}"
        for group, count in received.items()
    )
    measured = format_size(said.memory_measured_bytes)
    predicted = format_size(said.memory_predicted_bytes)
    return (
        f"fedhp round {server_round}: {profile.device_class}, budget "
        f"{'no limit' if budget is None else format_size(budget)}; units {units}, "
        f"{layout.num_parameters(sent)} parameters; memory {measured}, predicted {predicted}; "
        f"batch {said.batch_size_first} to {said.batch_size_last}; "
        f"training loss {said.train_loss:.4f}, accuracy {said.accuracy:.1%} of {update.num_examples} samples"
    )
