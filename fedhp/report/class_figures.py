"""Figures of the device classes: memory against budget, batch sizes, and who learns how much."""

from collections.abc import Mapping
from typing import Any

from matplotlib.ticker import MaxNLocator

from fedhp.drawing.axes import (
    Climb,
    byte_unit,
    dots,
    intervals,
    legend_above,
    over_rounds,
    panel_lines,
    panels,
    short,
)
from fedhp.drawing.plot import Plot
from fedhp.drawing.style import LIGHT, looks
from fedhp.records.result import RunResult
from fedhp.records.wording import percent
from fedhp.report import series
from fedhp.sizes import format_size

_MOST_CLASSES = 8  # whose panels or lines can be told apart
_FAR_ABOVE = 3  # times the peak: drawn to that scale, memory would be a line at the bottom
_NOBODY = "No client has succeeded so far, so that there is nothing to draw."
_MEASURED = {"color": LIGHT["series1"]}
_PREDICTED = {"color": LIGHT["series5"], "linewidth": 4.5, "alpha": 0.45}  # wide: the measured lies upon it
_BUDGET = {"color": LIGHT["limit"], "linestyle": "--"}


def memory(run: RunResult) -> Plot:
    """Peak training memory per class and round, against the budget."""
    name, title, classes = "memory", "Training memory against the budget", _classes(run)
    if not classes:
        return Plot(name, title, _NOBODY)
    budgets = _budgets(run)

    def draw(figure: Any) -> None:
        titles = [f"{short(kind)}: {_size(budgets.get(kind))}" for kind in classes]
        for axes, (kind, own) in zip(panels(figure, titles), classes.items(), strict=True):
            _peaks(axes, own, budgets.get(kind))
        legend_above(figure, {"measured": _MEASURED, "predicted": _PREDICTED, "budget": _BUDGET})

    return Plot(
        name,
        title,
        "The largest training memory of a class's clients in each round, as the memory model predicted it "
        "and as it was measured; the budget stands in the title too, and is drawn unless it is far above."
        f"{_rest(run)}",
        "; ".join(_peak(kind, own, budgets.get(kind)) for kind, own in classes.items()) + ".",
        draw,
        _height(classes),
    )


def _peaks(axes: Any, own: series.Frame, budget: float | None) -> None:
    peak = own[["predicted", "measured"]].max().max()
    unit, scale = byte_unit(peak)
    axes.plot(own.index, own["predicted"] / scale, **_PREDICTED)
    axes.plot(own.index, own["measured"] / scale, **_MEASURED, **dots(own))
    if budget is not None and budget < _FAR_ABOVE * peak:
        axes.axhline(budget / scale, **_BUDGET)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(unit)


def _budgets(run: RunResult) -> dict[str, float]:
    clients: series.Frame = run.clients
    return clients.groupby("device_class")["memory_budget_bytes"].max().dropna().to_dict()


def _size(budget: float | None) -> str:
    return "no limit" if budget is None else format_size(budget)


def _peak(kind: str, own: series.Frame, budget: float | None) -> str:
    peak = own[["predicted", "measured"]].max().max()
    return f"{kind}: {format_size(peak)}" + ("" if budget is None else f", {peak / budget:.0%} of its budget")


def batches(run: RunResult) -> Plot:
    """Batch sizes per class and round; of the classes only in which they ever change."""
    name, title, classes = "batches", "Batch sizes", _classes(run)
    if not classes:
        return Plot(name, title, _NOBODY)
    ranges = "; ".join(f"{kind}: {_range(own)} samples" for kind, own in classes.items()) + "."
    changing = {kind: own for kind, own in classes.items() if not _is_constant(own)}
    if not changing:
        return Plot(name, title, f"They never change. {ranges}{_rest(run)}")

    def draw(figure: Any) -> None:
        drawn = panels(figure, list(map(short, changing)), "samples per step", sharey=True)
        for axes, own in zip(drawn, changing.values(), strict=True):
            band = (own.index, own["batch_least"], own["batch_most"])
            axes.fill_between(*band, color=LIGHT["series1"], alpha=0.25, linewidth=0)
            axes.plot(own.index, own["batch"], color=LIGHT["series1"], **dots(own))
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))

    constant = [f"{kind} {_range(own)}" for kind, own in classes.items() if kind not in changing]
    return Plot(
        name,
        title,
        f"Samples per training step (memory.batch_policy={run.config.memory.batch_policy}): the line is the "
        "mean after a round's last cut, the band reaches from the smallest before its first cut to the "
        "largest after its last."
        + (f" Where they never change: {', '.join(constant)}." if constant else "")
        + _rest(run),
        ranges,
        draw,
        _height(changing),
    )


