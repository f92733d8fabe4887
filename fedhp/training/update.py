"""What goes down to a client and comes up: its task, and what it made and measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedhp.fleet.devices import DeviceProfile
from fedhp.model.state import ModelState, Weights
from fedhp.model.structure import Structure
from fedhp.training.statistics import Statistics


@dataclass(frozen=True)
class RoundTask:
    """What a client is asked to do in one round; read-only.

    Attributes:
        round: The round's number, from 1.
        client: The partition id, which names the client in every record.
        profile: The device that trains.
        state: The model to start from; it fits the device's budget.
    """

    round: int
    client: int
    profile: DeviceProfile
    state: ModelState


@dataclass(frozen=True)
class Said:
    """What a client's update says beside its weights.

    Attributes:
        assigned: The structure that the client was sent.
        held: What is left of it.
        num_examples: The number of local training samples.
        statistics: What the client measured.
    """

    assigned: Structure
    held: Structure
    num_examples: int
    statistics: Statistics


class Gradients(NamedTuple):
    """The loss's largest gradients by weights of a layer that a network does not have.

    Attributes:
        places: Which weights, int32, strictly increasing in the flat dense weight, of shape ``(number,)``.
        values: The gradients, float32, of the same shape.
    """

    places: NDArray[np.int32]
    values: NDArray[np.float32]


@dataclass(frozen=True)
class Update:
    """What a client sends back.

    Attributes:
        client: The partition id.
        assigned: The structure that the client was sent.
        state: The trained model; its structure is contained in ``assigned``.
        num_examples: The number of local training samples.
        statistics: What the client measured.
        gradients: By layer, those that the strategy asked for.
    """

    client: int
    assigned: Structure
    state: ModelState
    num_examples: int
    statistics: Statistics
    gradients: Mapping[str, Gradients] = field(default_factory=dict)

    @property
    def said(self) -> Said:
        """What it says beside its weights."""
        return Said(self.assigned, self.state.structure, self.num_examples, self.statistics)


@dataclass(frozen=True)
class Moments:
    """A model's running statistics on a client's samples.

    Attributes:
        weights: The statistics alone, by name: mean and mean square, float32.
        memory_measured_bytes: The measured peak of live tensors as they were taken.
    """

    weights: Weights
    memory_measured_bytes: int


@dataclass(frozen=True)
class Judgement:
    """What a client says of a model.

    Attributes:
        loss: The mean cross-entropy over its samples, in nats.
        memory_measured_bytes: The measured peak of live tensors as it was computed.
    """

    loss: float
    memory_measured_bytes: int
