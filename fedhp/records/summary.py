"""A whole run in a few numbers, and how its rounds come to them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fedhp.records.rows import ROUNDS
from fedhp.training.figures import Figure, columns

Status = Literal["finished", "failed", "interrupted"]


@dataclass(frozen=True)
class Summary:
    """A whole run in a few numbers: ``summary.json``.

    Attributes:
        status: "finished"; "failed" where an error ended the run, such as that no client ever answered; or
            "interrupted" by Ctrl-C or a signal. A run that was killed writes no summary;
            `fedhp.records.load_run` adds one up whose status is "unfinished".
        cause: Why a failed run failed; None of all others.
        scenario: The scenario's name.
        seed: Its seed.
        rounds: Rounds done; the model before training, round 0, does not count.
        final_accuracy: The global model's accuracy after the last round; None before the first.
        best_accuracy: The best of all rounds.
        local_accuracy_global: Mean accuracy of the models that clients received, each on the client's own
            held-out samples and weighted by their number, in the last round with replies; None where nobody
            holds any out.
        local_accuracy_personal: The same of the clients' own models, after their local training.
        params_full: Parameters of the full model.
        params_final: Parameters of the last global model.
        compression: Parameters of the full model per parameter of the last global one.
        training_bytes_full: The memory model's bytes to train the full model at the scenario's batch size.
        training_bytes_final: The same of the last global model.
        budget_violations: Client rounds in which a device's budget was exceeded.
        failures: Client rounds that failed.
        bytes_up: Payload received from clients.
        bytes_down: Payload sent to clients.
        seconds: Sum of the rounds' durations.
        client_rounds_per_second: Client rounds that succeeded, per second.
        versions: Versions of what the result depends on.
    """

    status: Annotated[Status, Figure()]
    cause: Annotated[str | None, Figure(later=True)]
    scenario: Annotated[str, Figure()]
    seed: Annotated[int, Figure()]
    rounds: Annotated[int, Figure()]
    final_accuracy: Annotated[float | None, Figure("share")]
    best_accuracy: Annotated[float | None, Figure("share")]
    local_accuracy_global: Annotated[float | None, Figure("share", later=True)]
    local_accuracy_personal: Annotated[float | None, Figure("share", later=True)]
    params_full: Annotated[int, Figure()]
    params_final: Annotated[int, Figure()]
    compression: Annotated[float, Figure()]
    training_bytes_full: Annotated[int, Figure("bytes")]
    training_bytes_final: Annotated[int, Figure("bytes")]
    budget_violations: Annotated[int, Figure()]
    failures: Annotated[int, Figure()]
    bytes_up: Annotated[int, Figure("bytes")]
    bytes_down: Annotated[int, Figure("bytes")]
    seconds: Annotated[float, Figure("seconds")]
    client_rounds_per_second: Annotated[float, Figure()]
    versions: Annotated[Mapping[str, str], Figure()]


SUMMARY = columns(Summary)


class Sums:
    """What the rows of ``rounds.parquet`` come to, in constant memory.

    Args:
        before: Of a row, what is known before the first.
    """

    def __init__(self, before: Mapping[str, Any] | None = None) -> None:
        self._last: Mapping[str, Any] = before or {}
        self._answered: Mapping[str, Any] = {}
        self._best: float | None = None
        self._total = {name: column.kind() for name, column in ROUNDS.items() if column.figure.adds_up}

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds a round; round 0, the model before training, too."""
        self._last = row
        self._best = row["accuracy"] if self._best is None else max(self._best, row["accuracy"])
        if row["num_replies"]:
            self._answered = row
        for name in self._total:
            self._total[name] += row[name]

    def told(self) -> dict[str, Any]:
        """Returns the keys of `Summary` that rounds tell; None of what there is to know after the first."""
        last, answered, total = self._last, self._answered, self._total
        return {
            "rounds": last.get("round", 0),
            "final_accuracy": last.get("accuracy"),
            "best_accuracy": self._best,
            "local_accuracy_global": answered.get("local_accuracy_global"),
            "local_accuracy_personal": answered.get("local_accuracy_personal"),
            "params_final": last.get("params"),
            "compression": last.get("compression"),
            "training_bytes_final": last.get("training_bytes"),
            "failures": total["num_failures"],
            "client_rounds_per_second": total["num_replies"] / total["seconds"] if total["seconds"] else 0.0,
            **{name: value for name, value in total.items() if name in SUMMARY},
        }
