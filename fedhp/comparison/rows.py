"""From the records of a comparison to its figures: per run, per arm over seeds, and per class."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

import pandas as pd
from scipy.stats import sem, t

from fedhp.comparison.hardware import figures
from fedhp.comparison.manifest import Entry
from fedhp.records.result import RunResult
from fedhp.report.series import Frame
from fedhp.sweep.averages import deviation_of, grouped, known
from fedhp.sweep.texts import Row

CONFIDENCE = 0.95  # of all intervals
ENOUGH = 3  # seeds for an interval: that of two is 12.7 standard errors to each side

_MEBIBYTE = 2**20
# The share of the rounds, the last ones, that what devices received is judged over: few are in each round.
_LAST = 0.2

_MEANS = (
    *("last", "best", "worst_class_accuracy", "compression", "memory_mean_mib"),
    *("up_mib", "down_mib", "seconds", "latency_us", "file_kib"),
)
# By figure of a run, how an arm's comes from those of its seeds.
OVER_SEEDS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(_MEANS, mean),
    "memory_peak_mib": max,
    "violations": sum,
    "failures": sum,
}


def run_rows(
    entries: Sequence[Entry],
    records: Mapping[str, RunResult],
    devices: Mapping[str, Any],
    export: str = "",
) -> list[Row]:
    """Returns a row per run: its labels, how it ended, and the figures of its record, known by its folder.

    Accuracies are in percent; memory is what was measured on the devices while they trained, and bytes what
    was sent, in MiB.

    Args:
        entries: The runs.
        records: Their records, by folder.
        devices: By folder, how good the run's model is on every device: `fedhp.comparison.devices`.
        export: The format by whose files the time of a sample, in microseconds, and the size, in KiB, are
            known; empty for none.
    """

    def found(folder: str) -> Row:
        run = records.get(folder)
        return {} if run is None else _figures(run, devices[folder]) | figures(run, export)

    return [
        {**entry.labels, "status": entry.status, "reason": entry.reason, **found(entry.folder)}
        for entry in entries
    ]


def _figures(run: RunResult, devices: Any) -> Row:
    summary, clients = run.summary, _trained(run)
    by_class = class_accuracy(devices)
    worst = by_class.idxmin() if len(by_class) else ""
    return {
        "last": 100 * summary["final_accuracy"],
        "best": 100 * summary["best_accuracy"],
        "held_out": is_held_out(run),
        "worst_class": worst,
        "worst_class_accuracy": by_class[worst] if worst else None,
        "compression": summary["compression"],
        "memory_mean_mib": clients["memory_measured_bytes"].mean() / _MEBIBYTE,
        "memory_peak_mib": clients["memory_measured_bytes"].max() / _MEBIBYTE,
        "up_mib": summary["bytes_up"] / _MEBIBYTE,
        "down_mib": summary["bytes_down"] / _MEBIBYTE,
        "seconds": summary["seconds"],
        "violations": summary["budget_violations"],
        "failures": summary["failures"],
    }


def _trained(run: RunResult) -> Any:
    return run.clients[run.clients["status"] == "ok"]


def is_held_out(run: RunResult) -> bool:
    """Says whether what devices are judged on is held out: they do not train on it."""
    return run.config.data.local_test > 0


def class_rows(
    entries: Sequence[Entry], records: Mapping[str, RunResult], devices: Mapping[str, Any]
) -> list[Row]:
    """Returns a row per arm and device class: memory in MiB, accuracies in percent.

    ``accuracy`` is that of the last global model, ``accuracy_received`` of what devices were sent of it, in
    the last rounds, where they held samples out. A class that a strategy leaves out has the first alone. All
    are means over seeds, but for the peak, which is the largest of all seeds.
    """
    parts = [
        _classes(records[entry.folder], devices[entry.folder]).assign(
            strategy=entry.strategy, value=entry.value
        )
        for entry in entries
        if entry.folder in records
    ]
    if not parts:
        return []
    seeds: Any = pd.concat(parts).groupby(["strategy", "value", "device_class"], sort=False)
    every = seeds.mean().assign(memory_peak_mib=seeds["memory_peak_mib"].max())
    rows = every.reset_index().to_dict("records")
    return [{key: None if pd.isna(value) else value for key, value in row.items()} for row in rows]


def _classes(run: RunResult, devices: Any) -> Any:
    clients = _trained(run)
    classes, late = (
        rows.groupby("device_class", sort=False)
        for rows in (clients, clients[clients["round"] > (1 - _LAST) * run.config.rounds])
    )
    figures = {
        "budget_mib": classes["memory_budget_bytes"].max() / _MEBIBYTE,
        "memory_mean_mib": classes["memory_measured_bytes"].mean() / _MEBIBYTE,
        "memory_peak_mib": classes["memory_measured_bytes"].max() / _MEBIBYTE,
        "accuracy": class_accuracy(devices),
        "accuracy_received": 100 * late["local_accuracy_global"].mean(),
    }
    named = pd.Index(devices["device_class"].unique(), name="device_class")
    return pd.DataFrame({key: column.reindex(named) for key, column in figures.items()}).reset_index()


def class_accuracy(devices: Frame) -> Any:
    """Returns a series: per device class, the share of its devices' samples that the model tells right, in %.

    Classes none of whose devices has a sample are not in it.
    """
    classes = devices.groupby("device_class", sort=False)[["samples", "right"]].sum()
    classes = classes[classes["samples"] > 0]
    return 100 * classes["right"] / classes["samples"]


def arm_rows(runs: Sequence[Row], keys: Sequence[str] = ()) -> list[Row]:
    """Returns a row per strategy and values of the varied keys: means over seeds, and their deviations.

    The peak of memory is the largest of all seeds; violations and failures are those of all together;
    ``last_low`` and ``last_high`` bound the last accuracy with a confidence of 95%, by Student's t, of three
    seeds or more. ``worst_class_accuracy`` is the mean of each seed's worst class, and ``worst_class`` names
    all that were worst on a seed, the most frequent first.
    """
    return [_arm(members, keys) for members in grouped(runs, "strategy", "value")]


def _arm(members: Sequence[Row], keys: Sequence[str]) -> Row:
    done = [row for row in members if "last" in row]
    row: Row = {key: members[0].get(key, "") for key in ("strategy", "value", *keys)}
    row["seeds"] = len(done)
    for key, over_seeds in OVER_SEEDS.items():
        values = known(done, key)
        row[key] = over_seeds(values) if values else None
        if key in _MEANS:
            row[f"{key}_deviation"] = deviation_of(done, key)
    row["last_low"], row["last_high"] = _interval([member["last"] for member in done])
    worst = Counter(member["worst_class"] for member in done if member["worst_class"])
    row["worst_class"] = ", ".join(name for name, _ in worst.most_common())
    row["reason"] = next((member["reason"] for member in members if member["reason"]), "")
    return row


def _interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Returns the confidence interval of a mean of percentages (Student 1908), of what these can be.

    None twice where there are too few seeds, or nothing varies.
    """
    if len(values) < ENOUGH or max(values) == min(values):
        return None, None
    low, high = t.interval(CONFIDENCE, len(values) - 1, mean(values), sem(values))
    return max(0.0, float(low)), min(100.0, float(high))
