"""The figures of two records: what is how far off, accuracy over rounds, memory and seconds per class."""

from collections.abc import Callable, Iterator
from typing import Any

from fedhp.drawing.axes import (
    byte_unit,
    dots,
    legend_above,
    lines_of,
    logarithmic,
    over_rounds,
    panel_lines,
    panels,
    short,
)
from fedhp.drawing.plot import Plot
from fedhp.drawing.style import LIGHT, marked_looks
from fedhp.records.wording import percent
from fedhp.twins.measures import MEASURES, Frame, by_class, class_names, succeeded, until
from fedhp.twins.result import RecordComparison

_SIMULATED = {"color": LIGHT["series5"], "linewidth": 4.5, "alpha": 0.45}  # wide: the real one lies upon it
_REAL = {"color": LIGHT["series1"]}
_BOTH = {"simulated": _SIMULATED, "real": _REAL}
_EVEN = {"color": LIGHT["limit"], "linestyle": "--"}
_RATIOS = (
    *("memory_measured", "memory_peak", "memory_of_predicted", "seconds", "bytes_down", "bytes_up"),
    *("training_accuracy", "held_out_accuracy"),
)
_MOST_CLASSES = 8
_SPREAD = 0.6  # of a line's height, over which the classes stand
_FAR_ABOVE = 3  # times what is drawn
_LEAST = 0.05  # of a ratio: as far as a deviation reaches down on an axis of logarithms


def plots(found: RecordComparison) -> Iterator[Plot]:
    """Yields every figure."""
    for figure in (_ratios, _accuracy, _memory, _seconds):
        yield figure(found)


def _ratios(found: RecordComparison) -> Plot:
    table: Any = found.figures
    shown = table[table["device_class"].isin(list(_classes(found))) & table["ratio"].notna()]
    names = [name for name in _RATIOS if name in set(shown["figure"])]
    looks = marked_looks(list(dict.fromkeys(shown["device_class"])))

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for kind, look in looks.items():
            own = shown[(shown["device_class"] == kind) & shown["figure"].isin(names)]
            for row in own.itertuples():
                _ratio(axes, names.index(row.figure) + _aside(list(looks), kind), row, look)
        axes.axvline(1, **_EVEN)
        lines_of(axes, [MEASURES[name].said for name in names])
        logarithmic(axes.xaxis, lambda value: f"{value:g}")
        axes.set_xlabel("real / simulated")
        legend_above(figure, {short(kind): {**look, "linestyle": ""} for kind, look in looks.items()})

    return Plot(
        "ratios",
        "Real by simulated",
        "What devices took or reached, by what the simulation said: a class's mean over clients and rounds "
        "that both runs have (mark), with its standard deviation (line); of the peak, the one by the other. "
        f"Right of 1 it was more than simulated.{_rest(found)}",
        "; ".join(
            f"{MEASURES[name].said}: {_span(shown[shown['figure'] == name]['ratio'])}" for name in names
        )
        + ".",
        draw if names else None,
        1.2 + 0.45 * len(names),
    )


def _aside(kinds: list[str], kind: str) -> float:
    """Returns how far below the middle of its line a class stands."""
    return _SPREAD * ((kinds.index(kind) + 0.5) / len(kinds) - 0.5)


def _ratio(axes: Any, place: float, row: Any, look: Any) -> None:
    if row.ratio_deviation == row.ratio_deviation:
        ends = [max(row.ratio - row.ratio_deviation, _LEAST * row.ratio), row.ratio + row.ratio_deviation]
        axes.plot(ends, [place, place], color=look["color"], linewidth=1.5, alpha=0.6)
    axes.plot(row.ratio, place, color=look["color"], marker=look["marker"], markersize=5)


def _span(ratios: Any) -> str:
    return f"{ratios.min():.2f} to {ratios.max():.2f}"


def _accuracy(found: RecordComparison) -> Plot:
    lines = {
        name: 100 * run.rounds[run.rounds["round"] <= found.rounds].set_index("round")["accuracy"]
        for name, run in (("simulated", found.simulated), ("real", found.real))
    }

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for name, line in lines.items():
            axes.plot(line.index, line, **_BOTH[name], **dots(line))
        over_rounds(axes, "accuracy, %")
        legend_above(figure, _BOTH)

    ends = [f"{name} ends at {percent(line.iloc[-1] / 100)}" for name, line in lines.items()]
    return Plot(
        "accuracy",
        "Accuracy over rounds",
        "The server's model on the held-out samples after each round, in percent.",
        "; ".join(ends) + ".",
        draw,
    )


def _memory(found: RecordComparison) -> Plot:
    def draw(axes: Any, ours: Frame, theirs: Frame) -> None:
        lines = [rows.groupby("round")["memory_measured_bytes"].max() for rows in (ours, theirs)]
        budget, peak = theirs["memory_budget_bytes"].max(), max(line.max() for line in lines)
        unit, scale = byte_unit(peak)
        if budget < _FAR_ABOVE * peak:
            axes.axhline(budget / scale, **_EVEN)
        _pair(axes, [line / scale for line in lines], unit)

    return _per_class(
        found,
        "memory",
        "Training memory",
        "The largest training memory that was measured of a class's clients in each round, and the devices' "
        "budget, which is drawn unless it is far above.",
        draw,
        {**_BOTH, "budget": _EVEN},
    )


def _seconds(found: RecordComparison) -> Plot:
    def draw(axes: Any, ours: Frame, theirs: Frame) -> None:
        _pair(axes, [rows.groupby("round")["seconds"].mean() for rows in (ours, theirs)], "s")

    return _per_class(
        found,
        "seconds",
        "Seconds of training",
        "How long a class's clients trained in each round, in the mean.",
        draw,
        _BOTH,
    )


def _per_class(
    found: RecordComparison, name: str, title: str, caption: str, draw: Callable[..., None], looks: Any
) -> Plot:
    classes = _classes(found)

    def whole(figure: Any) -> None:
        for axes, own in zip(panels(figure, list(map(short, classes))), classes.values(), strict=True):
            draw(axes, *own)
        legend_above(figure, looks)

    alt = f"A panel for each of {', '.join(classes)}."
    height = 1.1 + 1.35 * panel_lines(list(classes)) if len(classes) > 1 else 3.0
    return Plot(name, title, f"{caption}{_rest(found)}", alt, whole if classes else None, height)


def _pair(axes: Any, lines: list[Any], unit: str) -> None:
    for look, line in zip(_BOTH.values(), lines, strict=True):
        axes.plot(line.index, line, **look, **dots(line))
    axes.set_ylim(bottom=0)
    axes.set_ylabel(unit)


def _classes(found: RecordComparison) -> dict[str, list[Frame]]:
    """Returns the first of the classes of which clients of both runs have succeeded, with their rows."""
    pairs = by_class(*(succeeded(until(run, found.rounds)) for run in (found.simulated, found.real)))
    both = [name for name, rows in pairs.items() if all(map(len, rows))]
    return {name: pairs[name] for name in both[:_MOST_CLASSES]}


def _rest(found: RecordComparison) -> str:
    left_out = len(class_names(found.real.clients)) - len(_classes(found))
    return f" Classes only in the tables: {left_out}." if left_out else ""
