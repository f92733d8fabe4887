"""What is recorded of a run: one row per client and round, one per round, and who had which samples."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from fedhp.model.state import ModelState
from fedhp.model.structure import Structure
from fedhp.training.figures import Figure, columns, side_by_side
from fedhp.training.statistics import STATISTICS, Statistics


@dataclass(frozen=True)
class ClientReport:
    """One client in one round: a row of ``clients.parquet``; a failed one's has None of all not found out.

    Attributes:
        round: The round, from 1.
        client: The client's partition id.
        device_class: The class of its device.
        status: "ok" or "failed".
        failure: ``"stage: cause"`` of a client that failed, else empty.
        num_examples: The training samples for which it counts.
        num_examples_said: Those that it says it has trained on, where it counts for fewer.
        memory_budget_bytes: The device's budget; None where it has none to keep to.
        params_received: Parameters of the model that it was sent.
        params_sent: Parameters of the model that it sent back.
        units_pruned: Units that it has cut.
        bytes_down: Payload sent to it.
        bytes_up: Payload received from it.
        update_norm: The Euclidean norm of what it changed of the weights that it sent back.
        update_share: The share of that change that counts: below 1 where ``strategy.robust.clip`` scales an
            update down.
        statistics_share: The same of the change of its running statistics; of those of the new model, where
            it was asked for them, and 0 where it answered none that counts.
        clock: The share of its full speed that it had, drawn of its class's ``clock``; None where that has
            none.
        statistics: What it measured, each figure a column of its own; None where it failed.
    """

    round: Annotated[int, Figure()]
    client: Annotated[int, Figure()]
    device_class: Annotated[str, Figure()]
    status: Annotated[str, Figure()]
    failure: Annotated[str, Figure()]
    num_examples: Annotated[int, Figure("samples")]
    memory_budget_bytes: Annotated[int | None, Figure("bytes")]
    params_received: Annotated[int, Figure()]
    params_sent: Annotated[int | None, Figure()] = field(default=None, kw_only=True)
    units_pruned: Annotated[int | None, Figure("units")] = field(default=None, kw_only=True)
    bytes_down: Annotated[int, Figure("bytes", over_clients=sum)]
    bytes_up: Annotated[int, Figure("bytes", over_clients=sum)] = 0
    update_norm: Annotated[float | None, Figure(later=True)] = None
    update_share: Annotated[float | None, Figure("share", later=True)] = None
    statistics_share: Annotated[float | None, Figure("share", later=True)] = None
    num_examples_said: Annotated[int | None, Figure("samples", later=True)] = None
    clock: Annotated[float | None, Figure("share", later=True)] = None
    statistics: Statistics | None = None

    def value(self, column: str) -> Any:
        """Returns what stands in a column; None where nothing does."""
        return getattr(self.statistics if column in STATISTICS else self, column, None)

    def values(self) -> dict[str, Any]:
        """Returns the row as its table holds it, by column."""
        return {column: self.value(column) for column in CLIENTS}

    @staticmethod
    def of(values: Mapping[str, Any]) -> "ClientReport":
        """Reads `values`."""
        said = {name: values[name] for name in STATISTICS}
        has_measured = said["memory_measured_bytes"] is not None
        own = {name: values[name] for name in CLIENTS if name not in STATISTICS}
        return ClientReport(**own, statistics=Statistics(**said) if has_measured else None)

    def violates_budget(self) -> bool:
        """Says whether the device's budget was exceeded, by the model or by measurement."""
        if self.memory_budget_bytes is None or self.statistics is None:
            return False
        said = self.statistics
        return max(said.memory_predicted_bytes, said.memory_measured_bytes) > self.memory_budget_bytes


CLIENTS = side_by_side(columns(ClientReport), STATISTICS)


def together(rows: Sequence[ClientReport], column: str) -> Any:
    """Returns what a column comes to over some clients, as its `Figure` says; None where none has it."""
    figure, cells = CLIENTS[column].figure, _cells(rows, column)
    if not figure.weight:
        assert figure.over_clients is not None
        known = [value for value in cells if value is not None]
        return figure.over_clients(known) if known or figure.over_clients is sum else None
    weights = _cells(rows, figure.weight)
    weighted = [(by, value) for by, value in zip(weights, cells, strict=True) if value is not None]
    total = sum(by for by, _ in weighted)
    return sum(by * value for by, value in weighted) / total if total else None


def _cells(rows: Sequence[ClientReport], column: str) -> list[Any]:
    """Returns a whole column, in half the time of asking each row for it."""
    holders = [row.statistics for row in rows] if column in STATISTICS else rows
    return [getattr(one, column, None) for one in holders]


def _structure(structure: Structure) -> str:
    """Writes a structure as JSON: per group, its packed bits in hexadecimal."""
    return json.dumps({group: bits.tobytes().hex() for group, bits in structure.to_bits().items()})


def _votes(votes: Mapping[str, NDArray[np.float64]]) -> str | None:
    """Writes votes as JSON, which has no NaN: null stands where nobody judged."""
    if not votes:
        return None
    shares = {group: share.round(6).tolist() for group, share in votes.items()}
    return json.dumps({group: [None if x != x else x for x in share] for group, share in shares.items()})


