"""Dynamic hard pruning: track contributions, select units, cut them out of module and optimiser.

`cut` is the only function that changes a model's shape: it slices every coupled tensor, and the optimiser's
state with it, and the memory is released at once. Nothing is masked and nothing grows back.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.criteria import Criterion
from fedhp.evidence import Taps, evidence
from fedhp.modules import cut_statistics, lie_innermost, restate_sizes
from fedhp.structure import Layout, Structure

Scores = dict[str, NDArray[np.float32]]

# Every how many steps contributions are looked at: looking costs a fifth of a step, and every eighth step
# ranks the units as well as every one. The weight of the newest look in the average, once there are as many:
# twenty of memory, since the Taylor term of a single step is noisy.
STRIDE = 8
_NEWEST = 0.05

# The axes of a convolution's weights from the outermost to the innermost, where channels lie innermost.
_AS_THEY_LIE = (0, 2, 3, 1)


class Contributions:
    """The contribution of every kept unit: what was known before, and what this training shows.

    Scores are shares of their group's mean, which makes those of different clients and groups comparable.

    Args:
        layout: The model's wiring.
        criterion: What to score by.
        module: The model in training.
        known: Per group, the scores known before, of shape ``(units,)``.
        blend: Weight of the known scores, 0 to 1; the rest is that of the client's own.
        generator: Source of randomness for criteria that use it.
    """

    def __init__(
        self,
        layout: Layout,
        criterion: Criterion,
        module: nn.Module,
        known: Mapping[str, NDArray[np.float32]],
        blend: float,
        generator: torch.Generator,
    ) -> None:
        self._criterion = criterion
        self._generator = generator
        self._known = dict(known)
        self._blend = blend
        self._layout = layout
        self._parameters = dict(module.named_parameters())
        self._average: dict[str, torch.Tensor] = {}
        self._shown: dict[str, torch.Tensor] = {}
        self._num_shown: Counter[str] = Counter()
        self._num_steps = 0
        self._look()
        self._taps = (
            Taps(module, layout, self._counts, self._take_activations) if criterion.activations else None
        )

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that is kept between steps."""
        return list(self._average.values())

    @property
    def _counts(self) -> dict[str, int]:
        return {group: len(scores) for group, scores in self._known.items()}

    @property
    def _is_due(self) -> bool:
        """Whether the step at hand is observed."""
        return self._num_steps % STRIDE == 0

    def observe(self) -> None:
        """Takes the scores of the step just done; call after the backward pass, before gradients go."""
        if self._criterion.tracked and self._is_due:
            self._average_in()
        self._num_steps += 1

    def own(self) -> Scores:
        """Returns the scores that this training alone shows, of shape ``(units,)`` per group."""
        raw = self._average if self._criterion.tracked else {g: self._score(g) for g in self.evidence}
        return {group: _shares(score.cpu().numpy()) for group, score in raw.items()}

    def blended(self) -> Scores:
        """Returns the scores to select by: the known and the own, blended."""
        known, own = np.float32(self._blend), np.float32(1 - self._blend)
        return {
            group: (known * _shares(self._known[group]) + own * score).astype(np.float32)
            for group, score in self.own().items()
        }

    def cut(self, within: Structure, sub: Structure) -> None:
        """Forgets the units that were cut."""
        for group in self._known:
            positions = within.positions(sub, group)
            self._known[group] = self._known[group][positions]
            if group in self._average:
                self._average[group] = self._average[group][torch.from_numpy(positions)]
        self._look()
        if self._taps is not None:
            self._taps.recount(self._counts)

    def close(self) -> None:
        """Leaves the module as it was."""
        if self._taps is not None:
            self._taps.close()

    def _look(self) -> None:
        """Finds what there is to see of each group, the units being as many as they now are."""
        self.evidence = evidence(self._layout, self._parameters, self._counts, self._generator)

    def _take_activations(self, group: str, activations: torch.Tensor) -> None:
        if self._is_due:
            seen = replace(self.evidence[group], activations=activations)
            score = self._criterion.score(seen)
            self._num_shown[group] += 1
            # Added up rather than kept: many layers may take one group in.
            self._shown[group] = self._shown[group].add_(score) if group in self._shown else score

    def _average_in(self) -> None:
        weight = max(_NEWEST, 1 / (self._num_steps // STRIDE + 1))
        for group in self.evidence:
            score = self._score(group)
            if group in self._average:
                self._average[group].lerp_(score, weight)
            else:
                self._average[group] = score
        self._shown.clear()
        self._num_shown.clear()

    def _score(self, group: str) -> torch.Tensor:
        """Returns a group's score now; of activations, the mean over the layers that take them in."""
        if self._criterion.activations:
            return self._shown[group].div_(self._num_shown[group])
        return self._criterion.score(self.evidence[group])


def _shares(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divides scores by their mean; where all are zero, all are alike."""
    mean = scores.mean()
    return scores / mean if mean > 0 else np.ones_like(scores)


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
    optimizer: torch.optim.Optimizer,
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
