"""Dynamic hard pruning: select units, and cut them out of module and optimiser.

`cut` is the only function that changes a model's shape: it slices every coupled tensor, and the optimiser's
state with it, and the memory is released at once. Nothing is masked and nothing grows back.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedhp.model.array_network import ArrayNetwork
from fedhp.model.kernels import kernels_of
from fedhp.model.layout import Layout
from fedhp.model.optimizer import Optimizer
from fedhp.model.structure import Structure

if TYPE_CHECKING:
    from torch import nn


def select(
    scores: Mapping[str, NDArray[np.floating]],
    structure: Structure,
    counts: Mapping[str, int],
    floors: Mapping[str, int],
    marginal: float = 0.0,
) -> Structure:
    """Returns the structure that keeps the best ``counts[group]`` units of each group.

    Of equal scores the lower unit is kept, so that the count is met exactly and the result is reproducible.

    Args:
        scores: One score per kept unit, in the order of the kept units, as shares of the group's mean.
        structure: The structure to select from.
        counts: Units to keep per group at most.
        floors: Units to keep per group at least.
        marginal: Units that score below this share of the mean go too, down to the floors.
    """
    masks = {}
    for group, mask in structure.masks.items():
        kept = structure.kept(group)
        score = scores[group]
        worthwhile = int((score >= marginal).sum())
        count = max(floors[group], min(counts[group], worthwhile, len(kept)))
        best = np.argsort(-score, kind="stable")[: min(count, len(kept))]
        masks[group] = np.zeros_like(mask)
        masks[group][kept[best]] = True
    return Structure(masks)


def cut(module: "nn.Module", optimizer: Optimizer, layout: Layout, within: Structure, sub: Structure) -> None:
    """Cuts module and optimiser state from ``within`` down to ``sub``, in place, one tensor at a time.

    Parameters stay the same objects, so that the optimiser's groups need no change; gradients are dropped.

    Raises:
        TypeError: If the optimiser keeps state of a shape that it is not known how to cut.
    """
    from fedhp.model.modules import cut_statistics, restate_sizes

    cut_tensors(module, optimizer, layout, within, sub)
    cut_statistics(module, layout, within, sub)
    restate_sizes(module)


def cut_tensors(
    network: "nn.Module | ArrayNetwork",
    optimizer: Optimizer,
    layout: Layout,
    within: Structure,
    sub: Structure,
) -> None:
    """Cuts parameters and optimiser state alone, which is all that there is to a network of arrays."""
    for name, parameter in network.named_parameters():
        parameter.grad = None
        takes = layout.indices(name, within, sub)
        if takes:
            _cut_one(name, parameter, optimizer, takes, layout)


def _cut_one(
    name: str,
    parameter: Any,
    optimizer: Optimizer,
    takes: Sequence[tuple[int, NDArray[np.intp]]],
    layout: Layout,
) -> None:
    before, entries = parameter.shape, kernels_of(parameter.data).entries
    parameter.data = entries(parameter.data, takes, layout)
    for key, value in optimizer.state.get(parameter, {}).items():
        if not isinstance(value, type(parameter.data)) or value.ndim == 0:
            continue
        if value.shape != before:
            raise TypeError(
                f"{type(optimizer).__name__} keeps '{key}' of shape {tuple(value.shape)} for {name} of shape "
                f"{tuple(before)}; only state of the parameter's shape can be cut"
            )
        optimizer.state[parameter][key] = entries(value, takes, layout)
