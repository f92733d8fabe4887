"""FedTiny's server: which sets of weights there are to choose from, which it chooses, and how it moves them.

Huang et al. 2022, Distributed Pruning Towards Tiny Neural Networks in Federated Learning, arXiv 2212.01977.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedhp.model.architecture import Architecture
from fedhp.model.densities import Densities
from fedhp.model.state import ModelState
from fedhp.model.structure import Mask, Structure
from fedhp.seeds import generator

# How far a layer's density is off the usual one before all are brought to the target. Our choice.
_NOISE = 0.5


def candidates(arch: Architecture, compression: float, number: int, seed: int) -> list[ModelState]:
    """Returns parts of the initial model: of each layer the largest weights, in numbers that differ.

    Args:
        arch: A network that holds a part of its weights.
        compression: Parameters of the network of all weights per parameter that is left, all told.
        number: How many parts; the first has the usual numbers.
        seed: The run's seed.
    """
    layout, eagerness = arch.layout, arch.eagerness
    assert eagerness is not None, "only single weights are left out"
    whole = ModelState(arch.initial(seed), layout.full())
    most = layout.num_parameters(layout.widths) / compression
    found = list[ModelState]()
    for place in range(number):
        stream = generator(seed, "candidates", place)
        noise = {group: stream.uniform(-_NOISE, _NOISE) if place else 0.0 for group in eagerness}
        own = {group: usual * (1 + noise[group]) for group, usual in eagerness.items()}
        family = Densities(layout, {}, eagerness=own)
        counts = family.largest(layout.widths, lambda counts: layout.num_parameters(counts) <= most)
        assert counts is not None, "the network with the usual numbers was made before"
        found.append(whole.cut(layout, _largest(whole, counts)))
    return found


def _largest(whole: ModelState, counts: Mapping[str, int]) -> Structure:
    """Returns so many weights of each layer, the largest; of equals the first."""
    masks = {}
    for group, count in counts.items():
        size = np.abs(whole.weights[group])
        masks[group] = np.zeros(len(size), np.bool_)
        masks[group][np.argsort(-size, kind="stable")[:count]] = True
    return Structure(masks)


def least(losses: Sequence[Sequence[float]], examples: Sequence[int], factor: float) -> int:
    """Returns which candidate has the least mean loss, weighted by examples; of equals the first.

    Args:
        losses: Of each device, those of all candidates.
        examples: Of each device, for how many samples it counts.
        factor: How many times the median of the devices a loss may be: of a device with a larger one, none
            counts, as it alone would decide. 0 for any number.
    """
    table, weights = np.array(losses, np.float64), np.array(examples, np.float64)
    if factor:
        weights = np.where((table <= factor * np.median(table, axis=0)).all(axis=1), weights, 0.0)
    return int(np.argmin(weights @ table))


def moved(mask: Mask, weights: NDArray[np.float32], gradients: NDArray[np.float64], number: int) -> Mask:
    """Returns a layer's mask with its smallest weights gone, and as many where gradients are largest.

    Of equals the first goes, or comes. Where fewer gradients are known, fewer weights move.

    Args:
        mask: Of shape ``(width,)``, as the other arrays.
        weights: Of all places.
        gradients: The clients' mean, or a multiple; 0 where nobody told any.
        number: Weights that move at most.
    """
    steepness = np.where(mask, 0.0, np.abs(gradients))
    grown = np.argsort(-steepness, kind="stable")[: min(number, np.count_nonzero(steepness))]
    size = np.where(mask, np.abs(weights), np.inf)
    found = mask.copy()
    found[np.argsort(size, kind="stable")[: len(grown)]] = False
    found[grown] = True
    return found
