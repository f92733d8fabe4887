"""One round, seen by device class."""

from collections.abc import Iterable
from dataclasses import dataclass

from fedhp.records.rows import ClientReport, RoundReport, local_accuracies


@dataclass(frozen=True)
class ClassRound:
    """What the clients of one device class did in one round; None where none of them succeeded.

    Attributes:
        clients: Number of clients sampled.
        failures: Number of those that failed.
        memory_predicted_bytes: The largest predicted peak.
        memory_measured_bytes: The largest measured peak.
        batch_size_min: The smallest batch before the first cut.
        batch_size_max: The largest batch after the last cut.
        accuracy: Mean training accuracy over the clients.
        local_accuracy_global: Mean accuracy of the received models on the clients' own held-out samples.
        local_accuracy_personal: The same of the clients' own models.
    """

    clients: int
    failures: int
    memory_predicted_bytes: int | None
    memory_measured_bytes: int | None
    batch_size_min: int | None
    batch_size_max: int | None
    accuracy: float | None
    local_accuracy_global: float | None
    local_accuracy_personal: float | None

    @property
    def memory_peak_bytes(self) -> int | None:
        """The measured peak; where nothing was measured, the predicted one."""
        measured = self.memory_measured_bytes
        return self.memory_predicted_bytes if measured is None else measured


def by_class(report: RoundReport) -> dict[str, ClassRound]:
    """Returns the round of every device class that was sampled."""
    rows: dict[str, list[ClientReport]] = {}
    for row in report.clients:
        rows.setdefault(row.device_class, []).append(row)
    return {name: _summarise(members) for name, members in rows.items()}


def _summarise(rows: list[ClientReport]) -> ClassRound:
    received, own = local_accuracies(rows)
    accuracies = [row.accuracy for row in rows if row.accuracy is not None]
    return ClassRound(
        clients=len(rows),
        failures=sum(row.status != "ok" for row in rows),
        memory_predicted_bytes=_largest(row.memory_predicted_bytes for row in rows),
        memory_measured_bytes=_largest(row.memory_measured_bytes for row in rows),
        batch_size_min=min(_known(row.batch_size_first for row in rows), default=None),
        batch_size_max=_largest(row.batch_size_last for row in rows),
        accuracy=sum(accuracies) / len(accuracies) if accuracies else None,
        local_accuracy_global=received,
        local_accuracy_personal=own,
    )


def _largest(values: Iterable[int | None]) -> int | None:
    return max(_known(values), default=None)


def _known(values: Iterable[int | None]) -> list[int]:
    return [value for value in values if value is not None]
