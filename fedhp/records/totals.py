"""The summary of a run that goes on."""

import importlib.metadata
import platform

from fedhp.records.plan import RunPlan
from fedhp.records.rows import RoundReport
from fedhp.records.summary import Status, Summary, Sums


class RunTotals:
    """Adds up the rounds of a run that goes on."""

    def __init__(self, plan: RunPlan) -> None:
        self._plan = plan
        full = {"params": plan.params_full, "compression": 1.0, "training_bytes": plan.training_bytes_full}
        self._sums = Sums(full)

    def add(self, report: RoundReport) -> None:
        """Adds a round; round 0, the model before training, too."""
        self._sums.add(vars(report))

    def summary(self, status: Status = "finished", cause: str | None = None) -> Summary:
        """Returns the summary of the rounds added so far."""
        return Summary(
            status=status,
            cause=cause,
            scenario=self._plan.scenario.name,
            seed=self._plan.scenario.seed,
            params_full=self._plan.params_full,
            training_bytes_full=self._plan.training_bytes_full,
            versions=versions(),
            **self._sums.told(),
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