def _is_constant(own: series.Frame) -> bool:
    return bool(own["batch_least"].min() == own["batch_most"].max())


def _range(own: series.Frame) -> str:
    least, most = own["batch_least"].min(), own["batch_most"].max()
    return f"{least:.0f}" if least == most else f"{least:.0f} to {most:.0f}"


def accuracy(run: RunResult) -> Plot:
    """Accuracy per class over rounds."""
    name, title = "classes", "Accuracy per device class"
    classes = {kind: own.dropna(subset=["accuracy"]) for kind, own in _classes(run).items()}
    classes = {kind: own for kind, own in classes.items() if len(own)}  # some may hold nothing out
    if not classes:
        return Plot(name, title, _NOBODY)
    climb = Climb([100 * own["accuracy"] for own in classes.values()])

    def draw(figure: Any) -> None:
        axes, lines = figure.subplots(), looks(list(classes))
        for kind, own in classes.items():
            axes.plot(own.index, 100 * own["accuracy"], **lines[kind], **dots(own))
        over_rounds(axes, "accuracy, %")
        climb.cut(axes)
        legend_above(figure, {short(kind): look for kind, look in lines.items()})

    ends = [f"{kind} ends at {percent(own['accuracy'].iloc[-1])}" for kind, own in classes.items()]
    return Plot(
        name,
        title,
        f"{series.judged(run)} The mean over a class's clients in each round.{climb.said}{_rest(run)}",
        "; ".join(ends) + ".",
        draw,
    )


def fairness(run: RunResult) -> Plot:
    """Spread of the accuracy over the clients at the end."""
    name, title, classes = "fairness", "Spread over the clients", _classes(run)
    first, last = series.first_of_last(run.rounds), run.summary["rounds"]
    late = series.client_accuracies(run.clients, first)
    if len(late) < 2:
        return Plot(name, title, f"No two clients have succeeded since round {first}.")
    ends = {kind: late.loc[late["device_class"] == kind, "accuracy"] for kind in classes}
    spreads = {**{kind: own for kind, own in ends.items() if len(own)}, "all": late["accuracy"]}

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        intervals(axes, spreads, {kind: look["color"] for kind, look in looks(list(classes)).items()})
        axes.set_xlabel(f"mean accuracy in rounds {first} to {last}, %")

    low, middle, high = map(percent, late["accuracy"].quantile([0.1, 0.5, 0.9]))
    return Plot(
        name,
        title,
        f"{series.judged(run)} Each client's mean in the last rounds, per class: the range (thin), the "
        f"quantiles 10% to 90% (thick; of all {low} to {high}) and the median (dot; of all {middle})."
        f"{_rest(run)}",
        f"Medians: {', '.join(f'{kind} {percent(own.median())}' for kind, own in spreads.items())}.",
        draw,
        1.0 + 0.35 * len(spreads),
    )


def _classes(run: RunResult) -> dict[str, series.Frame]:
    """Returns the rounds of the classes that are drawn: the first of those of which a client succeeded."""
    seen = series.class_rounds(run.clients)
    return {
        kind: seen[kind] for kind in [one for one in series.class_names(run) if one in seen][:_MOST_CLASSES]
    }


def _rest(run: RunResult) -> str:
    left_out = series.succeeded(run.clients)["device_class"].nunique() - _MOST_CLASSES
    return (
        f" Classes beyond the first {_MOST_CLASSES}, only in the table: {left_out}." if left_out > 0 else ""
    )


def _height(classes: Mapping[str, Any]) -> float:
    return 1.1 + 1.35 * panel_lines(list(classes)) if len(classes) > 1 else 3.0
