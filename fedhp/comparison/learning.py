"""How the arms learn: accuracy over rounds and over bytes, compression over rounds."""

from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from fedhp.comparison import scene
from fedhp.comparison.facets import Facet
from fedhp.comparison.result import Result
from fedhp.comparison.texts import three_digits
from fedhp.drawing import labels
from fedhp.drawing.axes import Climb, over_rounds
from fedhp.drawing.plot import Plot
from fedhp.records.result import RunResult
from fedhp.report.series import traffic as traffic_of

_MARKS = 7  # on a line, by which it is known without colours


def over_seeds(runs: list[RunResult], values: Callable[[RunResult], Any]) -> Any:
    """Returns, by round, the mean over runs, and the mean less and plus the standard deviation.

    Args:
        runs: Runs that differ in the seed.
        values: What of a run: a series by round.
    """
    every: Any = pd.concat([values(run) for run in runs], axis=1)
    mean, deviation = every.mean(axis=1), every.std(axis=1).fillna(0.0)
    return pd.DataFrame({"mean": mean, "low": mean - deviation, "high": mean + deviation})


def _accuracy(run: RunResult) -> Any:
    return 100 * run.rounds.set_index("round")["accuracy"]


def _compression(run: RunResult) -> Any:
    return run.rounds.set_index("round")["compression"]


def _sent(run: RunResult) -> Any:
    """Returns the MiB moved up to the end of each round."""
    return pd.Series(traffic_of(run.rounds), run.rounds["round"]) / 2**20


def _curves(result: Result, facet: Facet, values: Callable[[RunResult], Any]) -> dict[str, Any]:
    return {label: over_seeds(result.runs_of(row), values) for label, row in facet.done.items()}


def accuracy(result: Result) -> Plot:
    """Accuracy over rounds."""
    shown = scene.facets(result)

    def draw(figure: Any) -> None:
        for axes, facet in zip(scene.panels(figure, shown), shown, strict=True):
            curves = _curves(result, facet, _accuracy)
            for label, curve in curves.items():
                _line(axes, result, label, curve.index, curve)
            _climb(curves).cut(axes)
            _name_at_end(figure, axes, result, curves, "accuracy, %")

    return Plot(
        "accuracy",
        "Accuracy over rounds",
        "The global model's accuracy on the held-out samples after each round, in percent: the mean over "
        "seeds, with a band of one standard deviation. What is far below the end is cut off."
        f"{scene.rest(result)}",
        _alt("Lines that end at", shown, lambda row: f"{row['last']:.1f}%"),
        draw,
        scene.height(shown),
    )


def traffic(result: Result) -> Plot:
    """Accuracy over all bytes that were moved."""
    shown = scene.facets(result)
    most = max(row["up_mib"] + row["down_mib"] for facet in shown for row in facet.done.values())
    unit, scale = scene.bytes_scale([most])

    def draw(figure: Any) -> None:
        ends, drawn = {}, scene.panels(figure, shown)
        for axes, facet in zip(drawn, shown, strict=True):
            curves = _curves(result, facet, _accuracy)
            moved = {label: scale * one["mean"] for label, one in _curves(result, facet, _sent).items()}
            for label, curve in curves.items():
                _line(axes, result, label, moved[label], curve)
            _climb(curves).cut(axes)
            axes.set_ylabel("accuracy, %")
            axes.set_xlim(0, 1.3 * scale * most)
            ends[axes] = {
                label: (moved[label].iloc[-1], curve["mean"].iloc[-1]) for label, curve in curves.items()
            }
        drawn[-1].set_xlabel(f"sent since the start, down and up, {unit}")
        scene.name_arms(figure, ends, scene.looks(result))

    return Plot(
        "traffic",
        "Accuracy over bytes moved",
        "The same over the payload bytes of all messages to and from the clients so far; a line ends where "
        f"the last round does.{scene.rest(result)}",
        _alt(
            "Lines that end after", shown, lambda row: f"{three_digits(row['up_mib'] + row['down_mib'])} MiB"
        ),
        draw,
        scene.height(shown),
    )


def size(result: Result) -> Plot:
    """Compression over rounds."""
    shown = scene.facets(result)

    def draw(figure: Any) -> None:
        for axes, facet in zip(scene.panels(figure, shown), shown, strict=True):
            curves = _curves(result, facet, _compression)
            for label, curve in curves.items():
                _line(axes, result, label, curve.index, curve)
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}x"))
            axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
            _name_at_end(figure, axes, result, curves, "compression")

    return Plot(
        "size",
        "Compression over rounds",
        "Parameters of the full model per parameter of the global model after each round: the mean over "
        f"seeds, with a band of one standard deviation.{scene.rest(result)}",
        _alt("Lines that end at", shown, lambda row: f"{row['compression']:.1f}x"),
        draw,
        scene.height(shown),
    )


def _line(axes: Any, result: Result, label: str, xs: Any, curve: Any) -> None:
    look = scene.looks(result)[label]
    axes.fill_between(xs, curve["low"], curve["high"], color=look["color"], alpha=0.09, linewidth=0)
    every = max(1, len(curve) // _MARKS)
    axes.plot(xs, curve["mean"], markersize=4, markevery=(every - 1, every), **look)


def _climb(curves: dict[str, Any]) -> Climb:
    lows, highs = ([curve[edge] for curve in curves.values()] for edge in ("low", "high"))
    return Climb(lows, highs, points=0.0)


def _name_at_end(figure: Any, axes: Any, result: Result, curves: dict[str, Any], ylabel: str) -> None:
    over_rounds(axes, ylabel)
    axes.label_outer()
    axes.set_xlim(0, max(curve.index[-1] for curve in curves.values()))
    ends = {label: (curve.index[-1], curve["mean"].iloc[-1]) for label, curve in curves.items()}
    labels.at_the_end(figure, axes, ends, scene.colours(result))


def _alt(said: str, shown: list[Facet], end: Callable[[dict[str, Any]], str]) -> str:
    parts = [
        (f"{facet.title}: " if facet.title else "")
        + ", ".join(f"{label} {end(row)}" for label, row in facet.done.items())
        for facet in shown
    ]
    return f"{said}: {'; '.join(parts)}."
