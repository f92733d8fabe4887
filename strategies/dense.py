"""The dense yardsticks: federated averaging of one model, with and without regard to memory."""

from collections.abc import Sequence

from fedhp.aggregation.submodels import first, level_counts
from fedhp.federation.device import Device
from fedhp.federation.strategy import FleetStrategy

_FEDAVG = "FedAvg: McMahan et al. 2017, arXiv 1602.05629"


class Dense(FleetStrategy):
    """FedAvg of the full model; every device takes part, whatever its budget.

    The ceiling: what the fleet would reach if memory were no matter.
    """

    paper = _FEDAVG
    budgeted = False

    def check_budget(self, budget_bytes: int | None) -> None:
        """Takes any."""


class Exclusive(FleetStrategy):
    """FedAvg of the full model over only those devices that can train it, with a smaller batch if need be.

    The honest floor: pruning must beat simply leaving small devices out.
    """

    paper = _FEDAVG

    def check_budget(self, budget_bytes: int | None) -> None:
        """Takes any: `admits` leaves out those that are too small."""

    def admits(self, device: Device) -> bool:
        """Devices whose budget holds the full model with as few samples as it takes."""
        budget = device.profile.memory_bytes
        least = self.layout.smallest_batch
        return budget is None or self.memory.training_bytes(self.layout.widths, least) <= budget


class Smallest(FleetStrategy):
    """FedAvg of the model that the weakest device can train; every device takes part.

    The other honest floor: pruning must beat simply choosing a model that fits everyone.
    """

    paper = _FEDAVG
    cuts_inputs = False

    def enlist(self, devices: Sequence[Device]) -> None:
        """Takes the devices, and starts from the widest model that fits them all, all groups cut alike."""
        super().enlist(devices)
        budgets = [device.profile.memory_bytes for device in self.devices]
        least = min((budget for budget in budgets if budget is not None), default=None)
        counts = level_counts(self.memory, (), least, self.scenario.train.batch_size)
        self.start_from(first(self.layout.widths, counts))
