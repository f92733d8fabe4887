"""Aggregation strategies: Flower strategies, one file each, thin over `fedhp.reconcile`."""

from .dense import Dense, Exclusive
from .fleet import FleetStrategy
from .mask_intersection import MaskIntersection

STRATEGIES: dict[str, type[FleetStrategy]] = {
    "mask_intersection": MaskIntersection,
    "dense": Dense,
    "exclusive": Exclusive,
}

__all__ = ["STRATEGIES", "Dense", "Exclusive", "FleetStrategy", "MaskIntersection"]
