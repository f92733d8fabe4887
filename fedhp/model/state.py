"""A model as it travels: compact weights, and which units of the full model they are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.model.layout import Layout
from fedhp.model.structure import Structure

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class ModelState:
    """Compact weights, the structure that says which units of the full model they are, and their scores.

    Attributes:
        weights: Per parameter, a float32 array of the compact shape.
        structure: The kept units, in full-model coordinates.
        scores: Per group, each kept unit's contribution as far as it is known, a float32 share of the
            group's mean; 1 for units of which nothing is known yet.
    """

    weights: Weights
    structure: Structure
    scores: Weights = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", MappingProxyType(dict(self.weights)))
        counts = self.structure.counts
        unknown = {g: np.ones(counts[g], np.float32) for g in counts if g not in self.scores}
        object.__setattr__(self, "scores", MappingProxyType({**unknown, **self.scores}))

    def __reduce__(self) -> tuple[Any, ...]:
        return ModelState, (dict(self.weights), self.structure, dict(self.scores))

    def cut(self, layout: Layout, structure: Structure) -> "ModelState":
        """Returns the state of a sub-structure of this one."""
        weights = layout.slice(self.weights, self.structure, structure)
        scores = {g: score[self.structure.positions(structure, g)] for g, score in self.scores.items()}
        return ModelState(weights, structure, scores)

    def num_parameters(self) -> int:
        """Returns the number of scalars in the weights."""
        return sum(array.size for array in self.weights.values())
