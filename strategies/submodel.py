"""What the strategies share that send small devices a part of a dense model, and prune nothing."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property

from fedhp.aggregation.submodels import first, level_counts
from fedhp.federation.device import Device
from fedhp.federation.strategy import FleetStrategy
from fedhp.model.structure import Structure


class SubModel(FleetStrategy):
    """Every device trains the widest part that its budget holds, all groups cut alike; subclasses say which.

    The global model stays dense. Inputs stay whole: no such method cuts an image.
    """

    cuts_inputs = False
    options = frozenset({"levels", "uncovered"})

    @property
    def shares(self) -> Sequence[float]:
        """The widths of parts, as shares of the full model's; none for any."""
        return self.scenario.strategy.levels

    @abstractmethod
    def part(self, counts: Mapping[str, int], device: Device, server_round: int) -> Structure:
        """Returns which units, in these numbers, a device trains in a round."""

    def assign(self, device: Device, server_round: int) -> Structure:
        """The part for the device and the round."""
        return self.part(self.counts(device.profile.memory_bytes), device, server_round)

    def check_budget(self, budget_bytes: int | None) -> None:
        """Checks that a device of this budget can train the narrowest level.

        Raises:
            BudgetError: If it cannot.
        """
        super().check_budget(budget_bytes)
        self.counts(budget_bytes)

    def counts(self, budget: int | None) -> Mapping[str, int]:
        """Returns the unit counts of the widest part that fits a budget in bytes; found once for each.

        Raises:
            BudgetError: If none fits.
        """
        if budget not in self._counts:
            batch = self.scenario.train.batch_size
            self._counts[budget] = level_counts(self.memory, self.shares, budget, batch)
        return self._counts[budget]

    @cached_property
    def _counts(self) -> dict[int | None, Mapping[str, int]]:
        return {}


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
        """The first units, of those that the global model began with."""
        within = self.state.structure.counts
        return first(
            self.layout.widths, {group: min(count, within[group]) for group, count in counts.items()}
        )
