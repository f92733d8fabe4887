"""Votes, as in FedDST."""

from collections.abc import Sequence

from fedhp.aggregation.reconcile import Reconciliation
from fedhp.federation.device import Device
from fedhp.model.structure import Structure

from .mask_intersection import MaskIntersection


class FedDST(MaskIntersection):
    """The best of the units that enough clients have kept survive: FedDST's server, for units.

    As many as ``strategy.min_votes`` are enough. FedDST itself prunes single weights, and lets clients grow
    some back; here clients cut whole units, for good, which frees memory.
    """

    paper = "Bibikar et al. 2022, arXiv 2112.09824"
    options = frozenset({"min_votes", "uncovered"})

    def enlist(self, devices: Sequence[Device]) -> None:
        """Takes the devices.

        Raises:
            ScenarioError: If they are fewer than the votes that a unit needs.
        """
        super().enlist(devices)
        self._check_attainable("strategy.min_votes", self.scenario.strategy.min_votes)

    def survivors(self, reconciliation: Reconciliation, server_round: int) -> Structure:
        """The units of most votes and highest score, as many as the schedule wants."""
        return reconciliation.elected(self.scenario.strategy.min_votes, self.bounds(server_round))
