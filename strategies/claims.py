"""What devices say of themselves, held against what the server knows."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from statistics import median_low

from fedhp.devices import format_size
from fedhp.memory import MemoryModel
from fedhp.recipe import Recipe
from fedhp.state import Update

from .roster import Device

_notes = logging.getLogger("fedhp.notes")


def most_examples(devices: Sequence[Device], times_median: float) -> int | None:
    """Returns for how many samples a device with data of its own counts at most; None for any number.

    Parts of the scenario's data are known, and a device that claims more is left out; what others say cannot
    be checked, and one that says enough would be the only one to count.
    """
    if not times_median:
        return None
    return int(times_median * median_low([device.profile.num_examples for device in devices]))


def what_counts_less(devices: Sequence[Device], most: int | None) -> list[str]:
    """Says of each device with data of its own that counts for less than it says that it does."""
    return [
        f"client {device.client} ({device.profile.device_class}) says that it has "
        f"{device.profile.num_examples:,} samples; it counts as {most:,}, server.max_times_median times the "
        f"fleet's median"
        for device in devices
        if most is not None and device.profile.own_data and device.profile.num_examples > most
    ]


def held_to(most: int | None, device: Device, update: Update) -> Update:
    """Returns an update that counts for no more samples than its device may."""
    if most is None or not device.profile.own_data or update.num_examples <= most:
        return update
    return replace(update, num_examples=most)


def with_servers_memory(recipe: Recipe, memory: MemoryModel, budget: int | None, update: Update) -> Update:
    """Returns an update whose predicted memory is what the server's own model makes of it.

    The server knows the structures before and after, and so the least that the peak was. Between two cuts a
    growing batch may have taken more, up to the budget: only so far is the client believed, and what it
    claims beyond is noted.
    """
    said = update.statistics
    most = min(max(recipe.train.batch_size, recipe.memory.max_batch), update.num_examples)
    assigned, held = update.assigned.counts, update.state.structure.counts
    least = max(
        memory.training_bytes(assigned, min(said.batch_size_first, most)),
        memory.training_bytes(held, min(said.batch_size_last, most)),
    )
    highest = max(least, memory.training_bytes(assigned, most) if budget is None else budget)
    claimed = said.memory_predicted_bytes
    if claimed > highest:
        _notes.warning(
            "client %d says that its training took %s by the memory model; by the server's it is %s",
            update.client,
            format_size(claimed),
            format_size(least),
        )
    predicted = claimed if least < claimed <= highest else least
    return replace(update, statistics=replace(said, memory_predicted_bytes=predicted))
