"""What fedhp needs to know of a network."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedhp.model.layout import Layout
from fedhp.model.structure import Structure

if TYPE_CHECKING:
    from torch import nn

Build = Callable[[Mapping[str, int]], "nn.Module"]

# The group whose units are the entries of a flattened sample. Neighbouring pixels say much the same, and in
# a dense network on images the first layer's columns are most of the parameters: at a tenth of its size, an
# MLP 784-300-100-10 keeps 377-58-66 where inputs can go, and 784-30-56 where they cannot.
INPUTS = "inputs"


@dataclass(frozen=True, eq=False)
class Architecture:
    """Everything that the rest needs to know of a model.

    Attributes:
        layout: Which axis of which parameter each group of units indexes.
        input_shape: Shape of one sample, channels first.
        num_classes: Width of the output.
        build: Makes the module whose groups have the given unit counts, its weights not initialised. It needs
            PyTorch, as the next does.
        initial: The full model's weights before training, by the seed.
        is_users_own: Whether the network is the user's own, and none of `MODELS`.
        start: The units that a training begins with, by the seed; None for all.
        eagerness: Where single weights are left out, per layer how dense it is beside others.
        plain: There, the network with all of them: see `fedhp.model.sparse_network`.
    """

    layout: Layout
    input_shape: tuple[int, ...]
    num_classes: int
    build: Build
    initial: Callable[[int], Mapping[str, NDArray[np.float32]]]
    is_users_own: bool = False
    start: Callable[[int], Structure] | None = None
    eagerness: Mapping[str, float] | None = None
    plain: "Architecture | None" = None

    def taken_shape(self, counts: Mapping[str, int]) -> tuple[int, ...]:
        """Returns the shape of one sample as the compact module takes it."""
        taken = counts.get(INPUTS)
        return self.input_shape if taken is None or taken == self.layout.widths[INPUTS] else (taken,)

    def kept_inputs(self, structure: Structure) -> NDArray[np.intp] | None:
        """Returns which entries of a flattened sample the compact model takes; None where it takes all."""
        kept = structure.counts.get(INPUTS)
        return None if kept is None or kept == self.layout.widths[INPUTS] else structure.kept(INPUTS)
