"""Which networks there are of NumPy's arrays."""

from collections.abc import Mapping

from fedhp.model.architecture import Architecture
from fedhp.model.array_network import ArrayChain, ArrayNetwork, Floats
from fedhp.model.array_windows import ArrayWindows
from fedhp.model.layout import Layout


def array_network(layout: Layout, weights: Mapping[str, Floats]) -> ArrayNetwork:
    """Returns a copy of a network that `has_arrays`, with parameters and running statistics."""
    if any(len(shape) == 3 for shape in layout.shapes.values()):
        return ArrayWindows(layout, weights)
    return ArrayChain({name: weights[name] for name in layout.trained})


def has_arrays(arch: Architecture) -> bool:
    """Says whether it is ``mlp`` or ``conv1d``: dense chains, and convolutions over time."""
    return not arch.is_users_own and all(len(shape) <= 3 for shape in arch.layout.shapes.values())
