"""The two dense yardsticks: federated averaging of the full model, with and without regard to memory."""

from fedhp.reconcile import Reconciliation
from fedhp.structure import Structure

from .fleet import FleetStrategy
from .roster import Device


class Dense(FleetStrategy):
    """FedAvg (McMahan et al. 2017, arXiv 1602.05629) of the full model; every device takes part, no budget.

    The ceiling: what the fleet would reach if memory were no matter.
    """

    prunes = False
    budgeted = False

    def admits(self, device: Device) -> bool:
        """Every device."""
        return True

    def survivors(self, reconciliation: Reconciliation, server_round: int) -> Structure:
        """All units."""
        return self.state.structure


class Exclusive(FleetStrategy):
    """FedAvg of the full model over only those devices that can train it, with at least one sample.

    The honest floor: pruning must beat simply leaving small devices out.
    """

    prunes = False
    budgeted = True

    def admits(self, device: Device) -> bool:
        """Devices whose budget holds the full model with one sample."""
        budget = device.profile.memory_bytes
        least = self.layout.smallest_batch
        return budget is None or self.memory.training_bytes(self.layout.widths, least) <= budget

    def assign(self, device: Device) -> Structure:
        """All of the model: `admits` has seen that it fits, with a smaller batch if need be."""
        return self.state.structure

    def survivors(self, reconciliation: Reconciliation, server_round: int) -> Structure:
        """All units."""
        return self.state.structure
