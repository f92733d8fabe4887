"""Dynamic hard pruning: select units, and cut them out of module and optimiser.

`cut` is the only function that changes a model's shape: it slices every coupled tensor, and the optimiser's
state with it, and the memory is released at once. Nothing is masked and nothing grows back.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.model.layout import Layout
from fedhp.model.modules import cut_statistics, lie_innermost, restate_sizes
from fedhp.model.optimizer import Optimizer
from fedhp.model.structure import Structure

# The axes of a convolution's weights from the outermost to the innermost, where channels lie innermost.
_AS_THEY_LIE = (0, 2, 3, 1)


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


def cut(
    module: nn.Module,
    optimizer: Optimizer,
    layout: Layout,
    within: Structure,
    sub: Structure,
) -> None:
    """Cuts module and optimiser state from ``within`` down to ``sub``, in place, one tensor at a time.

    Parameters stay the same objects, so that the optimiser's groups need no change; gradients are dropped.

    Raises:
        TypeError: If the optimiser keeps state of a shape that it is not known how to cut.
    """
    for name, parameter in module.named_parameters():
        parameter.grad = None
        takes = layout.indices(name, within, sub)
        if not takes:
            continue
        before = parameter.shape
        innermost = lie_innermost(parameter, layout)
        parameter.data = _take(parameter.data, takes, innermost)
        for key, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, torch.Tensor) or value.dim() == 0:
                continue
            if value.shape != before:
                raise TypeError(
                    f"{type(optimizer).__name__} keeps '{key}' of shape {tuple(value.shape)} for "
                    f"{name} of shape {tuple(before)}; only state of the parameter's shape can be cut"
                )
            optimizer.state[parameter][key] = _take(value, takes, innermost)
    cut_statistics(module, layout, within, sub)
    restate_sizes(module)


def _take(
    tensor: torch.Tensor, takes: Sequence[tuple[int, NDArray[np.intp]]], innermost: bool
) -> torch.Tensor:
    """Returns the entries to keep, in one step: cutting axis by axis would hold two copies for a moment."""
    positions = {axis: torch.from_numpy(p).to(tensor.device) for axis, p in takes}
    if innermost:
        as_they_lie = {_AS_THEY_LIE.index(axis): chosen for axis, chosen in positions.items()}
        return _pick(tensor.permute(_AS_THEY_LIE), as_they_lie).permute(0, 3, 1, 2)
    return _pick(tensor, positions)


def _pick(tensor: torch.Tensor, positions: Mapping[int, torch.Tensor]) -> torch.Tensor:
    if len(positions) == 1:
        ((axis, chosen),) = positions.items()
        return tensor.index_select(axis, chosen)
    every = (torch.arange(size, device=tensor.device) for size in tensor.shape)
    grid = [positions.get(axis, whole) for axis, whole in enumerate(every)]
    return tensor[tuple(p.view(-1, *[1] * (tensor.dim() - axis - 1)) for axis, p in enumerate(grid))]
