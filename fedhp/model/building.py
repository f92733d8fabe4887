"""A network's weights before training, and the compact module that holds a state's."""

import math

import numpy as np
import torch
from torch import nn

from fedhp.model.architecture import Architecture
from fedhp.model.modules import put_weights
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.seeds import derive


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
