"""Flower's server optimisers on a model that may shrink: what the clients' mean makes of the global model."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvgM, FedYogi

from fedhp.aggregation.options import ServerOptimizerConfig
from fedhp.model.layout import Layout
from fedhp.model.state import ModelState
from fedhp.model.structure import Structure


def server_optimizer(config: ServerOptimizerConfig, layout: Layout) -> "ServerOptimizer | None":
    """Returns the optimiser that a scenario asks for, or None where the mean is taken as it is."""
    return None if config.name == "none" else ServerOptimizer(config, layout)


class ServerOptimizer:
    """One of Flower's strategies, of which only the server's step is used.

    It is told of a single reply, the mean over the clients. Running statistics are no parameters, and are
    taken as they come.

    Args:
        config: Which, and its settings.
        layout: The model's wiring.
    """

    def __init__(self, config: ServerOptimizerConfig, layout: Layout) -> None:
        self._layout = layout
        self._flower = _FLOWER[config.name](config)

    def step(self, server_round: int, before: ModelState, mean: ModelState) -> ModelState:
        """Returns the model after the optimiser's step from ``before`` towards the clients' mean."""
        self._flower.current_arrays = self._as_flower_has_it(before)
        reply = RecordDict({"arrays": self._arrays(mean), "metrics": MetricRecord({"num-examples": 1})})
        message = Message(reply, dst_node_id=0, message_type=MessageType.TRAIN)
        arrays, _ = self._flower.aggregate_train(server_round, [message])
        assert arrays is not None
        stepped = {name: array.numpy().astype(np.float32) for name, array in arrays.items()}
        return ModelState({**mean.weights, **stepped}, mean.structure, mean.scores)

    def cut(self, within: Structure, sub: Structure) -> None:
        """Cuts what the optimiser remembers as the model is cut."""
        flower, names = self._flower, self._layout.trained
        if isinstance(flower, FedAvgM):
            if flower.momentum_vector is not None:
                momentum = dict(zip(names, flower.momentum_vector, strict=True))
                flower.momentum_vector = list(self._layout.slice(momentum, within, sub).values())
            return
        for kept in ("m_t", "v_t"):
            if memory := getattr(flower, kept):
                setattr(flower, kept, self._layout.slice(memory, within, sub))

    def _arrays(self, state: ModelState) -> ArrayRecord:
        return ArrayRecord({name: Array(state.weights[name]) for name in self._layout.trained})

    def _as_flower_has_it(self, state: ModelState) -> ArrayRecord | Mapping[str, Any]:
        if isinstance(self._flower, FedAvgM):
            return self._arrays(state)
        return {name: state.weights[name] for name in self._layout.trained}


def _adaptive(kind: type[FedAdam] | type[FedYogi]) -> Callable[[ServerOptimizerConfig], Any]:
    return lambda config: kind(eta=config.rate, beta_1=config.momentum, beta_2=config.beta_2, tau=config.tau)


_FLOWER: Mapping[str, Callable[[ServerOptimizerConfig], Any]] = {
    "fedavgm": lambda config: FedAvgM(server_learning_rate=config.rate, server_momentum=config.momentum),
    "fedadam": _adaptive(FedAdam),
    "fedyogi": _adaptive(FedYogi),
}
