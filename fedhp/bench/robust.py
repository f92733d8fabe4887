"""What a fifth of liars does to a fleet, by the rule that makes one model of its clients' updates."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from fedhp.bench.liars import LyingGrid
from fedhp.model.state import ModelState
from fedhp.records.rows import RoundReport
from fedhp.references import CLIENT_APP
from fedhp.run.fleet_run import run_fleet
from fedhp.run.setup import prepare
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.schema import Scenario
from fedhp.seeds import generator
from fedhp.simulation.opening import open_grid
from fedhp.threads import torch_threads
from fedhp.tracking.tracker import Silent, Trackers

SHARE = 0.2
# What a liar's change is multiplied by; None where nobody lies.
LIES: dict[str, float | None] = {
    "nobody lies": None,
    "sign flipped": -1.0,
    "times 100": 100.0,
    "times -10": -10.0,
}
_OPEN = {"server.max_times_median": 0, "server.roll_back": False}
RULES: dict[str, Mapping[str, Any]] = {
    "mean, nothing refused": _OPEN,
    "mean": {},
    "trimmed mean": {"strategy.robust": {"rule": "trimmed_mean"}},
    "trimmed mean, clip 1": {"strategy.robust": {"rule": "trimmed_mean", "clip": 1.0}},
    "median": {"strategy.robust": {"rule": "median"}},
    "mean, opposed refused": {"strategy.robust": {"refuse_opposed": True}},
    "trimmed mean, opposed refused": {"strategy.robust": {"rule": "trimmed_mean", "refuse_opposed": True}},
}


def run_robust(
    scenario: str = "quickstart",
    seeds: Sequence[int] = (0, 1, 2),
    rules: Sequence[str] = tuple(RULES),
    lies: Sequence[str] = tuple(LIES),
    say: Callable[[str], None] = print,
    **overrides: Any,
) -> dict[str, Any]:
    """Runs a fleet of which a fifth lies, by every rule, lie and seed, all else equal.

    Args:
        scenario: A scenario's name or path.
        seeds: Seeds; each also chooses who lies.
        rules: Of `RULES`.
        lies: Of `LIES`.
        say: Is told what is run.
        overrides: Scenario values by dotted key.

    Returns:
        ``runs``: the accuracy of each after every round; ``rows``: per rule and lie the mean and the standard
        deviation over seeds of the last accuracy, and the mean of the best.
    """
    runs = []
    for rule in rules:
        for lie in lies:
            for seed in seeds:
                say(f"{rule}, {lie}, seed {seed}")
                loaded = load_scenario(scenario, values={**overrides, **RULES[rule], "seed": seed})
                runs.append(
                    {"rule": rule, "lie": lie, "seed": seed, "accuracy": accuracies(loaded, LIES[lie])}
                )
    return {"scenario": scenario, "liars": SHARE, "runs": runs, "rows": list(_summaries(runs))}


def accuracies(scenario: Scenario, factor: float | None) -> list[float]:
    """Returns the global model's accuracy after each round, the first before any.

    Args:
        scenario: What is run.
        factor: What the liars' changes are multiplied by; None where nobody lies.
    """
    setup, kept = prepare(scenario), _Kept()
    simulation, number = scenario.simulation, scenario.fleet.num_clients
    liars = generator(scenario.seed, "liars").choice(number, round(SHARE * number), replace=False) + 1
    timeout = scenario.server.timeout_seconds
    with (
        torch_threads(simulation.threads_per_worker),
        open_grid(simulation, CLIENT_APP, number, timeout, message_bytes=setup.message_bytes) as grid,
    ):
        lying = (
            grid
            if factor is None
            else LyingGrid(grid, setup.recipe.architecture.layout, set(liars.tolist()), factor)
        )
        run_fleet(lying, setup, Trackers([kept]))
    return kept.accuracies


class _Kept(Silent):
    """A tracker that keeps accuracies."""

    def __init__(self) -> None:
        self.accuracies: list[float] = []

    def on_round(self, report: RoundReport, state: ModelState) -> None:
        """Keeps the round's."""
        self.accuracies.append(report.accuracy)


def _summaries(runs: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for rule, lie in dict.fromkeys((run["rule"], run["lie"]) for run in runs):
        own = [run["accuracy"] for run in runs if (run["rule"], run["lie"]) == (rule, lie)]
        last = [100 * one[-1] for one in own]
        yield {
            "rule": rule,
            "lie": lie,
            "last_%": round(mean(last), 1),
            "±": round(stdev(last), 1) if len(last) > 1 else 0.0,
            "best_%": round(mean(100 * max(one) for one in own), 1),
        }
