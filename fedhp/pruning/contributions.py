"""What every unit contributes, as training goes on: an average of the criterion's scores."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.model.layout import Layout
from fedhp.model.structure import Structure
from fedhp.pruning.criteria import Criterion
from fedhp.pruning.evidence import Taps, evidence

Scores = dict[str, NDArray[np.float32]]

# Every how many steps contributions are looked at: looking costs a fifth of a step, and every eighth step
# ranks the units as well as every one. The weight of the newest look in the average, once there are as many:
# twenty of memory, since the Taylor term of a single step is noisy.
STRIDE = 8
_NEWEST = 0.05


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
    def is_due(self) -> bool:
        """Whether the step at hand is observed."""
        return self._criterion.tracked and self._num_steps % STRIDE == 0

    def observe(self) -> None:
        """Takes the scores of the step at hand, if it is due; call while there are gradients."""
        if self.is_due:
            self._average_in()

    def count(self) -> None:
        """Takes in that a step is done."""
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
        if self.is_due:
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
