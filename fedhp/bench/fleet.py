"""What pruning costs in accuracy and saves in memory: a fleet against its two dense yardsticks."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fedhp.api import simulate
from fedhp.records.result import RunResult

STRATEGIES = ("mask_intersection", "dense", "exclusive")


def run_fleet(
    scenario: str = "fashion_mnist_fleet",
    seeds: Sequence[int] = (0, 1, 2),
    strategies: Sequence[str] = STRATEGIES,
    **overrides: Any,
) -> dict[str, Any]:
    """Runs a fleet with every strategy and seed, all else equal.

    Args:
        scenario: A scenario's name or path.
        seeds: Seeds; each fixes partition, initial weights, sampling and batches.
        strategies: Strategies to run.
        overrides: Scenario values by dotted key.

    Returns:
        ``runs`` (one row per strategy and seed, from its record) and ``strategies`` (per strategy the mean
        and the standard deviation over seeds of last and best accuracy, and the means of the rest).
    """
    rows = []
    with tempfile.TemporaryDirectory(prefix="fedhp-bench-") as folder:
        for seed in seeds:
            for strategy in strategies:
                out = Path(folder) / f"{strategy}-{seed}"
                values = {**overrides, "seed": seed, "strategy.name": strategy}
                rows.append(_row(simulate(scenario, out, **values), strategy))
    return {"scenario": scenario, "runs": rows, "strategies": list(_summaries(rows))}


def _row(run: RunResult, strategy: str) -> dict[str, Any]:
    """Returns one run's figures; peaks are over clients and rounds, by prediction and by measurement."""
    summary, clients = run.summary, run.clients
    keys = ("seed", "final_accuracy", "best_accuracy", "compression", "budget_violations", "failures")
    keys += ("bytes_up", "bytes_down", "seconds", "params_final", "training_bytes_final")
    return {
        "strategy": strategy,
        **{key: summary[key] for key in keys},
        "memory_predicted_max": int(clients.memory_predicted_bytes.max()),
        "memory_measured_max": int(clients.memory_measured_bytes.max()),
        "memory_measured_mean": float(clients.memory_measured_bytes.mean()),
    }


def _summaries(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for strategy in dict.fromkeys(row["strategy"] for row in rows):
        own = [row for row in rows if row["strategy"] == strategy]
        last = [row["final_accuracy"] for row in own]
        best = [row["best_accuracy"] for row in own]
        yield {
            "strategy": strategy,
            "last_accuracy": mean(last),
            "last_accuracy_deviation": stdev(last) if len(last) > 1 else 0.0,
            "best_accuracy": mean(best),
            "compression": mean(row["compression"] for row in own),
            "budget_violations": sum(row["budget_violations"] for row in own),
            "bytes_up": mean(row["bytes_up"] for row in own),
            "memory_measured_mean": mean(row["memory_measured_mean"] for row in own),
            "seconds": mean(row["seconds"] for row in own),
        }
