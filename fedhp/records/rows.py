"""What is recorded of a run: one row per client and round, and what a round comes to."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fedhp.model.layout import Layout
from fedhp.model.structure import Structure
from fedhp.training.update import Update


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