@dataclass(frozen=True)
class Level:
    """A narrower network that the global model stands for.

    Attributes:
        state: It, with running statistics of its own.
        params: Number of its parameters.
        accuracy: Its accuracy on the held-out set.
        loss: Its mean cross-entropy there.
    """

    state: ModelState
    params: int
    accuracy: float
    loss: float


def _levels(levels: Mapping[str, Level]) -> str | None:
    """Writes what is known of levels as JSON."""
    figures = {
        name: {"accuracy": one.accuracy, "loss": one.loss, "params": one.params}
        for name, one in levels.items()
    }
    return json.dumps(figures) if figures else None


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """What happened in one round: a row of ``rounds.parquet``; round 0 is the model before training.

    A figure of the server's more is a field here, and where it is measured.

    Attributes:
        round: The round's number.
        accuracy: The global model's accuracy on the held-out set.
        loss: Its mean cross-entropy there.
        local_accuracy_global: The clients' mean, weighted by ``num_local_test``; None where nobody has any.
        local_accuracy_personal: The same of their own models.
        params: Number of parameters of the global model after the round.
        compression: Parameters of the full model per parameter of the global one.
        training_bytes: The memory model's bytes to train the global model at the scenario's batch size.
        structure_change: How far the round has moved the global structure: the Jaccard distance of the sets
            of units kept before and after it, of all groups; 0 where they are the same, and the share of
            units that were cut where none came back. None in round 0.
        num_replies: Clients that succeeded.
        num_failures: Clients that failed.
        budget_violations: Clients whose device's budget was exceeded.
        bytes_down: Payload sent to clients.
        bytes_up: Payload received from clients.
        seconds: Duration of the round, evaluation included.
        evaluation_seconds: Duration of the server's evaluation alone.
        structure: The global structure after the round.
        votes: Per group, for each unit of the full model, the share (by samples) of the clients that were
            assigned it in the round and kept it; NaN where none was. Empty where nobody votes.
        levels: Of each narrower network that the model stands for, by its width, the accuracy and the loss on
            the held-out set, and the number of parameters; empty where it stands for itself alone.
        clients: One row per sampled client, by partition id.
    """

    round: Annotated[int, Figure()]
    accuracy: Annotated[float, Figure("share")]
    loss: Annotated[float, Figure("nats")]
    local_accuracy_global: Annotated[float | None, Figure("share", later=True)] = field(init=False)
    local_accuracy_personal: Annotated[float | None, Figure("share", later=True)] = field(init=False)
    params: Annotated[int, Figure()]
    compression: Annotated[float, Figure()]
    training_bytes: Annotated[int, Figure("bytes")]
    structure_change: Annotated[float | None, Figure("share", later=True)] = None
    num_replies: Annotated[int, Figure(adds_up=True)] = field(init=False)
    num_failures: Annotated[int, Figure(adds_up=True)] = field(init=False)
    budget_violations: Annotated[int, Figure(adds_up=True)] = field(init=False)
    bytes_down: Annotated[int, Figure("bytes", adds_up=True)] = field(init=False)
    bytes_up: Annotated[int, Figure("bytes", adds_up=True)] = field(init=False)
    seconds: Annotated[float, Figure("seconds", adds_up=True)]
    evaluation_seconds: Annotated[float, Figure("seconds")]
    structure: Annotated[Structure, Figure("JSON", written=_structure)]
    votes: Annotated[Mapping[str, NDArray[np.float64]], Figure("JSON", written=_votes, later=True)] = field(
        default_factory=dict
    )
    levels: Annotated[Mapping[str, Level], Figure("JSON", written=_levels, later=True)] = field(
        default_factory=dict
    )
    clients: tuple[ClientReport, ...]

    def __post_init__(self) -> None:
        """Finds what the clients' rows tell."""
        found = {
            "num_replies": len(self.clients) - len(self.failures),
            "num_failures": len(self.failures),
            "budget_violations": sum(row.violates_budget() for row in self.clients),
        }
        for one in fields(self):
            if not one.init:
                value = found[one.name] if one.name in found else together(self.clients, one.name)
                object.__setattr__(self, one.name, value)

    @property
    def failures(self) -> tuple[ClientReport, ...]:
        """The rows of the clients that failed."""
        return tuple(row for row in self.clients if row.status != "ok")

    def values(self) -> dict[str, Any]:
        """Returns the row as its table holds it, by column."""
        return {name: column.written(getattr(self, name)) for name, column in ROUNDS.items()}


ROUNDS = columns(RoundReport)


class LabelCount:
    """How many training samples of one label a client has: a row of ``partition.parquet``.

    Attributes:
        client: The client's partition id.
        label: The label.
        count: The number of samples.
        owner: The name in the data of whoever the client plays; None where it plays nobody.
    """

    client: Annotated[int, Figure()]
    label: Annotated[int, Figure()]
    count: Annotated[int, Figure("samples")]
    owner: Annotated[str | None, Figure(later=True)]


PARTITION = columns(LabelCount)
