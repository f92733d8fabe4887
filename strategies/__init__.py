"""Aggregation strategies: Flower strategies, one file each, thin over pure rules in `fedhp`."""

from fedhp.federation.strategy import FleetStrategy

from .all_in_one import AllInOne
from .dense import Dense, Exclusive, Smallest
from .feddst import FedDST
from .federated_dropout import FederatedDropout
from .fedrolex import FedRolex
from .fedtiny import FedTiny
from .fjord import Fjord
from .heterofl import HeteroFL
from .holders_mean import HoldersMean
from .mask_intersection import MaskIntersection
from .scratch import Scratch
from .shrinkage import Shrinkage
from .zero_filled import ZeroFilled

STRATEGIES: dict[str, type[FleetStrategy]] = {
    "mask_intersection": MaskIntersection,
    "holders_mean": HoldersMean,
    "feddst": FedDST,
    "zero_filled": ZeroFilled,
    "heterofl": HeteroFL,
    "fedrolex": FedRolex,
    "fjord": Fjord,
    "all_in_one": AllInOne,
    "federated_dropout": FederatedDropout,
    "fedtiny": FedTiny,
    "exclusive": Exclusive,
    "smallest": Smallest,
    "scratch": Scratch,
    "shrinkage": Shrinkage,
    "dense": Dense,
}

__all__ = [
    "STRATEGIES",
    "AllInOne",
    "Dense",
    "Exclusive",
    "FedDST",
    "FedRolex",
    "FedTiny",
    "FederatedDropout",
    "Fjord",
    "FleetStrategy",
    "HeteroFL",
    "HoldersMean",
    "MaskIntersection",
    "Scratch",
    "Shrinkage",
    "Smallest",
    "ZeroFilled",
]
