"""What a server knows of its devices' own models: see `fedhp.aggregation.shrinkage`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.model.layout import Layout
from fedhp.model.state import ModelState, Weights


def layers_of(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Returns the parameters of each layer, by its name: weights with their biases and running statistics."""
    layers: dict[str, tuple[str, ...]] = {}
    for name in names:
        layer = name.rpartition(".")[0] or name
        layers[layer] = (*layers.get(layer, ()), name)
    return layers


@dataclass(frozen=True)
class Personal:
    """What a server knows of its devices' own models.

    Attributes:
        models: Per device, by number, what is kept of the model that it returned last: all of it as long as
            factors are looked for, and then the layers that are its own.
        rounds: Per device, the round of that, as long as factors are looked for.
        factors: Per layer, ``s^2 / (s^2 + 2 tau^2)``: by how much a device's deviation is shrunk towards the
            fleet's weights, from 0 (not at all) to 1 (to nothing). None where too few devices came twice.
    """

    models: Mapping[int, Weights] = field(default_factory=dict)
    rounds: Mapping[int, int] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)

    def own(self, threshold: float) -> frozenset[str]:
        """Returns the layers that each device has of its own: those whose factor is below a threshold."""
        return frozenset(layer for layer, factor in self.factors.items() if factor < threshold)

    def keeping(self, layers: frozenset[str]) -> "Personal":
        """Returns it with these layers of models alone."""
        names = {name for one in self.models.values() for name in one}
        kept = [name for layer, own in layers_of(sorted(names)).items() if layer in layers for name in own]
        models = {
            device: {name: one[name] for name in kept if name in one} for device, one in self.models.items()
        }
        return Personal(models, factors=self.factors)

    def model_of(self, device: int, fleet: ModelState, layers: frozenset[str]) -> ModelState:
        """Returns a device's model: the fleet's, and in some layers the posterior mean.

        That is ``phi + (1 - factor) * (y_i - phi)``, of the last ``y_i`` that it returned.

        Args:
            device: Its number.
            fleet: The fleet's model now.
            layers: Those that are its own.
        """
        last = self.models.get(device)
        if last is None or not layers:
            return fleet
        weights: dict[str, NDArray[Any]] = dict(fleet.weights)
        for layer, names in layers_of(last).items():
            if layer in layers:
                kept = np.float32(1 - self.factors[layer])
                for name in names:
                    weights[name] = weights[name] + kept * (last[name] - weights[name])
        return ModelState(weights, fleet.structure, fleet.scores)

    def values(self) -> dict[str, Any]:
        """Returns it as a checkpoint takes it."""
        return {
            "models": [[device, dict(self.models[device])] for device in sorted(self.models)],
            "rounds": [[device, self.rounds[device]] for device in sorted(self.rounds)],
            "factors": dict(self.factors),
        }

    @staticmethod
    def of(values: Mapping[str, Any], layout: Layout, model: ModelState) -> "Personal":
        """Reads `values`, of devices that all train this model.

        Raises:
            ValueError: If arrays do not fit it, or factors are no shares of its layers.
        """
        models, layers = dict(values["models"]), layers_of(layout.shapes)
        for name, array in (item for weights in models.values() for item in weights.items()):
            if name not in model.weights or array.shape != model.weights[name].shape:
                raise ValueError(f"{name} of a device does not fit the model")
        if not all(layer in layers and 0 <= factor <= 1 for layer, factor in values["factors"].items()):
            raise ValueError(f"factors are to be shares, each of one of the layers {', '.join(layers)}")
        return Personal(models, dict(values["rounds"]), values["factors"])
