"""A comparison's picture: accuracy against what training costs a device, and against what is sent."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from fedhp.comparison.rows import Row
from fedhp.comparison.writing import name
from fedhp.errors import MissingExtraError

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns which points (cost, accuracy) no other beats in both, by rising cost."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def draw(root: Path, arms: Sequence[Row]) -> list[Path]:
    """Draws ``figure.png`` and ``figure.svg``, and returns the files; none where no run has ended.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MissingExtraError("drawing a figure", "matplotlib", "plots") from None
    done = [row for row in arms if row["last"] is not None]
    if not done:
        return []
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, done, "memory_mean", "training memory, mean over clients and rounds, MiB")
    _panel(right, done, "bytes_up", "sent by the clients, MiB")
    left.set_ylabel("last accuracy, %")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    files = [root / "figure.png", root / "figure.svg"]
    for file in files:
        figure.savefig(file, dpi=150)
    return files


def _panel(axes: Any, arms: Sequence[Row], cost: str, label: str) -> None:
    """Draws an arm as a point with its spread over seeds, and the Pareto front as a staircase."""
    from matplotlib.ticker import LogLocator, NullFormatter

    points = [(row[cost], row["last"]) for row in arms]
    front = [points[index] for index in pareto(points)]
    axes.step(*zip(*front, strict=True), where="post", color="0.6", linestyle="--", label="Pareto front")
    for number, (row, marker) in enumerate(zip(arms, cycle(_MARKERS))):
        axes.errorbar(
            row[cost],
            row["last"],
            yerr=row["last_deviation"] or 0.0,
            label=name(row),
            color=f"C{number % 10}",
            marker=marker,
            linestyle="none",
            capsize=3,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)
