"""The strategy that fedhp exists for: every device prunes, and the intersection of the masks survives."""

from collections.abc import Sequence

from fedhp.assignment import fit_structure
from fedhp.errors import BudgetError
from fedhp.memory import samples
from fedhp.models import fresh_state
from fedhp.reconcile import Reconciliation, intersection
from fedhp.structure import Structure

from .fleet import FleetStrategy
from .roster import Device


class MaskIntersection(FleetStrategy):
    """Reconciles differently pruned clients by mask intersection with a quorum.

    A unit survives a round when at least ``strategy.quorum`` (by examples) of the participants that it was
    assigned to kept it. The structure never falls below the schedule's size for the round (except where
    all assignees agree): as many clients cut different units in one round, their plain intersection
    would shrink many times faster than each of them was asked to.
    """

    prunes = True
    budgeted = True

    def admits(self, device: Device) -> bool:
        """Every device that can train at least the smallest structure with the smallest batch."""
        budget, least = device.profile.memory_bytes, self.layout.smallest_batch
        smallest = self.memory.training_bytes(self.layout.smallest(), least)
        if budget is not None and smallest > budget:
            raise BudgetError(
                f"client {device.client} ({device.profile.device_class}): training the smallest structure "
                f"with {samples(least)} takes {smallest:,} bytes; its budget is {budget:,} bytes"
            )
        return True

    def enlist(self, devices: Sequence[Device]) -> None:
        """Takes the devices, and starts from the largest structure that one of them can train.

        Units that no device could ever hold would stay at their random initial weights and only do harm.
        """
        super().enlist(devices)
        budgets = [device.profile.memory_bytes for device in self.devices]
        most = None if None in budgets else max(budget for budget in budgets if budget is not None)
        batch = self.scenario.train.batch_size
        structure = fit_structure(self.memory, self.recipe.shape, self.state, most, batch)
        if structure != self.state.structure:
            self.state = fresh_state(self.recipe.architecture, structure, self.scenario.seed)

    def survivors(self, reconciliation: Reconciliation, server_round: int) -> Structure:
        """The mask intersection, bounded by the schedule's size at the end of the round."""
        bounds = self.recipe.schedule.counts(server_round / self.scenario.rounds)
        for group, floor in self.layout.floors.items():
            bounds[group] = max(bounds[group], floor)
        return intersection(
            reconciliation.shares(), self.state.structure, bounds, self.scenario.strategy.quorum
        )
