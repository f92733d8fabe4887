"""Parts of a module that share its tensors, of which each step trains one: see ordered dropout."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from fedhp.model.architecture import Architecture
from fedhp.model.batch_norms import batch_norms
from fedhp.model.modules import set_parameter, thin_before_convolutions
from fedhp.model.optimizer import Optimizer
from fedhp.model.shrinking import at_level
from fedhp.training.optimizers import SGD
from fedhp.training.options import MOMENTUM

Part = tuple[nn.Module, Optimizer]


class Widths:
    """Draws, for every step, how wide a part of a module it trains.

    Args:
        arch: The model.
        module: The whole that the device was sent: the first units of the full model.
        optimizer: Its optimiser, of SGD's kind, with all state allocated.
        counts: The whole's unit counts.
        levels: Widths to draw from, as shares of the full model's; wider ones than the whole are left out.
        stream: Source of randomness.
    """

    def __init__(
        self,
        arch: Architecture,
        module: nn.Module,
        optimizer: Optimizer,
        counts: Mapping[str, int],
        levels: Sequence[float],
        stream: np.random.Generator,
    ) -> None:
        self._whole, self._stream = optimizer, stream
        narrower = [at_level(arch.layout, level) for level in sorted(levels)]
        self._parts: list[Part] = [
            _part(arch, module, optimizer, part)
            for number, part in enumerate(narrower)
            if part not in narrower[:number]  # floors and rounding make some levels alike
            and part != dict(counts)
            and all(part[group] <= count for group, count in counts.items())
        ]
        self._parts.append((module, optimizer))

    def draw(self) -> Part:
        """Returns the module and the optimiser of the next step, at the learning rate of the whole."""
        part = self._parts[self._stream.integers(len(self._parts))]
        part[1].param_groups[0]["lr"] = self._whole.param_groups[0]["lr"]
        return part


class _InPlaceSGD(SGD):
    """SGD over views, without a temporary; the fused update takes every tensor for contiguous."""

    @torch.no_grad()
    def step(self) -> None:
        """Updates every parameter; the state must have been allocated."""
        (group,) = self.param_groups
        for parameter in group["params"]:
            gradient = parameter.grad
            if group["weight_decay"]:
                gradient.add_(parameter, alpha=group["weight_decay"])
            if group["momentum"]:
                momentum = self.state[parameter][MOMENTUM]
                gradient = momentum.mul_(group["momentum"]).add_(gradient)
            parameter.add_(gradient, alpha=-group["lr"])


def _part(arch: Architecture, module: nn.Module, optimizer: Optimizer, counts: Mapping[str, int]) -> Part:
    with torch.device("meta"):
        part = arch.build(counts)
    state = {}
    for name, whole in module.named_parameters():
        shape = arch.layout.shape(name, counts)
        view = set_parameter(part, name, _first(whole.data, shape))
        state[view] = {key: _first(kept, shape) for key, kept in optimizer.state[whole].items()}
    for _, layer in list(batch_norms(part)):
        # Those of the whole are of another network; steps normalise by their batch.
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        layer.track_running_stats = False
    group = optimizer.param_groups[0]
    sgd = _InPlaceSGD(state, group["lr"], group["momentum"], group["weight_decay"])
    sgd.state.update(state)
    thin_before_convolutions(part, arch.layout)
    return part.train(), sgd


def _first(tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return tensor[tuple(slice(size) for size in shape)]
