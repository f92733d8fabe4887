"""The server's optimisers: the clients' mean as a step of the global model, with moments cut as it is.

The difference between the clients' mean and the model stands for a gradient, as in Reddi et al. 2020 (arXiv
2003.00295, algorithm 2) and, with momentum alone, in Hsu et al. 2019 (arXiv 1909.06335). Where Flower's
strategies of these names go a way of their own, so do these: moments start at zero (in the paper the second
one at tau squared or more), and ``fedadam`` makes up for that by its rate, as Adam does (Kingma and Ba 2014,
arXiv 1412.6980, before section 2.1), counting one step more than were taken.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.aggregation.options import ServerOptimizerConfig
from fedhp.model.layout import Layout
from fedhp.model.state import ModelState, Weights
from fedhp.model.structure import Structure

# What is remembered from step to step, an array for each parameter and moment; none before the first step.
Moments = tuple[Weights, ...]

_Array = NDArray[np.floating[Any]]
_Stepped = tuple[_Array, ...]  # a parameter's change, and its moments


def step(
    config: ServerOptimizerConfig,
    layout: Layout,
    server_round: int,
    before: ModelState,
    mean: ModelState,
    moments: Moments,
) -> tuple[ModelState, Moments]:
    """Returns the model after a step from ``before`` towards the clients' mean, and the new moments.

    Running statistics are no parameters, and are taken as they come.

    Args:
        config: Which optimiser, and its settings.
        layout: The model's wiring.
        server_round: The round, from 1.
        before: The global model at the start of the round.
        mean: The clients' mean, of the same structure.
        moments: What is remembered.
    """
    if config.name == "none":
        return mean, moments
    rule, number = _RULES[config.name]
    old = {name: before.weights[name] for name in layout.trained}
    moments = moments or number * ({name: np.zeros_like(array) for name, array in old.items()},)
    stepped = {
        name: rule(config, server_round, mean.weights[name] - old[name], *(known[name] for known in moments))
        for name in old
    }
    weights = {name: (old[name] + change).astype(np.float32) for name, (change, *_) in stepped.items()}
    kept = tuple({name: stepped[name][1 + index] for name in old} for index in range(number))
    return ModelState({**mean.weights, **weights}, mean.structure, mean.scores), kept


def cut(moments: Moments, layout: Layout, within: Structure, sub: Structure) -> Moments:
    """Cuts moments as the model is cut."""
    return tuple(layout.slice(arrays, within, sub) for arrays in moments)


def _fedavgm(config: ServerOptimizerConfig, server_round: int, delta: _Array, m: _Array) -> _Stepped:
    m = config.momentum * m + delta
    return config.rate * m, m


def _fedadam(
    config: ServerOptimizerConfig, server_round: int, delta: _Array, m: _Array, v: _Array
) -> _Stepped:
    m = config.momentum * m + (1 - config.momentum) * delta
    v = config.beta_2 * v + (1 - config.beta_2) * delta**2
    steps = server_round + 1
    rate = config.rate * np.sqrt(1 - config.beta_2**steps) / (1 - config.momentum**steps)
    return rate * m / (np.sqrt(v) + config.tau), m, v


def _fedyogi(
    config: ServerOptimizerConfig, server_round: int, delta: _Array, m: _Array, v: _Array
) -> _Stepped:
    m = config.momentum * m + (1 - config.momentum) * delta
    v = v - (1 - config.beta_2) * delta**2 * np.sign(v - delta**2)
    return config.rate * m / (np.sqrt(v) + config.tau), m, v


# From the settings, the round, a parameter's difference and its moments to its change and the new ones; and
# how many moments that are.
_RULES: Mapping[str, tuple[Callable[..., _Stepped], int]] = {
    "fedavgm": (_fedavgm, 1),
    "fedadam": (_fedadam, 2),
    "fedyogi": (_fedyogi, 2),
}
