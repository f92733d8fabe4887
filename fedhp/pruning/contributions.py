"""What every unit contributes, as training goes on: an average of the criterion's scores."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedhp.model.kernels import kernels_of
from fedhp.model.layout import Layout
from fedhp.model.state import Scores
from fedhp.model.structure import Structure
from fedhp.pruning.criteria import Criterion
from fedhp.pruning.evidence import evidence

if TYPE_CHECKING:
    import torch
    from torch import nn

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
        module: The model in training; where no activations are looked at, it may be an `ArrayNetwork`.
        known: Per group, the scores known before, of shape ``(units,)``.
        blend: Weight of the known scores, 0 to 1; the rest is that of the client's own.
        generator: Source of randomness for criteria that use it.
    """

    def __init__(
        self,
        layout: Layout,
        criterion: Criterion,
        module: "nn.Module",
        known: Mapping[str, NDArray[np.float32]],
        blend: float,
        generator: np.random.Generator,
    ) -> None:
        self._criterion, self._generator, self._layout = criterion, generator, layout
        self._known, self._blend = dict(known), blend
        self._parameters: dict[str, Any] = dict(module.named_parameters())
        self._average: dict[str, Any] = {}
        self._shown: dict[str, torch.Tensor] = {}
        self._num_shown: Counter[str] = Counter()
        self._num_steps = 0
        self._look()
        self._taps = None
        if criterion.activations:
            from fedhp.pruning.taps import Taps

            self._taps = Taps(module, layout, self._counts, self._take_activations)

    @property
    def tensors(self) -> list[Any]:
        """All that is kept between steps, PyTorch's tensors or NumPy's arrays."""
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

    def kept(self) -> dict[str, Any]:
        """Returns what is known between steps, with NumPy's arrays."""
        average = {group: kernels_of(score).said(score) for group, score in self._average.items()}
        stream = self._generator.bit_generator.state
        return {"steps": self._num_steps, "average": average, "generator": stream}

    def take_up(self, kept: Mapping[str, Any], array: Callable[[NDArray[Any]], Any]) -> None:
        """Goes on with it; ``array`` makes of NumPy's arrays what the module's are."""
        self._num_steps, self._generator.bit_generator.state = int(kept["steps"]), kept["generator"]
        known, counts = kept["average"], self._counts
        self._average = {group: array(_of_units(score, counts[group])) for group, score in known.items()}

    def own(self) -> Scores:
        """Returns the scores that this training alone shows, of shape ``(units,)`` per group."""
        raw = self._average if self._criterion.tracked else {g: self._score(g) for g in self.evidence}
        return {group: _shares(kernels_of(score).said(score)) for group, score in raw.items()}

    def blended(self) -> Scores:
        """Returns the scores to select by: the known and the own, blended, where there are own ones."""
        known, own = np.float32(self._blend), np.float32(1 - self._blend)
        return self._known | {
            group: (known * _shares(self._known[group]) + own * score).astype(np.float32)
            for group, score in self.own().items()
        }

    def cut(self, within: Structure, sub: Structure) -> None:
        """Forgets the units that were cut."""
        for group in self._known:
            positions = within.positions(sub, group)
            self._known[group] = self._known[group][positions]
            if group in self._average:
                self._average[group] = self._average[group][positions]
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

    def _take_activations(self, group: str, activations: "torch.Tensor") -> None:
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
                kernels_of(score).drawn_to(self._average[group], score, weight)
            else:
                self._average[group] = score
        self._shown.clear()
        self._num_shown.clear()

    def _score(self, group: str) -> Any:
        """Returns a group's score now; of activations, the mean over the layers that take them in."""
        if self._criterion.activations:
            return self._shown[group].div_(self._num_shown[group])
        return self._criterion.score(self.evidence[group])


def _of_units(scores: NDArray[Any], number: int) -> NDArray[Any]:
    if scores.shape != (number,):
        raise ValueError(f"expected contributions of {number} units, got an array of shape {scores.shape}")
    return scores.copy()


def _shares(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divides scores by their mean; where all are zero, all are alike."""
    mean = scores.mean()
    return scores / mean if mean > 0 else np.ones_like(scores)
