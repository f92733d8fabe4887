"""Votes, as in FedDST."""

from fedhp.reconcile import Reconciliation, majority
from fedhp.structure import Structure

from .mask_intersection import MaskIntersection


class FedDST(MaskIntersection):
    """Units need ``strategy.min_votes`` clients, and the best of them are kept: FedDST's server, for units.

    FedDST (Bibikar et al. 2022, arXiv 2112.09824) prunes single weights, and lets clients grow some back;
    here clients cut whole units, for good, which frees memory.
    """

    options = frozenset({"min_votes", "uncovered"})

    def survivors(self, reconciliation: Reconciliation, server_round: int) -> Structure:
        """The units of most votes and highest score, as many as the schedule wants."""
        return majority(
            reconciliation.keepers,
            reconciliation.scores(),
            self.state.structure,
            self.bounds(server_round),
            self.scenario.strategy.min_votes,
        )
