"""What two records of one scenario measured, each figure of the one over that of the other."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedhp.records.result import RunResult

Frame = Any  # a pandas frame; what its own types say of a selection is too little to go by

FLEET = "whole fleet"  # in the place of a device class
FAILURES = ("device_class", "failure", "simulated", "real")

_PAIR = ["round", "client"]
_OVER: Mapping[str, Callable[[Any], float]] = {
    "mean": lambda values: values.mean(),
    "highest": lambda values: values.max(),
    "lowest": lambda values: values.min(),
    "sum": lambda values: values.sum(min_count=1),
    "last": lambda values: values.iloc[-1],
}


@dataclass(frozen=True)
class Measure:
    """A figure of a run, or of a device class in it.

    Attributes:
        name: What it is called.
        said: The same for people.
        unit: "bytes", "seconds", "share" (0 to 1), or empty for numbers.
        of: Returns it of each row of a table.
        over: What those of the rows come to: "mean", "highest", "lowest", "sum" or "last".
    """

    name: str
    said: str
    unit: str
    of: Callable[[Frame], Any]
    over: str = "mean"


def _column(name: str) -> Callable[[Frame], Any]:
    return lambda rows: rows[name].astype(float)


def _share(column: str, whole: str) -> Callable[[Frame], Any]:
    return lambda rows: rows[column].astype(float) / rows[whole].astype(float)


_MEASURED, _PREDICTED, _BUDGET = "memory_measured_bytes", "memory_predicted_bytes", "memory_budget_bytes"

OF_ROUNDS = (
    Measure("accuracy", "accuracy of the server's model", "share", _column("accuracy")),
    Measure("final_accuracy", "the same after the last round", "share", _column("accuracy"), "last"),
    Measure("params", "parameters after it", "", _column("params"), "last"),
    Measure("round_seconds", "a round", "seconds", _column("seconds")),
    Measure("bytes_down_total", "sent down in all", "bytes", _column("bytes_down"), "sum"),
    Measure("bytes_up_total", "sent up in all", "bytes", _column("bytes_up"), "sum"),
)
OF_ASKED = (
    Measure("asked", "times asked", "", lambda rows: rows["round"] > 0, "sum"),
    Measure("failed", "times failed", "", lambda rows: rows["status"] != "ok", "sum"),
)
OF_TRAINED = (
    Measure("memory_predicted", "memory, predicted", "bytes", _column(_PREDICTED)),
    Measure("memory_measured", "memory, measured", "bytes", _column(_MEASURED)),
    Measure("memory_peak", "memory, highest peak", "bytes", _column(_MEASURED), "highest"),
    Measure("memory_of_predicted", "measured, of predicted", "share", _share(_MEASURED, _PREDICTED)),
    Measure("memory_of_budget", "highest peak, of budget", "share", _share(_MEASURED, _BUDGET), "highest"),
    Measure("seconds", "training", "seconds", _column("seconds")),
    Measure("bytes_down", "sent down", "bytes", _column("bytes_down")),
    Measure("bytes_up", "sent up", "bytes", _column("bytes_up")),
    Measure("training_accuracy", "accuracy in training", "share", _column("accuracy")),
    Measure("held_out_accuracy", "accuracy, held out", "share", _column("local_accuracy_global")),
    Measure("shortages", "guard: times short", "", _column("num_shortages"), "sum"),
    Measure("memory_left", "guard: least left", "bytes", _column("memory_left_bytes"), "lowest"),
)
MEASURES = {measure.name: measure for measure in (*OF_ROUNDS, *OF_ASKED, *OF_TRAINED)}


def until(run: RunResult, last: int) -> Frame:
    """Returns the clients' rows of a run's rounds up to the last that counts."""
    return run.clients[run.clients["round"] <= last]


def succeeded(clients: Frame) -> Frame:
    """Returns the rows of clients that did not fail."""
    return clients[clients["status"] == "ok"]


def class_names(clients: Frame) -> list[str]:
    """Returns the device classes of clients, in the order in which they were first asked."""
    return list(dict.fromkeys(clients["device_class"]))


def by_class(simulated: Frame, real: Frame) -> dict[str, list[Frame]]:
    """Returns the clients' rows of a simulation and of devices, by the devices' classes.

    A class that the simulation does not know is held against the simulated clients of the same numbers.
    """
    found: dict[str, list[Frame]] = {}
    for name in class_names(real):
        own, alike = (rows[rows["device_class"] == name] for rows in (real, simulated))
        found[name] = [alike if len(alike) else simulated[simulated["client"].isin(own["client"])], own]
    return found


def rows(simulated: RunResult, real: RunResult, last: int) -> Iterator[dict[str, Any]]:
    """Yields a row per figure, of the whole fleet first, then of each device class.

    Args:
        simulated: The simulation.
        real: What became of it on devices.
        last: The last round that counts.

    Yields:
        ``device_class``; ``figure``, its ``unit``, and what it is ``over`` rounds and clients; ``simulated``
        and ``real``, and of means their standard deviations; and ``ratio``, real by simulated. A mean, and
        its ratio, are over the ``pairs`` of rows of the same round and client that both have; where there
        are none, each is over the run's own rows. Its ratio is the mean of theirs, with its standard
        deviation; where there are none, and of all else, the one figure by the other. Without what neither
        run has.
    """
    held = [run.rounds[run.rounds["round"].between(1, last)].set_index("round") for run in (simulated, real)]
    yield from _of(FLEET, OF_ROUNDS, held)
    asked = [until(run, last) for run in (simulated, real)]
    for name, parts in {FLEET: asked, **by_class(*asked)}.items():
        yield from _of(name, OF_ASKED, parts)
        yield from _of(name, OF_TRAINED, [succeeded(part).set_index(_PAIR) for part in parts])


def _of(device_class: str, measures: Sequence[Measure], both: Sequence[Frame]) -> Iterator[dict[str, Any]]:
    for measure in measures:
        ours, theirs = (measure.of(table) for table in both)
        if ours.notna().any() or theirs.notna().any():
            about = {"figure": measure.name, "unit": measure.unit, "over": measure.over}
            yield {"device_class": device_class, **about, **_against(ours, theirs, measure.over)}


def _against(ours: Any, theirs: Any, over: str) -> dict[str, Any]:
    ours, theirs, pairs = _paired(ours, theirs) if over == "mean" else (ours, theirs, 0)
    simulated, real = (_OVER[over](values) for values in (ours, theirs))
    ratios = theirs / ours.where(ours != 0) if pairs else ours.head(0)
    return {
        "simulated": simulated,
        "simulated_deviation": ours.std() if over == "mean" else math.nan,
        "real": real,
        "real_deviation": theirs.std() if over == "mean" else math.nan,
        "ratio": ratios.mean() if pairs else real / simulated if simulated else math.nan,
        "ratio_deviation": ratios.std(),
        "pairs": pairs,
    }


def _paired(ours: Any, theirs: Any) -> tuple[Any, Any, int]:
    """Returns the figures of the rounds and clients that both have, and how many; else all, and 0."""
    mine, there = ours.dropna().align(theirs.dropna(), join="inner")
    return (mine, there, len(mine)) if len(mine) else (ours, theirs, 0)


def failures(simulated: RunResult, real: RunResult, last: int) -> Iterator[dict[str, Any]]:
    """Yields a row per device class and reason: how many client rounds of each run failed for it."""
    counts: dict[tuple[str, str], list[int]] = {}
    for place, run in enumerate((simulated, real)):
        asked = until(run, last)
        failed = asked[asked["status"] != "ok"]
        for reason in zip(failed["device_class"], failed["failure"], strict=True):
            counts.setdefault(reason, [0, 0])[place] += 1
    for (name, failure), both in counts.items():
        yield dict(zip(FAILURES, (name, failure, *both), strict=True))
