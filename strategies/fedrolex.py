"""FedRolex: a rolling window of units."""

from collections.abc import Mapping

from fedhp.aggregation.submodels import rolling
from fedhp.federation.device import Device
from fedhp.model.structure import Structure

from .submodel import SubModel


class FedRolex(SubModel):
    """Every client trains a window of units, which moves by one a round."""

    paper = "Alam et al. 2022, arXiv 2212.01548"

    def part(self, counts: Mapping[str, int], device: Device, server_round: int) -> Structure:
        """The round's window."""
        return rolling(self.layout.widths, counts, server_round)
