"""What convolutions would say if other elements of their filters were dropped at each position."""

from collections.abc import Callable

import torch
from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LEAST = 1e-12  # below the root, whose slope at 0 is none


class PositionNoise:
    """Adds, in training, to what each convolution says the noise of elements dropped at each position.

    An element that is dropped with probability p, and weighs 1 / (1 - p) otherwise, adds
    ``x^2 w^2 p / (1 - p)`` to the variance of a sum of ``x w``, and nothing to its mean. Of the sum, a normal
    variate of that mean and variance is taken, as sums of many terms nearly are.

    Args:
        module: The network, of which each convolution is hooked.
        rate: p.
        draw: Returns standard normal variates of the shape of a tensor.
    """

    def __init__(self, module: nn.Module, rate: float, draw: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._odds, self._draw = rate / (1 - rate), draw
        layers = [layer for layer in module.modules() if isinstance(layer, CONVOLUTIONS)]
        self._handles = [layer.register_forward_hook(self._add) for layer in layers]

    def close(self) -> None:
        """Leaves the network as it was."""
        for handle in self._handles:
            handle.remove()

    def _add(self, layer: nn.Module, taken: tuple[torch.Tensor, ...], said: torch.Tensor) -> torch.Tensor:
        if not layer.training:
            return said
        assert isinstance(layer, CONVOLUTIONS)
        convolved = layer._conv_forward(taken[0].square(), layer.weight.square(), None)
        return said + (self._odds * convolved + _LEAST).sqrt() * self._draw(said)


def standard_normal(like: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Returns standard normal variates of a tensor's shape and device, in the order of entries."""
    return torch.empty(like.shape, dtype=like.dtype, device=like.device).normal_(generator=generator)


def has_convolutions(module: nn.Module) -> bool:
    """Says whether a network has any."""
    return any(isinstance(layer, CONVOLUTIONS) for layer in module.modules())
