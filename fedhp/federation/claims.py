"""What devices say of themselves, held against what the server knows."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from statistics import median_low

from fedhp.costs.memory import MemoryModel
from fedhp.federation.device import Device
from fedhp.sizes import format_size
from fedhp.training.recipe import Recipe
from fedhp.training.update import Said

_notes = logging.getLogger("fedhp.notes")


class Counts:
    """For how many samples devices with data of their own count.

    Parts of the scenario's data are known, and a device that claims more is left out; what others say cannot
    be checked, and one that says enough would be the only one to count. So it counts for ``factor`` times the
    median of the fleet at most, and, the further its update goes beyond the others', for less, down to the
    median: the product of both is what moves the model. With a ``cap``, no device at all counts for more than
    so many times the median.

    Args:
        devices: The fleet.
        factor: How many times the median; 0 for any number.
        cap: As ``strategy.robust.cap``.
    """

    def __init__(self, devices: Sequence[Device], factor: float, cap: float = 0.0) -> None:
        self._factor = factor
        self._median = median_low([device.profile.num_examples for device in devices])
        self._cap = int(cap * self._median)  # in samples; 0 for none

    def remarks(self, devices: Sequence[Device]) -> list[str]:
        """Says of each device that counts for less than it says that it does."""
        most = self._most(1.0)
        number = sum(device.profile.num_examples > self._cap for device in devices) if self._cap else 0
        said = [
            f"{device} says that it has {device.profile.num_examples:,} samples; it counts as {most:,} at "
            f"most, server.max_times_median times the fleet's median"
            for device in devices
            if self._factor and device.profile.own_data and device.profile.num_examples > most
        ]
        if number:
            said.append(
                f"{number} of {len(devices)} devices count for fewer samples than they have, {self._cap:,}: "
                f"strategy.robust.cap times the fleet's median"
            )
        return said

    def held(self, device: Device, num_examples: int, times: float) -> int:
        """Returns for how many samples an update counts, given how many times the others' its norm is."""
        if self._cap:
            num_examples = min(num_examples, self._cap)
        if not self._factor or not device.profile.own_data:
            return num_examples
        return min(num_examples, self._most(times))

    def _most(self, times: float) -> int:
        return max(self._median, int(self._factor * self._median / max(1.0, times)))


def with_servers_memory(
    recipe: Recipe, memory: MemoryModel, budget: int | None, client: int, update: Said
) -> Said:
    """Returns what an update says with the predicted memory that the server's own model makes of it.

    The server knows the structures before and after, and so the least that the peak was. Between two cuts a
    growing batch may have taken more, up to the budget: only so far is the client believed, and what it
    claims beyond is noted.
    """
    said = update.statistics
    most = min(max(recipe.train.batch_size, recipe.memory.max_batch), update.num_examples)
    assigned, held = update.assigned.counts, update.held.counts
    least = max(
        memory.training_bytes(assigned, min(said.batch_size_first, most)),
        memory.training_bytes(held, min(said.batch_size_last, most)),
    )
    highest = max(least, memory.training_bytes(assigned, most) if budget is None else budget)
    claimed = said.memory_predicted_bytes
    if claimed > highest:
        _notes.warning(
            "client %d says that its training took %s by the memory model; by the server's it is %s",
            client,
            format_size(claimed),
            format_size(least),
        )
    predicted = claimed if least < claimed <= highest else least
    if predicted == claimed:
        return update
    return replace(update, statistics=replace(said, memory_predicted_bytes=predicted))
