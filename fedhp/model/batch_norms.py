"""A module's batch normalisations, and their running statistics while they are taken."""

from collections.abc import Callable, Iterator
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from fedhp.model.running import MEAN, SQUARE, named
from fedhp.model.scaler import unscaled
from fedhp.model.stored import POSITIONS


def batch_norms(module: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """Yields the batch normalisations that keep running statistics, by name."""
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and layer.track_running_stats:
            yield name, layer


def normalises_over_batches(module: nn.Module) -> bool:
    """Says whether a module in evaluation normalises over the batch, for want of running statistics."""
    return any(isinstance(m, _BatchNorm) and not m.track_running_stats for m in module.modules())


def statistics_names(module: nn.Module) -> list[str]:
    """Returns the names under which a module's running statistics travel."""
    return [named(name, statistic) for name, _ in batch_norms(module) for statistic in (MEAN, SQUARE)]


def counter_bytes(module: nn.Module) -> int:
    """Returns the bytes of buffers that grow with no group, such as the number of batches seen."""
    statistics = {id(s) for _, layer in batch_norms(module) for s in (layer.running_mean, layer.running_var)}
    others = (
        buffer
        for name, buffer in module.named_buffers()
        if id(buffer) not in statistics and name.rpartition(".")[2] != POSITIONS
    )
    return sum(buffer.nbytes for buffer in others)


def restart_statistics(module: nn.Module) -> None:
    """Makes running statistics the mean over the samples to come, whatever they were before."""
    for _, layer in batch_norms(module):
        layer.reset_running_stats()
        if layer in _WEIGHING:
            _WEIGHING.pop(layer).remove()
        _WEIGHING[layer] = layer.register_forward_pre_hook(_by_samples())


_WEIGHING: WeakKeyDictionary[nn.Module, RemovableHandle] = WeakKeyDictionary()


def _by_samples() -> Callable[[_BatchNorm, tuple[torch.Tensor, ...]], None]:
    """Lets a batch count by its samples: torch's own mean is over batches, and the last may be short."""
    seen = 0

    def weigh(layer: _BatchNorm, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal seen
        if layer.training:
            seen += len(inputs[0])
            layer.momentum = len(inputs[0]) / seen

    return weigh


@torch.no_grad()
def retake_statistics(module: nn.Module, batches: Iterator[torch.Tensor]) -> None:
    """Makes running statistics the mean over these samples, computed by the network as it now is.

    Of the batches, one is held at a time.
    """
    restart_statistics(module)
    with unscaled(module):
        while (samples := next(batches, None)) is not None:
            module(samples)
            del samples  # before the next one is loaded
