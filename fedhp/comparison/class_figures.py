"""How the arms treat the devices: accuracy per class, its spread over clients, memory against the budget."""

from collections.abc import Sequence
from typing import Any

from fedhp.comparison import scene
from fedhp.comparison.facets import Facet
from fedhp.comparison.result import Result
from fedhp.comparison.texts import measured, own_samples
from fedhp.drawing.axes import intervals, legend_above, lines_of, logarithmic
from fedhp.drawing.plot import Plot
from fedhp.drawing.style import LIGHT, marked_looks
from fedhp.sweep.texts import Row

_SPREAD = 0.7  # of an arm's line, over which its classes stand
_BUDGET = {"color": LIGHT["limit"], "linestyle": "--"}


def accuracy(result: Result) -> Plot:
    """Accuracy per device class."""
    shown, looks = scene.facets(result), _class_looks(result)

    def draw(figure: Any) -> None:
        drawn = scene.panels(figure, shown)
        for axes, facet in zip(drawn, shown, strict=True):
            for place, row in _places(result, facet, looks):
                axes.plot(row["accuracy"], place, linestyle="", markersize=5, **looks[row["device_class"]])
            lines_of(axes, list(facet.done))
        drawn[-1].set_xlabel(f"accuracy on {own_samples(result)}, %")
        legend_above(figure, {kind: {**look, "linestyle": ""} for kind, look in looks.items()})

    return Plot(
        "classes",
        "Accuracy per device class",
        "How good the last global model is on the data of all devices of a class, whether or not the "
        f"strategy lets them take part: on {measured(result)}, in percent, mean over seeds."
        f"{scene.rest(result)}",
        _lowest(result, shown),
        draw,
        _height(shown, len(looks)),
    )


def _lowest(result: Result, shown: Sequence[Facet]) -> str:
    said = []
    for facet in shown:
        for label, arm in facet.done.items():
            own = [row for row in _own_classes(result, arm) if row["accuracy"] is not None]
            if own:
                worst = min(own, key=lambda row: row["accuracy"])
                said.append(
                    f"{label} {facet.title}".strip() + f": {worst['device_class']} {worst['accuracy']:.1f}%"
                )
    return f"The lowest class of each: {'; '.join(said)}."


def fairness(result: Result) -> Plot:
    """Spread of the accuracy over the devices at the end."""
    shown = scene.facets(result)

    def draw(figure: Any) -> None:
        drawn = scene.panels(figure, shown)
        for axes, facet in zip(drawn, shown, strict=True):
            spreads = {label: device_shares(result, arm) for label, arm in facet.done.items()}
            intervals(axes, spreads, scene.colours(result))
        drawn[-1].set_xlabel(f"accuracy on {own_samples(result)}, %")

    return Plot(
        "fairness",
        "Spread over the devices",
        "How good the last global model is on each device's own data, whether or not the strategy lets it "
        f"take part: on {measured(result)}, of all seeds: the range (thin), the quantiles 10% to 90% (thick) "
        f"and the median (dot).{scene.rest(result)}",
        "A line for each strategy, from its worst device to its best.",
        draw,
        scene.height(shown, 1.2),
    )


def device_shares(result: Result, arm: Row) -> Any:
    """Returns the share that an arm's last models tell right of each device's samples, of all seeds."""
    devices = result.devices_of(arm)
    devices = devices[devices["samples"] > 0]
    return devices["right"] / devices["samples"]


def memory(result: Result) -> Plot:
    """Training memory per class, as a share of its budget."""
    shown, looks, budgets = scene.facets(result), _class_looks(result), _budgets(result)

    def draw(figure: Any) -> None:
        drawn = scene.panels(figure, shown)
        for axes, facet in zip(drawn, shown, strict=True):
            for place, row in _places(result, facet, looks):
                _usage(axes, place, row, budgets, looks)
            axes.axvline(100, **_BUDGET)
            lines_of(axes, list(facet.done))
            logarithmic(axes.xaxis, lambda share: f"{share:g}%")
        drawn[-1].set_xlabel("training memory, share of the class's budget")
        marks = {kind: {**look, "linestyle": ""} for kind, look in looks.items() if kind in budgets}
        legend_above(figure, {"budget": _BUDGET, **marks})

    peaks = [
        f"{label} {max(shares):.0%}"
        for facet in shown
        for label, arm in facet.done.items()
        if (
            shares := [
                row["memory_peak_mib"] / budgets[row["device_class"]]
                for row in _own_classes(result, arm)
                if row["device_class"] in budgets and row["memory_peak_mib"] is not None
            ]
        )
    ]
    return Plot(
        "memory",
        "Training memory against the budget",
        "What was measured while a class's clients trained, as a share of the scenario's budget for the "
        "class: the mark is the largest peak, the line reaches to it from the mean over clients, rounds and "
        f"seeds.{' dense keeps to no budget.' if scene.has_ceiling(shown) else ''}"
        f"{scene.rest(result)}",
        f"The largest share of a budget: {'; '.join(peaks)}.",
        draw,
        _height(shown, len(looks)),
    )


def _usage(axes: Any, place: float, row: Row, budgets: Any, looks: Any) -> None:
    kind = row["device_class"]
    if kind not in budgets or row["memory_peak_mib"] is None:
        return
    mean, peak = (100 * row[key] / budgets[kind] for key in ("memory_mean_mib", "memory_peak_mib"))
    axes.plot([mean, peak], [place, place], color=looks[kind]["color"], linewidth=1.5, alpha=0.7)
    axes.plot(peak, place, linestyle="", markersize=5, **looks[kind])


def _budgets(result: Result) -> dict[str, float]:
    """Returns the scenario's budgets in MiB: a strategy that keeps to none is held against them too."""
    classes = next(iter(result.records.values())).config.fleet.classes
    return {kind.name: kind.memory_bytes / 2**20 for kind in classes}


def _class_looks(result: Result) -> dict[str, Any]:
    """Returns each class's colour and mark, also of those that took no part; the scenario's order."""
    names = [row["device_class"] for row in result.tables.classes]
    order = [kind.name for kind in next(iter(result.records.values())).config.fleet.classes]
    known = sorted(dict.fromkeys(names), key=lambda name: order.index(name) if name in order else len(order))
    return {
        name: {key: look[key] for key in ("color", "marker")} for name, look in marked_looks(known).items()
    }


def _own_classes(result: Result, arm: Row) -> list[Row]:
    return [
        row
        for row in result.tables.classes
        if (row["strategy"], row["value"]) == (arm["strategy"], arm["value"])
    ]


def _places(result: Result, facet: Facet, looks: Any) -> list[tuple[float, Row]]:
    """Returns the classes of each arm with their heights: around the arm's line, one below the other."""
    kinds = list(looks)
    return [
        (line + _SPREAD * ((kinds.index(row["device_class"]) + 0.5) / len(kinds) - 0.5), row)
        for line, arm in enumerate(facet.done.values())
        for row in _own_classes(result, arm)
    ]


def _height(shown: Sequence[Facet], num_classes: int) -> float:
    most = max(len(facet.done) for facet in shown)
    return 1.0 + len(shown) * (0.4 + most * max(0.24, 0.09 * num_classes))
