"""What fedhp needs to know of a network, and its weights before training."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhp.model.layout import Layout
from fedhp.model.modules import put_weights
from fedhp.model.networks.chain import INPUTS, Build
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.seeds import derive


@dataclass(frozen=True, eq=False)
class Architecture:
    """Everything that the rest needs to know of a model.

    Attributes:
        layout: Which axis of which parameter each group of units indexes.
        input_shape: Shape of one sample, channels first.
        num_classes: Width of the output.
        build: Makes the module whose groups have the given unit counts, its weights not initialised.
        initial: The full model's weights before training, by the seed.
        is_users_own: Whether the network is the user's own, and none of `MODELS`.
    """

    layout: Layout
    input_shape: tuple[int, ...]
    num_classes: int
    build: Build
    initial: Callable[[int], Mapping[str, NDArray[np.float32]]]
    is_users_own: bool = False

    def taken_shape(self, counts: Mapping[str, int]) -> tuple[int, ...]:
        """Returns the shape of one sample as the compact module takes it."""
        taken = counts.get(INPUTS)
        return self.input_shape if taken is None or taken == self.layout.widths[INPUTS] else (taken,)

    def kept_inputs(self, structure: Structure) -> NDArray[np.intp] | None:
        """Returns which entries of a flattened sample the compact model takes; None where it takes all."""
        kept = structure.counts.get(INPUTS)
        return None if kept is None or kept == self.layout.widths[INPUTS] else structure.kept(INPUTS)


def initial_state(arch: Architecture, seed: int) -> ModelState:
    """Returns the full model before training."""
    return ModelState(arch.initial(seed), arch.layout.full())


def fresh_state(arch: Architecture, structure: Structure, seed: int) -> ModelState:
    """Returns a structure's initial weights as if the small network were all that there ever was.

    A layer's initial scale follows from its fan-in: slices of the full model's initial weights are too small
    for the compact one, and are scaled up by the root of what its fan-in has lost, its bias with them.
    Weights that no seed changes were not drawn, but learnt before: they have the scale that they need.
    """
    full, others = initial_state(arch, seed), arch.initial(derive(seed, "another draw"))
    weights = dict(full.cut(arch.layout, structure).weights)
    for name, whole in full.weights.items():
        if whole.ndim < 2 or np.array_equal(whole, others[name]):
            continue
        lost = math.prod(whole.shape[1:]) / math.prod(weights[name].shape[1:])
        for scaled in {name, name.removesuffix("weight") + "bias"} & weights.keys():
            weights[scaled] = weights[scaled] * np.float32(math.sqrt(lost))
    return ModelState(weights, structure)


def to_module(arch: Architecture, state: ModelState, device: torch.device | str = "cpu") -> nn.Module:
    """Builds the compact module that holds a copy of the state's weights.

    It takes the inputs that the structure keeps (`Architecture.kept_inputs`); that of `fedhp.model.inference`
    all.
    """
    module = arch.build(state.structure.counts)
    put_weights(module, arch.layout, state.weights, device)
    return module
