"""What a network of given widths has to do for a sample, as far as its time in a runtime follows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedhp.costs.products import places, products
from fedhp.model.architecture import INPUTS, Architecture

Counts = Mapping[str, int]

# What a network's work is told by, in its order.
TERMS = (
    "calls",
    "inputs picked",
    "products of dense layers",
    "outputs of dense layers",
    "products of convolutions in whole blocks",
    "products of other convolutions",
    "outputs of convolutions",
)
_OF_IMAGES = 4  # channels at most, which a first convolution takes as they are, in whole blocks or not


@dataclass(frozen=True, eq=False)
class Work:
    """The work of an architecture's networks, by widths.

    Attributes:
        arch: The network.
    """

    arch: Architecture

    def terms(self, counts: Counts, block: int) -> NDArray[np.float64]:
        """Returns the amount of each of `TERMS`, shape ``(7,)``.

        Args:
            counts: The units that each group keeps.
            block: Channels that the runtime computes together: outputs count as whole blocks.
        """
        layout, found = self.arch.layout, np.zeros(len(TERMS))
        found[0] = 1
        if counts.get(INPUTS, 0) < layout.widths.get(INPUTS, 0):
            found[1] = counts[INPUTS]
        for name, number in places(self.arch).items():
            outputs, inputs, *kernel = layout.shape(name, counts)
            if not kernel:
                found[2] += outputs * inputs
                found[3] += outputs
                continue
            padded = -(-outputs // block) * block
            whole = outputs % block == 0 and (inputs % block == 0 or inputs <= _OF_IMAGES)
            found[4 if whole else 5] += number * math.prod(kernel) * padded * inputs
            found[6] += number * padded
        return found

    def products(self, counts: Counts) -> int:
        """Returns the multiplications of weights that a sample takes."""
        return products(self.arch, counts)
