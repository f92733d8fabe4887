"""One round, seen by device class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedhp.records.rows import CLIENTS, ClientReport, RoundReport, together

_TOGETHER = [name for name, column in CLIENTS.items() if column.figure.is_joined]


@dataclass(frozen=True)
class ClassRound:
    """What the clients of one device class did in one round.

    Attributes:
        clients: Number of clients sampled.
        failures: Number of those that failed.
        figures: What those columns of ``clients.parquet`` come to that are looked at together, as their
            `Figure`s say; without those that none of the clients has.
    """

    clients: int
    failures: int
    figures: Mapping[str, Any]

    @property
    def memory_peak_bytes(self) -> int | None:
        """The largest measured peak; None where none of the clients succeeded."""
        return self.figures.get("memory_measured_bytes")


def by_class(report: RoundReport) -> dict[str, ClassRound]:
    """Returns the round of every device class that was sampled."""
    rows: dict[str, list[ClientReport]] = {}
    for row in report.clients:
        rows.setdefault(row.device_class, []).append(row)
    return {name: _summarise(members) for name, members in rows.items()}


def _summarise(rows: Sequence[ClientReport]) -> ClassRound:
    figures = {name: value for name in _TOGETHER if (value := together(rows, name)) is not None}
    return ClassRound(len(rows), sum(row.status != "ok" for row in rows), figures)
