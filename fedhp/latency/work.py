"""What a network of given widths has to do for a sample, as far as its time in a runtime follows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

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
_PRODUCTS = [place for place, term in enumerate(TERMS) if term.startswith("products")]
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
        for name, places in self._places.items():
            outputs, inputs, *kernel = layout.shape(name, counts)
            if not kernel:
                found[2] += outputs * inputs
                found[3] += outputs
                continue
            padded = -(-outputs // block) * block
            whole = outputs % block == 0 and (inputs % block == 0 or inputs <= _OF_IMAGES)
            found[4 if whole else 5] += places * math.prod(kernel) * padded * inputs
            found[6] += places * padded
        return found

    def products(self, counts: Counts) -> int:
        """Returns the multiplications of weights that a sample takes."""
        return int(self.terms(counts, 1)[_PRODUCTS].sum())

    @cached_property
    def _places(self) -> Mapping[str, int]:
        """Per weight of a dense layer or convolution, the places at which it is applied to a sample."""
        layout = self.arch.layout
        module = self.arch.build(layout.widths).to("meta").eval()
        weights = {name for name, shape in layout.shapes.items() if len(shape) > 1}
        places: dict[str, int] = {}
        for name, layer in module.named_modules():
            if (own := f"{name}.weight") in weights:
                layer.register_forward_hook(
                    lambda _layer, _taken, given, own=own: places.update({own: math.prod(given.shape[2:])})
                )
        module(torch.zeros(1, *self.arch.taken_shape(layout.widths), device="meta"))
        return places
