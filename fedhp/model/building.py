"""A network's weights before training, and the compact module that holds a state's."""

import math

import numpy as np
import torch
from torch import nn

from fedhp.model.architecture import Architecture
from fedhp.model.modules import put_weights
from fedhp.model.sparse_layers import place_weights
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.seeds import derive


def initial_state(arch: Architecture, seed: int) -> ModelState:
    """Returns the model before training: all of it, but where it begins sparse."""
    whole = ModelState(arch.initial(seed), arch.layout.full())
    return whole if arch.start is None else whole.cut(arch.layout, arch.start(seed))


def fresh_state(arch: Architecture, structure: Structure, seed: int) -> ModelState:
    """Returns a structure's initial weights as if the small network were all that there ever was.

    A layer's initial scale follows from its fan-in: slices of the full model's initial weights are too small
    for the compact one, and are scaled up by the root of what its fan-in has lost, its bias with them.
    Weights that no seed changes were not drawn, but learnt before: they have the scale that they need. Of a
    layer that holds a part of its weights, its outputs have lost as many inputs in the mean.
    """
    full, others = arch.initial(seed), arch.initial(derive(seed, "another draw"))
    weights = dict(initial_state(arch, seed).cut(arch.layout, structure).weights)
    for name, whole in full.items():
        is_single = name in arch.layout.singles
        if (whole.ndim < 2 and not is_single) or np.array_equal(whole, others[name]):
            continue
        inputs = slice(0 if is_single else 1, None)
        lost = math.prod(whole.shape[inputs]) / math.prod(weights[name].shape[inputs])
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
    if arch.layout.singles:
        place_weights(module, state.structure, device)
    return module
