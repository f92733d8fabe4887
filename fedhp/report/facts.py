"""The facts of a run as texts: in a few words, per device class, and every failure."""

import math
from typing import Any, NamedTuple

from fedhp.bounds import one_line
from fedhp.records.result import RunResult
from fedhp.records.wording import duration, percent
from fedhp.report import series
from fedhp.scenario.loading import load_scenario, shipped_scenarios
from fedhp.sizes import format_size

MOST_CLASSES = 100
MOST_FAILURES = 50
_DESCRIBED = ("data.name:", "data.root:", "data.max_train:", "fleet.")  # the keys that descriptions tell of


class Fact(NamedTuple):
    """A fact: what it is called, what it is, and what there is to add."""

    name: str
    value: str
    note: str = ""


class ClassRow(NamedTuple):
    """A device class over a whole run, as texts."""

    name: str
    clients: str
    budget: str
    peak: str
    batch: str
    accuracy: str
    failures: str


class Failure(NamedTuple):
    """A client that failed in a round."""

    round: int
    client: int
    device_class: str
    cause: str


def description(run: RunResult) -> str:
    """Returns what the scenario says of itself; nothing where that ships with fedhp, and tells of other data.

    Where it is run on other data or another fleet, or where devices have data of their own, its description
    would be wrong.
    """
    config = run.config
    if config.name not in shipped_scenarios():
        return config.description
    shipped = load_scenario(config.name)
    others = any(said.startswith(_DESCRIBED) for said in shipped.differences(config))
    untrue = config.description == shipped.description and (others or run.partition is None)
    return "" if untrue else config.description


def _within(run: RunResult) -> str:
    """Says for which time the target was chosen, if for any."""
    prune = run.config.prune
    return f", for {prune.target_latency} in {prune.runtime}" if prune.target_latency else ""


def facts(run: RunResult) -> list[Fact]:
    """Returns the run in a few numbers."""
    summary, rounds, target = run.summary, run.rounds, run.config.prune.target_compression
    best = rounds.loc[rounds["accuracy"].idxmax(), "round"]
    return [
        Fact("final accuracy", percent(summary["final_accuracy"]), "of the held-out samples"),
        Fact("best accuracy", percent(summary["best_accuracy"]), f"in round {best}"),
        Fact(
            "compression",
            f"{summary['compression']:.2f}x",
            f"target {target:.4g}x{_within(run)}",
        ),
        Fact("parameters", f"{summary['params_final']:,}", f"of {summary['params_full']:,}"),
        Fact(
            "memory to train it",
            _size(summary["training_bytes_final"]),
            f"full model {_size(summary['training_bytes_full'])}",
        ),
        Fact("budget violations", f"{summary['budget_violations']:,}", "client rounds"),
        Fact("failures", f"{summary['failures']:,}", "client rounds"),
        Fact(
            "bytes moved",
            _size(summary["bytes_down"] + summary["bytes_up"]),
            f"{_size(summary['bytes_down'])} down, {_size(summary['bytes_up'])} up",
        ),
        Fact(
            "time",
            duration(summary["seconds"]),
            f"{summary['client_rounds_per_second']:.1f} client rounds per second",
        ),
        Fact("rounds", f"{summary['rounds']:,}", f"of {run.config.rounds:,}"),
    ]


def class_rows(run: RunResult) -> list[ClassRow]:
    """Returns a row per device class that was ever asked; only the first where there are very many."""
    late = series.client_accuracies(run.clients, series.first_of_last(run.rounds))
    rows = []
    for name in series.class_names(run)[:MOST_CLASSES]:
        own: series.Frame = run.clients[run.clients["device_class"] == name]
        budget = _known(own["memory_budget_bytes"].max())
        batch = _known(own["batch_size_last"].mean())
        rows.append(
            ClassRow(
                name=name,
                clients=f"{own['client'].nunique():,}",
                budget="no limit" if budget is None else format_size(budget),
                peak=_peak(own, budget),
                batch="-" if batch is None else f"{batch:.1f}",
                accuracy=percent(_known(late.loc[late["device_class"] == name, "accuracy"].mean())),
                failures=f"{len(own) - len(series.succeeded(own)):,}",
            )
        )
    return rows


def _peak(own: series.Frame, budget: float | None) -> str:
    """Writes the measured peak, where nothing was measured the predicted one, and its share of the budget."""
    peaks = own[["memory_measured_bytes", "memory_predicted_bytes"]].max().dropna().tolist()
    if not peaks:
        return "-"
    share = "" if budget is None else f" ({peaks[0] / budget:.0%})"
    return format_size(peaks[0]) + share


def _known(value: float) -> float | None:
    """Returns a number of a table; None where it holds none."""
    return None if math.isnan(value) else value


def failures(run: RunResult) -> tuple[list[Failure], int]:
    """Returns the first failures, and how many more there are."""
    failed: series.Frame = run.clients[run.clients["status"] != "ok"]
    shown = [
        Failure(row["round"], row["client"], row["device_class"], one_line(str(row["failure"])))
        for row in failed.head(MOST_FAILURES).to_dict("records")
    ]
    return shown, len(failed) - len(shown)


def _size(num_bytes: Any) -> str:
    return "unknown" if num_bytes is None else format_size(num_bytes)
