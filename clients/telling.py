"""What a device says of itself in its own log: one line a round."""

import logging
from collections.abc import Mapping
from typing import Any

from fedhp.model.layout import Layout
from fedhp.sizes import format_size
from fedhp.training.statistics import Statistics
from fedhp.training.update import Judgement, Moments, RoundTask, Update

# Flower's own: the only logger that a SuperNode shows.
_log = logging.getLogger("flwr")


def tell(node: Mapping[str, Any], line: str) -> None:
    """Logs a line; not in fedhp's simulation, where the server's lines tell of all devices."""
    if not node.get("fedhp-simulation"):
        _log.info("%s", line)


def trained(task: RoundTask, update: Update, layout: Layout) -> str:
    """Says with which budget and structure a device trained, and what it took and brought."""
    said = update.statistics
    received, sent = update.assigned.counts, update.state.structure.counts
    units = ", ".join(
        f"{group} {count}" if sent[group] == count else f"{group} {count} to {sent[group]}"
        for group, count in received.items()
    )
    measured = format_size(said.memory_measured_bytes)
    predicted = format_size(said.memory_predicted_bytes)
    return (
        f"{_who(task)}; units {units}, "
        f"{layout.num_parameters(sent)} parameters; memory {measured}, predicted {predicted}; "
        f"batch {said.batch_size_first} to {said.batch_size_last}{_shortages(said)}; "
        f"training loss {said.train_loss:.4f}, accuracy {said.accuracy:.1%} of {update.num_examples} samples"
    )


def _shortages(said: Statistics) -> str:
    if not said.num_shortages or said.memory_left_bytes is None:
        return ""
    left = format_size(said.memory_left_bytes)
    return f", memory short {said.num_shortages} times, {left} left at least"


def looked_at(task: RoundTask, moments: Moments) -> str:
    """Says that a device took the new model's running statistics, and what memory that took."""
    measured = format_size(moments.memory_measured_bytes)
    return f"{_who(task)}; running statistics of the new model taken; memory {measured}"


def judged(task: RoundTask, judgement: Judgement) -> str:
    """Says which loss a model has here, and what memory that took."""
    measured = format_size(judgement.memory_measured_bytes)
    return f"{_who(task)}; loss {judgement.loss:.4f} of a model to choose from; memory {measured}"


def _who(task: RoundTask) -> str:
    return f"fedhp round {task.round}: {task.profile}"
