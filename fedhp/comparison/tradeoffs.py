"""What accuracy costs: against the memory of training, the signature of a comparison, and against bytes."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import LogLocator, NullFormatter

from fedhp.comparison import scene
from fedhp.comparison.facets import Facet
from fedhp.comparison.result import Result
from fedhp.drawing.axes import Look
from fedhp.drawing.plot import Plot
from fedhp.drawing.style import LIGHT
from fedhp.sweep.texts import Row

_FARTHEST = 8.0  # points below the best that are shown, where some are far off
_MANY = 5  # arms, of which one may be far off
_ABOUT_CEILING = " dense, which keeps to no budget, is the ceiling and not on it."
_FRONT = {"color": LIGHT["faint"], "linestyle": "--", "linewidth": 1.2}
_CEILING = {"color": LIGHT["ink"], "linestyle": ":", "linewidth": 1.2}


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns which points (cost, accuracy) no other beats, by rising cost; of equal ones, all.

    One beats another that is better in one and no worse in the other.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        last = points[front[-1]] if front else None
        if last is None or points[index] == last or points[index][1] > last[1]:
            front.append(index)
    return front


def front_of(facet: Facet, cost: str) -> list[str]:
    """Returns which arms no other beats in cost and accuracy, the cheapest first.

    The ceiling takes no part, unless it is alone: it does not keep to the budgets.
    """
    names = [label for label in facet.done if label != scene.CEILING] or list(facet.done)
    points = [(facet.arms[name][cost], facet.arms[name]["last"]) for name in names]
    return [names[index] for index in pareto(points)]


def memory(result: Result) -> Plot:
    """Last accuracy against training memory."""
    return _plot(
        result,
        "signature",
        "Accuracy against training memory",
        "memory_mean_mib",
        "training memory, mean over clients and rounds",
    )


def traffic(result: Result) -> Plot:
    """Last accuracy against what the clients send."""
    return _plot(result, "sent", "Accuracy against bytes sent", "up_mib", "sent by the clients")


def _plot(result: Result, name: str, title: str, cost: str, said: str) -> Plot:
    shown, looks = scene.facets(result), scene.looks(result)
    unit, scale = scene.bytes_scale([row[cost] for facet in shown for row in facet.done.values()])

    def draw(figure: Any) -> None:
        drawn = scene.panels(figure, shown)
        for axes, facet in zip(drawn, shown, strict=True):
            _panel(axes, facet, cost, scale, looks)
        drawn[-1].set_xlabel(f"{said}, {unit}")
        ceiling = scene.has_ceiling(shown)
        lines = {"Pareto front": _FRONT, **({"dense, the ceiling": _CEILING} if ceiling else {})}
        marks = {axes: _points(facet, cost, scale) for axes, facet in zip(drawn, shown, strict=True)}
        scene.name_arms(
            figure, marks, {label: {**look, "linestyle": ""} for label, look in looks.items()}, lines
        )

    fronts = [
        f"{f'{facet.title}: ' if facet.title else ''}{', '.join(front_of(facet, cost))}" for facet in shown
    ]
    return Plot(
        name,
        title,
        "The global model's last accuracy on the held-out samples, mean over seeds with the standard "
        f"deviation, against what it cost: {said}. On the Pareto front no other strategy is both cheaper and "
        f"more accurate ({'; '.join(fronts)}).{_ABOUT_CEILING if scene.has_ceiling(shown) else ''}"
        f"{scene.rest(result)}",
        f"Marks. On the Pareto front: {'; '.join(fronts)}.",
        draw,
        scene.height(shown, 3.2),
    )


def _panel(axes: Any, facet: Facet, cost: str, scale: float, looks: Mapping[str, Look]) -> None:
    """Draws an arm as a point with its spread over seeds, and the Pareto front as a staircase."""
    points = _points(facet, cost, scale)
    if scene.CEILING in points:
        axes.axhline(points[scene.CEILING][1], **_CEILING)
    for name, (x, y) in points.items():
        spread = facet.arms[name]["last_deviation"] or 0.0
        look = {key: looks[name][key] for key in ("color", "marker")}
        axes.errorbar(x, y, spread, linestyle="", markersize=6, capsize=2, elinewidth=1, **look)
    _limit(axes, facet.done)
    axes.set_xscale("log")
    axes.margins(x=0.12)
    _front(axes, [points[name] for name in front_of(facet, cost)])
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("last accuracy, %")


def _front(axes: Any, points: Sequence[tuple[float, float]]) -> None:
    """Draws a staircase through the front, and on from its best: more cost buys nothing there."""
    right = axes.get_xlim()[1]
    axes.step(*zip(*points, (right, points[-1][1]), strict=True), where="post", **_FRONT)
    axes.set_xlim(right=right)


def _points(facet: Facet, cost: str, scale: float) -> dict[str, tuple[float, float]]:
    return {label: (row[cost] * scale, row["last"]) for label, row in facet.done.items()}


def _limit(axes: Any, done: Mapping[str, Row]) -> None:
    """Keeps an arm or two that failed to learn from flattening all others: they are named instead."""
    if low := far_off({label: row["last"] for label, row in done.items()}):
        top = max(row["last"] for row in done.values())
        axes.set_ylim(top - _FARTHEST, top + 1)
        said = ", ".join(f"{label} {last:.1f}" for label, last in low.items())
        axes.text(0.02, 0.03, f"below: {said}", transform=axes.transAxes, fontsize=8)


def far_off(lasts: Mapping[str, float]) -> dict[str, float]:
    """Returns the arms, by accuracy in percent, beside which the others could not be told apart.

    They are one in five at most, more than 8 points below the best, and farther below the others than these
    are apart: of few arms, or of arms that lie all along a line, none is.
    """
    top = max(lasts.values())
    low = {label: last for label, last in lasts.items() if last < top - _FARTHEST}
    rest = min(last for label, last in lasts.items() if label not in low)
    apart = all(rest - last > top - rest for last in low.values())
    return low if apart and len(low) <= len(lasts) // _MANY else {}
