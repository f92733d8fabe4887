"""The values that cross borders: what goes down to a client, what comes up, what is reported."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.devices import DeviceProfile
from fedhp.structure import Layout, Structure

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class ModelState:
    """Compact weights, the structure that says which units of the full model they are, and their scores.

    Attributes:
        weights: Per parameter, a float32 array of the compact shape.
        structure: The kept units, in full-model coordinates.
        scores: Per group, each kept unit's contribution as far as it is known, a float32 share of the
            group's mean; 1 for units of which nothing is known yet.
    """

    weights: Weights
    structure: Structure
    scores: Weights = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", MappingProxyType(dict(self.weights)))
        unknown = {g: np.ones(count, np.float32) for g, count in self.structure.counts.items()}
        object.__setattr__(self, "scores", MappingProxyType({**unknown, **self.scores}))

    def __reduce__(self) -> tuple[Any, ...]:
        return ModelState, (dict(self.weights), self.structure, dict(self.scores))

    def cut(self, layout: Layout, structure: Structure) -> "ModelState":
        """Returns the state of a sub-structure of this one."""
        weights = layout.slice(self.weights, self.structure, structure)
        scores = {g: score[self.structure.positions(structure, g)] for g, score in self.scores.items()}
        return ModelState(weights, structure, scores)

    def num_parameters(self) -> int:
        """Returns the number of scalars in the weights."""
        return sum(array.size for array in self.weights.values())


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
class Statistics:
    """What a client measured during its local training; sizes in bytes, time in seconds.

    Attributes:
        train_loss: Mean loss over the samples of the last local epoch, each at the time of its step.
        accuracy: Share of the last local epoch's samples predicted right at the time of their step.
        memory_predicted_bytes: The memory model's peak over the training.
        memory_measured_bytes: The measured peak of live tensors over the training; a step or a cut of
            shapes that this process has measured before counts with that measurement.
        memory_mean_bytes: The mean over the samples of the memory model's bytes for the step that took them.
        batch_size_first: Samples per step before the first cut.
        batch_size_last: Samples per step after the last cut.
        seconds: Duration of the local training, from building the module to its last step.
        num_local_test: The number of the client's own samples that it holds out and never trains on.
        local_accuracy_global: Share of those that the model as it was received predicts right; None where
            there are none.
        local_accuracy_personal: The same of the client's own model, after its training.
    """

    train_loss: float
    accuracy: float
    memory_predicted_bytes: int
    memory_measured_bytes: int
    memory_mean_bytes: int
    batch_size_first: int
    batch_size_last: int
    seconds: float
    num_local_test: int = 0
    local_accuracy_global: float | None = None
    local_accuracy_personal: float | None = None

    @staticmethod
    def over(epochs: "Sequence[Statistics]") -> "Statistics":
        """Returns the statistics of a training from those of its epochs, which are equally long."""
        return replace(
            epochs[-1],
            memory_predicted_bytes=max(epoch.memory_predicted_bytes for epoch in epochs),
            memory_measured_bytes=max(epoch.memory_measured_bytes for epoch in epochs),
            memory_mean_bytes=round(sum(epoch.memory_mean_bytes for epoch in epochs) / len(epochs)),
            batch_size_first=epochs[0].batch_size_first,
            seconds=sum(epoch.seconds for epoch in epochs),
        )


@dataclass(frozen=True)
class Update:
    """What a client sends back.

    Attributes:
        client: The partition id.
        assigned: The structure that the client was sent.
        state: The trained model; its structure is contained in ``assigned``.
        num_examples: The number of local training samples.
        statistics: What the client measured.
    """

    client: int
    assigned: Structure
    state: ModelState
    num_examples: int
    statistics: Statistics


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
class ClientReport:
    """One client in one round: a row of ``clients.parquet``.

    For a client that failed, ``failure`` reads ``"stage: cause"`` and what was not measured is None.
    Sizes are in bytes, ``seconds`` is the client's own training time, ``update_norm`` the Euclidean norm of
    what it changed of the weights that it sent back.
    """

    round: int
    client: int
    device_class: str
    status: str
    failure: str
    num_examples: int
    memory_budget_bytes: int | None
    params_received: int
    bytes_down: int
    bytes_up: int = 0
    memory_predicted_bytes: int | None = None
    memory_measured_bytes: int | None = None
    memory_mean_bytes: int | None = None
    batch_size_first: int | None = None
    batch_size_last: int | None = None
    params_sent: int | None = None
    units_pruned: int | None = None
    update_norm: float | None = None
    train_loss: float | None = None
    accuracy: float | None = None
    num_local_test: int | None = None
    local_accuracy_global: float | None = None
    local_accuracy_personal: float | None = None
    seconds: float | None = None

    def succeeded(self, update: Update, layout: Layout) -> "ClientReport":
        """Returns the row with what the client's update says; what it cost to send stays as it is."""
        statistics = update.statistics
        return replace(
            self,
            status="ok",
            failure="",
            num_examples=update.num_examples,
            memory_predicted_bytes=statistics.memory_predicted_bytes,
            memory_measured_bytes=statistics.memory_measured_bytes,
            memory_mean_bytes=statistics.memory_mean_bytes,
            batch_size_first=statistics.batch_size_first,
            batch_size_last=statistics.batch_size_last,
            params_sent=layout.num_parameters(update.state.structure.counts),
            units_pruned=update.assigned.num_units() - update.state.structure.num_units(),
            train_loss=statistics.train_loss,
            accuracy=statistics.accuracy,
            num_local_test=statistics.num_local_test,
            local_accuracy_global=statistics.local_accuracy_global,
            local_accuracy_personal=statistics.local_accuracy_personal,
            seconds=statistics.seconds,
        )

    def violates_budget(self) -> bool:
        """Says whether the device's budget was exceeded, by the model or by measurement."""
        if self.memory_budget_bytes is None:
            return False
        peaks = (self.memory_predicted_bytes, self.memory_measured_bytes)
        return any(peak is not None and peak > self.memory_budget_bytes for peak in peaks)


