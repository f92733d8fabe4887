"""The strategy that fedhp exists for: every device prunes, and the intersection of the masks survives."""

from collections.abc import Sequence

from fedhp.aggregation.assignment import fit_structure
from fedhp.aggregation.reconcile import Reconciliation
from fedhp.federation.device import Device
from fedhp.federation.strategy import FleetStrategy
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.training.method_names import PRUNING


class MaskIntersection(FleetStrategy):
    """Reconciles differently pruned clients by mask intersection with a quorum.

    A unit survives a round when at least ``strategy.quorum`` (by examples) of the participants that it was
    assigned to kept it. The structure never falls below the schedule's size for the round (except where
    all assignees agree): as many clients cut different units in one round, their plain intersection
    would shrink many times faster than each of them was asked to.
    """

    methods = PRUNING
    options = frozenset({"quorum", "uncovered"})
    paper = "the devices prune by DynHP: Valerio et al. 2022, arXiv 2011.08545"

    def enlist(self, devices: Sequence[Device]) -> None:
        """Takes the devices, and starts from the largest structure that one of them can train.

        Units that no device could ever hold would stay at their random initial weights and only do harm.
        """
        super().enlist(devices)
        self._fits: dict[int | None, tuple[ModelState, Structure]] = {}
        budgets = [device.profile.memory_bytes for device in self.devices]
        most = None if None in budgets else max(budget for budget in budgets if budget is not None)
        self.start_from(self._fit(most))

    def assign(self, device: Device, server_round: int) -> Structure:
        """The best part that fits the device's budget."""
        return self._fit(device.profile.memory_bytes)

    def survivors(self, reconciliation: Reconciliation, server_round: int) -> Structure:
        """The mask intersection, bounded by the schedule's size at the end of the round."""
        return reconciliation.agreed(self.scenario.strategy.quorum, self.bounds(server_round))

    def bounds(self, server_round: int) -> dict[str, int]:
        """Returns how many units of each group the schedule wants at the end of a round."""
        scheduled = self.recipe.schedule.counts(server_round / self.scenario.rounds)
        return {group: max(scheduled[group], floor) for group, floor in self.layout.floors.items()}

    def _fit(self, budget: int | None) -> Structure:
        """Returns what fits a budget of the model now, found once for all devices that have it."""
        state, structure = self._fits.get(budget, (None, self.state.structure))
        if state is not self.state:
            batch = self.scenario.train.batch_size
            structure = fit_structure(self.memory, self.recipe.shape, self.state, budget, batch)
            self._fits[budget] = self.state, structure
        return structure
