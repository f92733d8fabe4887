"""The weak control: averaging that knows nothing of structures."""

from fedhp.aggregation.reconcile import Reconciliation
from fedhp.model.state import ModelState

from .mask_intersection import MaskIntersection


class ZeroFilled(MaskIntersection):
    """Mask intersection, but whoever lacks a weight counts as having sent a zero."""

    options = frozenset({"quorum"})

    def average(self, reconciliation: Reconciliation) -> ModelState:
        """The sum over the holders, divided by everyone's examples."""
        return reconciliation.mean("zero_filled")
