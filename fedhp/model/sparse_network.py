"""A network whose dense layers and convolutions hold a part of their weights each: its architecture.

There a unit is a single weight, and a group all weights of a layer: what is said of units, which are left of
each group, how many there may be, and who of a fleet holds which, is said of weights in the same words. The
layers stay as wide as they are, and biases, normalisations and what else there is stay whole.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedhp.errors import ScenarioError
from fedhp.model.architecture import Architecture
from fedhp.model.axes import AxisRef
from fedhp.model.densities import DENSITIES, Densities
from fedhp.model.layout import Layout
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.seeds import generator


def sparse_network(arch: Architecture, compression: float, by: str) -> Architecture:
    """Returns a network with so many times fewer parameters, all told.

    Args:
        arch: The network.
        compression: Its parameters per parameter that is left.
        by: How layers share what is left: a name in `fedhp.model.densities.DENSITIES`.

    Raises:
        ScenarioError: If it has no weights that could be left out, or too few would be left of them.
    """
    from fedhp.model.sparse_layers import can_be_sparse, make_sparse

    full = arch.layout.widths
    shapes = can_be_sparse(arch.build(full))
    layout = sparse_layout(arch.layout, shapes)
    eagerness = {group: DENSITIES[by](shape) for group, shape in shapes.items()}
    family = Densities(layout, {}, eagerness=eagerness)
    counts = _counts(family, compression)

    def build(numbers: Mapping[str, int]):  # noqa: ANN202 - a module of torch's, which is not imported here
        module = arch.build(full)
        make_sparse(module, numbers)
        return module

    def initial(seed: int) -> Mapping[str, NDArray[np.float32]]:
        return {name: array.reshape(layout.shapes[name]) for name, array in arch.initial(seed).items()}

    def start(seed: int) -> Structure:
        return _drawn(layout, counts, seed)

    return Architecture(
        layout, arch.input_shape, arch.num_classes, build, initial, arch.is_users_own, start, eagerness, arch
    )


def sparse_layout(layout: Layout, shapes: Mapping[str, Sequence[int]]) -> Layout:
    """Returns the wiring of a network of which these weights are held in part, each flat and a group."""
    fixed = {name: shape for name, shape in layout.shapes.items() if name not in shapes}
    flat = {name: math.prod(shape) for name, shape in shapes.items()}
    return Layout(
        widths=flat,
        shapes={name: (flat[name],) if name in flat else fixed[name] for name in layout.shapes},
        axes={
            name: (AxisRef(name),) if name in flat else (None,) * len(fixed[name]) for name in layout.shapes
        },
        floors=dict.fromkeys(flat, 1),
        buffers=layout.buffers,
        views_maps=True,  # the weights of convolutions lie as they come
        over_batches=layout.over_batches,
        slopes=layout.slopes,
    )


def filled(arch: Architecture, state: ModelState) -> tuple[Architecture, ModelState]:
    """Returns the network of which no weights are left out, and its state: those that were are 0."""
    if arch.plain is None:
        return arch, state
    plain, whole = arch.plain, state.over(arch.layout)
    shapes = plain.layout.shapes
    weights = {name: array.reshape(shapes[name]) for name, array in whole.weights.items()}
    return plain, ModelState(weights, plain.layout.full())


def _counts(family: Densities, compression: float) -> Mapping[str, int]:
    layout, said = family.layout, f"prune.target_compression = {compression:g}"
    if not layout.widths:
        raise ScenarioError(
            "train.method: the network has no weights that could be left out: no dense layer of torch's own, "
            "and no convolution that pads with zeros"
        )
    full, weights = layout.num_parameters(layout.widths), sum(layout.widths.values())
    left = int(full / compression + 1e-9) - (full - weights)
    shared = family.shared(max(left, 0), layout.widths)
    if empty := [name for name, count in shared.items() if count < 1]:
        raise ScenarioError(
            f"{said} cannot be reached by leaving out single weights: {empty[0]} would have none of its "
            f"{layout.widths[empty[0]]:,}, as {full - weights:,} of the {full:,} parameters are no such "
            f"weights and stay; lower prune.target_compression, or widen the model"
        )
    most = full / compression
    found = family.largest(layout.widths, lambda counts: layout.num_parameters(counts) <= most)
    assert found is not None, "as many as there are were shared"
    return found


def _drawn(layout: Layout, counts: Mapping[str, int], seed: int) -> Structure:
    """Returns a structure of so many weights of each layer, at random (Evci et al. 2020)."""
    masks = {}
    for group, width in layout.widths.items():
        masks[group] = np.zeros(width, np.bool_)
        masks[group][generator(seed, "sparse weights", group).permutation(width)[: counts[group]]] = True
    return Structure(masks)
