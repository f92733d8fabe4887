"""How many bits a network takes that is packed as tightly as its weights allow."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

FLOAT_BITS = 32


@dataclass(frozen=True)
class LayerFigures:
    """A layer's weights after compression.

    Attributes:
        name: Of the layer.
        weights: How many it has.
        zeros: How many of them are 0.
        bits: What they take, with what is needed to read them: masks, scales, a basis.
    """

    name: str
    weights: int
    zeros: int
    bits: int


@dataclass(frozen=True, eq=False)
class Compressed:
    """What a method made of a network.

    Attributes:
        network: In evaluation mode; the one that was given is as it was.
        layers: Its dense layers and convolutions, in the order of their calls.
    """

    network: nn.Module
    layers: Sequence[LayerFigures]

    @property
    def packed_bits(self) -> int:
        """What the whole network takes: its layers' weights as they are counted, all else in 32 bits."""
        others = float_bits(self.network) - FLOAT_BITS * sum(layer.weights for layer in self.layers)
        return others + sum(layer.bits for layer in self.layers)


def float_bits(network: nn.Module) -> int:
    """Returns what a network takes in float32, with running statistics but for counts of batches."""
    values = [*network.parameters(), *(one for one in network.buffers() if one.is_floating_point())]
    return FLOAT_BITS * sum(value.numel() for value in values)


def sparse_bits(weights: int, zeros: int, bits: int = FLOAT_BITS) -> int:
    """Returns what weights of so many bits take: all of them, or those that are not 0 and a mask, if less."""
    return min(weights * bits, weights + (weights - zeros) * bits)