def mean_train_loss(rows: Iterable[ClientReport]) -> float | None:
    """Returns the training loss, the mean over the samples of all clients that answered; None if none did."""
    known = [(row.num_examples, row.train_loss) for row in rows if row.train_loss is not None]
    total = sum(number for number, _ in known)
    return sum(number * loss for number, loss in known) / total if total else None


def local_accuracies(rows: Iterable[ClientReport]) -> tuple[float | None, float | None]:
    """Returns the clients' mean accuracies on their own held-out samples, weighted by their number.

    Returns:
        That of the models that they received, and that of those that they made of them; None where no client
        has held-out samples.
    """
    known = [
        (row.num_local_test, row.local_accuracy_global or 0.0, row.local_accuracy_personal or 0.0)
        for row in rows
        if row.num_local_test
    ]
    total = sum(number for number, _, _ in known)
    if not total:
        return None, None
    received, own = (sum(one[0] * one[kind] for one in known) / total for kind in (1, 2))
    return received, own


@dataclass(frozen=True)
class RoundReport:
    """What happened in one round; round 0 is the model before training.

    Attributes:
        round: The round's number.
        accuracy: The global model's accuracy on the held-out set, 0 to 1.
        loss: Its mean cross-entropy there.
        structure: The global structure after the round.
        params: Number of parameters of the global model after the round.
        compression: Parameters of the full model per parameter of the global one.
        training_bytes: The memory model's bytes to train the global model at the scenario's batch size.
        clients: One row per sampled client, by partition id.
        seconds: Duration of the round, evaluation included.
        evaluation_seconds: Duration of the server's evaluation alone.
        votes: Per group, for each unit of the full model, the share (by examples) of the clients that were
            assigned it in the round and kept it; NaN where none was. Empty where nobody votes.
    """

    round: int
    accuracy: float
    loss: float
    structure: Structure
    params: int
    compression: float
    training_bytes: int
    clients: tuple[ClientReport, ...]
    seconds: float
    evaluation_seconds: float
    votes: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def failures(self) -> tuple[ClientReport, ...]:
        """The rows of the clients that failed."""
        return tuple(row for row in self.clients if row.status != "ok")

    @property
    def local_accuracies(self) -> tuple[float | None, float | None]:
        """Mean accuracies on the clients' own held-out samples, as `local_accuracies`."""
        return local_accuracies(self.clients)

    @property
    def bytes_down(self) -> int:
        """Payload bytes sent to clients in the round."""
        return sum(row.bytes_down for row in self.clients)

    @property
    def bytes_up(self) -> int:
        """Payload bytes received from clients in the round."""
        return sum(row.bytes_up for row in self.clients)

    @property
    def budget_violations(self) -> int:
        """The number of clients whose budget was exceeded."""
        return sum(row.violates_budget() for row in self.clients)
