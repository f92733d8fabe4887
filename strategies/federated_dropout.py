"""Federated dropout: units at random."""

from collections.abc import Mapping

from fedhp.aggregation.submodels import random_part
from fedhp.federation.device import Device
from fedhp.model.structure import Structure
from fedhp.seeds import generator

from .submodel import SubModel


class FederatedDropout(SubModel):
    """Every client draws, in every round, the units that it trains."""

    paper = "Caldas et al. 2018, arXiv 1812.07210"

    def part(self, counts: Mapping[str, int], device: Device, server_round: int) -> Structure:
        """Units drawn for this client and round."""
        stream = generator(self.scenario.seed, "federated dropout", server_round, device.client)
        return random_part(self.layout.widths, counts, stream)
