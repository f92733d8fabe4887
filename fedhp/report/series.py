"""The numbers behind a report's figures, from the tables of a run record."""

import json
import math
from collections.abc import Iterable
from typing import Any

from fedhp.fleet.devices import assign_classes
from fedhp.records.result import RunResult

Frame = Any  # a pandas frame; what its own types say of a selection is too little to go by

HELD_OUT = "local_accuracy_global"
TRAINING = "accuracy"

_FEWEST_LAST = 5
_LAST_SHARE = 10  # one in so many


def traffic(rounds: Frame) -> list[int]:
    """Returns the payload bytes moved up to the end of each round, down and up together."""
    return (rounds["bytes_down"] + rounds["bytes_up"]).cumsum().tolist()


def levels(rounds: Frame) -> dict[str, Frame]:
    """Returns the accuracies, in percent, of the narrower networks that the global model stands for."""
    told = rounds["levels"].map(lambda text: json.loads(text) if isinstance(text, str) else {})

    def accuracies(name: str) -> Frame:
        return told.map(lambda one: 100 * one[name]["accuracy"] if name in one else math.nan)

    return {name: accuracies(name) for name in told.iloc[-1] if float(name) < 1}


def first_of_last(rounds: Frame) -> int:
    """Returns the first of the last rounds: a tenth of the run, but no fewer than five, and none before 1."""
    last = int(rounds["round"].iloc[-1])
    return max(1, last + 1 - max(_FEWEST_LAST, last // _LAST_SHARE))


def class_names(run: RunResult) -> list[str]:
    """Returns the device classes that were ever asked: in the scenario's order, then others as they came."""
    seen = list(dict.fromkeys(run.clients["device_class"]))
    named = [kind.name for kind in run.config.fleet.classes if kind.name in seen]
    return [*named, *(name for name in seen if name not in named)]


def classes_of(run: RunResult, clients: Iterable[int]) -> list[str]:
    """Returns the device class of each client: what it said when it was asked, otherwise the scenario's."""
    planned = [kind.name for kind in assign_classes(run.config.fleet)]
    said = dict(zip(run.clients["client"], run.clients["device_class"], strict=True))
    return [said.get(client, planned[client] if client < len(planned) else "device") for client in clients]


def succeeded(clients: Frame) -> Frame:
    """Returns the rows of clients that did not fail."""
    return clients[clients["status"] == "ok"]


def judged_by(clients: Frame) -> str:
    """Returns the column by which clients are judged: on their own held-out samples where any has some."""
    return HELD_OUT if clients[HELD_OUT].notna().any() else TRAINING


def accuracy_name(run: RunResult) -> str:
    """Returns what the accuracy of clients is, in two words."""
    is_held_out = judged_by(run.clients) == HELD_OUT
    return "held-out accuracy" if is_held_out else "training accuracy"


def judged(run: RunResult) -> str:
    """Returns what the accuracy of clients is."""
    if judged_by(run.clients) == HELD_OUT:
        return (
            "Accuracy of the model that a client received, in percent, on samples of its own that it holds "
            "out (data.local_test)."
        )
    falling = run.config.train.lr_schedule != "constant"
    return (
        "Accuracy on a client's own samples while it trains on them, in percent; not on held-out ones, which "
        "data.local_test would set aside."
        + (" It may fall with the learning rate while the model gets better." if falling else "")
    )


def class_rounds(clients: Frame) -> dict[str, Frame]:
    """Returns, per device class, a row for each round in which a client of it succeeded, by round.

    The columns are ``predicted`` and ``measured``, the largest peaks in bytes; ``batch_least``, the smallest
    batch before the first cut, ``batch_most``, the largest after the last, and ``batch``, the mean after the
    last; ``accuracy``, the mean over the clients of what they are judged by, weighted by the number of their
    held-out samples where that is it.
    """
    rows = succeeded(clients)
    column = judged_by(clients)
    weight = rows["num_local_test"].fillna(0).astype(float) if column == HELD_OUT else 1.0
    known = rows[column].notna() * weight
    rows = rows.assign(known=known, right=rows[column].fillna(0).astype(float) * known)
    figures = rows.groupby(["device_class", "round"]).agg(
        predicted=("memory_predicted_bytes", "max"),
        measured=("memory_measured_bytes", "max"),
        batch_least=("batch_size_first", "min"),
        batch_most=("batch_size_last", "max"),
        batch=("batch_size_last", "mean"),
        right=("right", "sum"),
        known=("known", "sum"),
    )
    figures["accuracy"] = figures.pop("right") / figures.pop("known")
    return {name: own.droplevel("device_class") for name, own in figures.groupby(level="device_class")}


def client_accuracies(clients: Frame, first: int) -> Frame:
    """Returns the clients that succeeded since round ``first``.

    The columns are ``device_class`` and ``accuracy``, the mean of what clients are judged by.
    """
    column = judged_by(clients)
    late = succeeded(clients[clients["round"] >= first]).dropna(subset=[column])
    return late.groupby("client").agg(device_class=("device_class", "last"), accuracy=(column, "mean"))
