"""A model as it travels: compact weights, and which units of the full model they are."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.model.layout import Layout, spread
from fedhp.model.structure import Structure

Weights = Mapping[str, NDArray[np.float32]]
Scores = dict[str, NDArray[np.float32]]  # per group, of shape (units,)


@dataclass(frozen=True)
class ModelState:
    """Compact weights, the structure that says which units of the full model they are, and their scores.

    Attributes:
        weights: Per parameter, a float32 array of the compact shape.
        structure: The kept units, in full-model coordinates.
        scores: Per group, each kept unit's contribution as far as it is known, a float32 share of the
            group's mean; 1 for units of which nothing is known yet. Single weights have none: a group of
            them is called as its parameter is.
    """

    weights: Weights
    structure: Structure
    scores: Weights = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", MappingProxyType(dict(self.weights)))
        counts = self.structure.counts
        unscored = (group for group in counts if group not in self.scores and group not in self.weights)
        unknown = {group: np.ones(counts[group], np.float32) for group in unscored}
        object.__setattr__(self, "scores", MappingProxyType({**unknown, **self.scores}))

    def __reduce__(self) -> tuple[Any, ...]:
        return ModelState, (dict(self.weights), self.structure, dict(self.scores))

    def values(self) -> dict[str, Any]:
        """Returns the state as a checkpoint takes it, every attribute by its name."""
        return {**vars(self), "structure": self.structure.to_bits()}

    @staticmethod
    def of(values: Mapping[str, Any], layout: Layout) -> "ModelState":
        """Reads `values`, of a model of this wiring.

        Raises:
            ValueError: If arrays do not fit the structure.
        """
        structure = Structure.from_bits(values["structure"], layout.widths)
        check_shapes(layout, structure, values["weights"], layout.shapes)
        return ModelState(values["weights"], structure, values["scores"])

    def cut(self, layout: Layout, structure: Structure) -> "ModelState":
        """Returns the state of a sub-structure of this one."""
        weights = layout.slice(self.weights, self.structure, structure)
        scores = {g: score[self.structure.positions(structure, g)] for g, score in self.scores.items()}
        return ModelState(weights, structure, scores)

    def over(self, layout: Layout) -> "ModelState":
        """Returns the state as that of all single weights, which may come back: those that are gone are 0.

        Units do not come back, and a model of units is returned as it is.
        """
        if not layout.singles:
            return self
        masks = self.structure.masks
        whole = Structure({**masks, **{group: np.ones_like(masks[group]) for group in layout.singles}})
        weights = spread(layout, self.weights, self.structure, whole)
        return ModelState(weights, whole, self.scores)

    def num_parameters(self) -> int:
        """Returns the number of scalars in the weights."""
        return sum(array.size for array in self.weights.values())


def check_shapes(layout: Layout, structure: Structure, arrays: Weights, names: Iterable[str]) -> None:
    """Checks that arrays are those of these parameters, of a structure.

    Raises:
        ValueError: If they are not.
    """
    expected = {name: layout.shape(name, structure.counts) for name in names}
    if {name: array.shape for name, array in arrays.items()} != expected:
        raise ValueError(f"arrays do not fit the structure, which asks for {expected}")
