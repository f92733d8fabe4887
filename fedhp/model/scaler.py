"""HeteroFL's scaler: what a part of a network gives, in training, in the magnitude of the whole."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Scaler(nn.Module):
    """Divides by the share of the channels that are left, in training (Diao et al. 2021, arXiv 2010.01264).

    The share is that of the maps that it is given: a part of half the width is doubled. In evaluation, and in
    a network that is whole, it changes nothing. A normalisation that follows takes the factor away again, all
    but its epsilon, which then counts for less.

    Args:
        num_channels: Of the maps in the full network.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.num_channels = num_channels

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps ``(batch, channels, height, width)`` to the same shape."""
        return maps * (self.num_channels / maps.shape[1]) if self.training else maps

    def extra_repr(self) -> str:
        """Says the channels of the full network."""
        return str(self.num_channels)


def has_scalers(module: nn.Module) -> bool:
    """Says whether a network computes in training with other magnitudes than in evaluation."""
    return any(isinstance(layer, Scaler) for layer in module.modules())


@contextmanager
def unscaled(module: nn.Module) -> Iterator[None]:
    """Lets scalers do in the block what they do in evaluation."""
    before = [(layer, layer.training) for layer in module.modules() if isinstance(layer, Scaler)]
    try:
        for layer, _ in before:
            layer.eval()
        yield
    finally:
        for layer, training in before:
            layer.train(training)
