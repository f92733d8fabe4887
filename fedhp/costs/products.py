"""How many multiplications of weights a sample takes, by a network's widths."""

import math
from collections.abc import Mapping
from functools import lru_cache

from fedhp.model.architecture import Architecture


def products(arch: Architecture, counts: Mapping[str, int]) -> int:
    """Returns the multiplications of weights that a sample takes, where each group keeps so many units."""
    shape = arch.layout.shape
    return sum(number * math.prod(shape(name, counts)) for name, number in places(arch).items())


@lru_cache(maxsize=16)  # a process holds a handful of architectures
def places(arch: Architecture) -> Mapping[str, int]:
    """Returns, per weight of a dense layer or convolution, at how many places it is applied to a sample."""
    import torch

    layout = arch.layout
    module = arch.build(layout.widths).to("meta").eval()
    weights = {name for name, shape in layout.shapes.items() if len(shape) > 1}
    found: dict[str, int] = {}
    for name, layer in module.named_modules():
        if (own := f"{name}.weight") in weights:
            layer.register_forward_hook(
                lambda _layer, _taken, given, own=own: found.update({own: math.prod(given.shape[2:])})
            )
    module(torch.zeros(1, *arch.taken_shape(layout.widths), device="meta"))
    return found
