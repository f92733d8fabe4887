"""The numbers behind a report's figures, from the tables of a run record."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedhp.tracking import RunResult

Frame = Any  # a pandas frame; what its own types say of a selection is too little to go by

_FEWEST_LAST = 5
_LAST_SHARE = 10  # one in so many


def traffic(rounds: Frame) -> list[int]:
    """Returns the payload bytes moved up to the end of each round, down and up together."""
    return (rounds["bytes_down"] + rounds["bytes_up"]).cumsum().tolist()


def first_of_last(rounds: Frame) -> int:
    """Returns the first of the last rounds: a tenth of the run, but no fewer than five, and none before 1."""
    last = int(rounds["round"].iloc[-1])
    return max(1, last + 1 - max(_FEWEST_LAST, last // _LAST_SHARE))


def class_names(run: "RunResult") -> list[str]:
    """Returns the device classes that were ever asked: in the scenario's order, then others as they came."""
    seen = list(dict.fromkeys(run.clients["device_class"]))
    named = [kind.name for kind in run.config.fleet.classes if kind.name in seen]
    return [*named, *(name for name in seen if name not in named)]


def succeeded(clients: Frame) -> Frame:
    """Returns the rows of clients that did not fail."""
    return clients[clients["status"] == "ok"]


def class_rounds(clients: Frame) -> dict[str, Frame]:
    """Returns, per device class, a row for each round in which a client of it succeeded, by round.

    The columns are ``predicted`` and ``measured``, the largest peaks in bytes; ``batch_least``, the smallest
    batch before the first cut, ``batch_most``, the largest after the last, and ``batch``, the mean after the
    last; ``accuracy``, the mean over the clients.
    """
    rows = succeeded(clients).groupby(["device_class", "round"])
    figures = rows.agg(
        predicted=("memory_predicted_bytes", "max"),
        measured=("memory_measured_bytes", "max"),
        batch_least=("batch_size_first", "min"),
        batch_most=("batch_size_last", "max"),
        batch=("batch_size_last", "mean"),
        accuracy=("accuracy", "mean"),
    )
    return {name: figures.loc[name] for name in figures.index.unique("device_class")}


def client_accuracies(clients: Frame, first: int) -> Frame:
    """Returns, per client that succeeded since round ``first``, its mean accuracy, and its device class."""
    late = succeeded(clients[clients["round"] >= first]).dropna(subset=["accuracy"])
    return late.groupby("client").agg(device_class=("device_class", "last"), accuracy=("accuracy", "mean"))
