"""Networks of any kind side by side, by torch's `vmap`: for GPUs, which one small network leaves idle.

On a CPU it is not used. It was run and tested on a CPU alone, for want of a GPU: there its gradients are
autograd's within 1e-5. What it gains on a GPU was not measured, nor are its steps captured as CUDA graphs.
"""

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, vmap

from fedhp.model.grouped import Logits


def mapped(module: nn.Module) -> Logits:
    """Returns how the logits of networks like this one, which `is_mappable`, are computed side by side."""
    names = [name for name, _ in module.named_parameters()]

    def logits_of_one(rows: Sequence[torch.Tensor], samples: torch.Tensor) -> torch.Tensor:
        return functional_call(module, dict(zip(names, rows, strict=True)), (samples,))

    return vmap(logits_of_one, randomness="error")


def is_mappable(module: nn.Module, samples: torch.Tensor) -> bool:
    """Says whether networks can be computed side by side by `mapped`, by trying it.

    They cannot where they have buffers or draw random numbers, where what they compute depends on the values
    that flow, or where a parameter plays no part, so that it has no gradient.

    Args:
        module: The network, which may be left changed.
        samples: Two or more of its inputs.
    """
    if next(module.buffers(), None) is not None:
        return False
    rows = [parameter.detach().expand(2, *parameter.shape).clone() for parameter in module.parameters()]
    before = _global_streams()
    try:
        alone = module(samples)
        beside = mapped(module)(
            [row.requires_grad_() for row in rows], samples.expand(2, *samples.shape).clone()
        )
        grads = torch.autograd.grad(beside.sum(), rows, allow_unused=True)
    except Exception:  # the user's own code, which may raise anything
        return False
    is_same = torch.allclose(beside, alone.expand_as(beside), rtol=1e-3, atol=1e-4)
    return is_same and all(grad is not None for grad in grads) and before == _global_streams()


def _global_streams() -> tuple[object, ...]:
    """Returns the states of the generators that vmap does not watch: Python's and NumPy's."""
    name, keys, *others = np.random.get_state()
    return random.getstate(), name, np.asarray(keys).tobytes(), *others
