"""The running sums of a run, and the summary that they make."""

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedhp.records.rows import RoundReport

if TYPE_CHECKING:
    from fedhp.records.plan import RunPlan

Status = Literal["finished", "failed", "interrupted"]


@dataclass(frozen=True)
class Summary:
    """A whole run in a few numbers: ``summary.json``.

    Attributes:
        status: "finished"; "failed" where an error ended the run, such as that no client ever answered; or
            "interrupted" by Ctrl-C or a signal. A run that was killed writes no summary;
            `fedhp.records.load_run` adds one up whose status is "unfinished".
        cause: Why a failed run failed; None of all others.
        rounds: Rounds done; the model before training, round 0, does not count.
        final_accuracy: The global model's accuracy after the last round; None before the first.
        best_accuracy: The best of all rounds.
        local_accuracy_global: Mean accuracy of the models that clients received, each on the client's own
            held-out samples and weighted by their number, in the last round with replies; None where nobody
            holds any out.
        local_accuracy_personal: The same of the clients' own models, after their local training.
        compression: Parameters of the full model per parameter of the last global one.
        training_bytes_final: The memory model's bytes to train the last global model.
        budget_violations: Client rounds in which a device's budget was exceeded.
        failures: Client rounds that failed.
        seconds: Sum of the rounds' durations.
        client_rounds_per_second: Client rounds that succeeded, per second.
        versions: Versions of what the result depends on.
    """

    status: Status
    cause: str | None
    scenario: str
    seed: int
    rounds: int
    final_accuracy: float | None
    best_accuracy: float | None
    local_accuracy_global: float | None
    local_accuracy_personal: float | None
    params_full: int
    params_final: int
    compression: float
    training_bytes_full: int
    training_bytes_final: int
    budget_violations: int
    failures: int
    bytes_up: int
    bytes_down: int
    seconds: float
    client_rounds_per_second: float
    versions: Mapping[str, str]


class RunTotals:
    """Sums over the rounds of a run, in constant memory."""

    def __init__(self, plan: "RunPlan") -> None:
        self._plan = plan
        self._last: RoundReport | None = None
        self._best: float | None = None
        self._local: tuple[float | None, float | None] = None, None
        self._replies = 0
        self._failures = 0
        self._violations = 0
        self._bytes_up = 0
        self._bytes_down = 0
        self._seconds = 0.0

    def add(self, report: RoundReport) -> None:
        """Adds a round; round 0, the model before training, too."""
        failures = len(report.failures)
        self._last = report
        self._best = report.accuracy if self._best is None else max(self._best, report.accuracy)
        if len(report.clients) > failures:
            self._local = report.local_accuracies
        self._replies += len(report.clients) - failures
        self._failures += failures
        self._violations += report.budget_violations
        self._bytes_up += report.bytes_up
        self._bytes_down += report.bytes_down
        self._seconds += report.seconds

    def summary(self, status: Status = "finished", cause: str | None = None) -> Summary:
        """Returns the summary of the rounds added so far."""
        plan, last = self._plan, self._last
        return Summary(
            status=status,
            cause=cause,
            scenario=plan.scenario.name,
            seed=plan.scenario.seed,
            rounds=last.round if last else 0,
            final_accuracy=last.accuracy if last else None,
            best_accuracy=self._best,
            local_accuracy_global=self._local[0],
            local_accuracy_personal=self._local[1],
            params_full=plan.params_full,
            params_final=last.params if last else plan.params_full,
            compression=last.compression if last else 1.0,
            training_bytes_full=plan.training_bytes_full,
            training_bytes_final=last.training_bytes if last else plan.training_bytes_full,
            budget_violations=self._violations,
            failures=self._failures,
            bytes_up=self._bytes_up,
            bytes_down=self._bytes_down,
            seconds=self._seconds,
            client_rounds_per_second=self._replies / self._seconds if self._seconds > 0 else 0.0,
            versions=versions(),
        )


def versions() -> dict[str, str]:
    """Returns the versions of Python, fedhp and the packages that results depend on."""
    found = {"fedhp": "unknown (not installed)", "python": platform.python_version()}
    for package in ("fedhp", "torch", "numpy", "flwr", "ray"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
