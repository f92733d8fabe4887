"""The union of the masks: the mildest rule for clients that prune."""

from fedhp.aggregation.reconcile import Reconciliation
from fedhp.model.structure import Structure

from .mask_intersection import MaskIntersection

_ANYBODY = 1e-9  # a share that a single example of any fleet exceeds


class HoldersMean(MaskIntersection):
    """A unit survives as long as one client keeps it; weights are means over the clients that hold them.

    So Hermes and its kin average what clients have in common. The model shrinks only as far as all clients
    agree, and so may end far above the target.
    """

    paper = "after Hermes: Li et al. 2021"
    options = frozenset({"uncovered"})

    def survivors(self, reconciliation: Reconciliation, server_round: int) -> Structure:
        """Whatever somebody kept."""
        return reconciliation.agreed(_ANYBODY, self.layout.floors)
