"""What the strategies share that send small devices a part of a dense model, and prune nothing."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence

from fedhp.errors import BudgetError
from fedhp.structure import Structure
from fedhp.submodels import first, level_counts

from .fleet import FleetStrategy
from .roster import Device


class SubModel(FleetStrategy):
    """Every device trains the widest part that its budget holds, all groups cut alike; subclasses say which.

    The global model stays dense. Inputs stay whole: no such method cuts an image.
    """

    cuts_inputs = False
    options = frozenset({"levels", "uncovered"})

    @abstractmethod
    def part(self, counts: Mapping[str, int], device: Device, server_round: int) -> Structure:
        """Returns which units, in these numbers, a device trains in a round."""

    def assign(self, device: Device, server_round: int) -> Structure:
        """The part for the device and the round."""
        return self.part(self.counts(device.profile.memory_bytes), device, server_round)

    def enlist(self, devices: Sequence[Device]) -> None:
        """Takes the devices, and finds how wide a part each can train.

        Raises:
            BudgetError: If one cannot train the narrowest level.
        """
        super().enlist(devices)
        self._counts: dict[int | None, Mapping[str, int]] = {}
        # The smallest budget first: what an error says of it helps all.
        for device in sorted(self.devices, key=lambda device: device.profile.memory_bytes or math.inf):
            budget = device.profile.memory_bytes
            if budget not in self._counts:
                self._counts[budget] = self._widest(device)

    def counts(self, budget: int | None) -> Mapping[str, int]:
        """Returns the unit counts of the widest part that fits a budget in bytes that a device has."""
        return self._counts[budget]

    def _widest(self, device: Device) -> Mapping[str, int]:
        profile, levels = device.profile, self.scenario.strategy.levels
        try:
            return level_counts(self.memory, levels, profile.memory_bytes, self.scenario.train.batch_size)
        except BudgetError as error:
            raise BudgetError(f"class '{profile.device_class}': {error}") from None


class Nested(SubModel):
    """Parts are the first units of every group, so that a small one lies within every larger one."""

    def enlist(self, devices: Sequence[Device]) -> None:
        """Takes the devices, and starts from the widest part that one of them trains.

        Units beyond it would stay at their random initial weights and only do harm.
        """
        super().enlist(devices)
        parts = [self.counts(device.profile.memory_bytes) for device in self.devices]
        widest = {group: max(counts[group] for counts in parts) for group in self.layout.widths}
        self.start_from(first(self.layout.widths, widest))

    def part(self, counts: Mapping[str, int], device: Device, server_round: int) -> Structure:
        """The first units."""
        return first(self.layout.widths, counts)
