"""The units of a network put into another order, which computes the same."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.model.batch_norms import batch_norms
from fedhp.model.layout import Layout
from fedhp.model.optimizer import Optimizer
from fedhp.model.running import MEAN, named

Orders = Mapping[str, NDArray[np.intp]]  # per group, which unit comes first, second, ...


def reorder(module: nn.Module, optimizer: Optimizer, layout: Layout, orders: Orders) -> None:
    """Puts the units of each group into an order, in place, with all that the optimiser keeps of them.

    At a time it takes the memory of one tensor's copy.
    """
    counts = {group: len(order) for group, order in orders.items()}
    for name, tensor in _tensors(module, optimizer):
        for place in layout.places(name, counts):
            order = torch.from_numpy(orders[place.group]).to(tensor.device)
            units = place.unfold(tensor)
            units.copy_(units.index_select(place.axis, order))


def inverse(orders: Orders) -> Orders:
    """Returns the orders that undo these."""
    return {group: np.argsort(order) for group, order in orders.items()}


def _tensors(module: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields every tensor that units index, with the name of the parameter by which they do."""
    for name, parameter in module.named_parameters():
        yield name, parameter.data
        for kept in optimizer.state[parameter].values():
            if isinstance(kept, torch.Tensor) and kept.shape == parameter.shape:
                yield name, kept
    for name, layer in batch_norms(module):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        yield named(name, MEAN), layer.running_mean
        yield named(name, MEAN), layer.running_var
