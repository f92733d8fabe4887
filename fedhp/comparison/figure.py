"""A comparison's picture: accuracy against what training costs a device, and against what is sent."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedhp.comparison.rows import Row
from fedhp.studies.figure import new_figure, save

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_FARTHEST = 8.0  # points below the best that are shown


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns which points (cost, accuracy) no other beats in both, by rising cost."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def draw(root: Path, arms: Sequence[Row], key: str = "") -> list[Path]:
    """Draws ``figure.png`` and ``figure.svg``, and returns the files; none where no run has ended.

    Each value of the varied key has a row of its own, and each strategy a look that is the same in all.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    done = [row for row in arms if row["last"] is not None]
    if not done:
        return []
    # An arm without a value, to whom the varied key means nothing, stands in every row.
    values = list(dict.fromkeys(row["value"] for row in done if row["value"])) or [""]
    figure = new_figure(9, 1.2 + 3.2 * len(values))
    panels = figure.subplots(len(values), 2, squeeze=False, sharey="row", sharex="col")
    names = dict.fromkeys(row["strategy"] for row in done)
    looks = {name: f"C{number % 10}{_MARKERS[number % 7]}" for number, name in enumerate(names)}
    for (left, right), value in zip(panels, values, strict=True):
        shown = [row for row in done if row["value"] in (value, "")]
        _panel(left, shown, "memory_mean", looks)
        _panel(right, shown, "bytes_up", looks)
        left.set_ylabel("last accuracy, %")
        left.set_title(f"{key} = {value}" if value else "", loc="left")
    panels[-1][0].set_xlabel("training memory, mean over clients and rounds, MiB")
    panels[-1][1].set_xlabel("sent by the clients, MiB")
    known = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        known.update(zip(labels, handles, strict=True))
    figure.legend(
        known.values(), known.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize="small"
    )
    return save(figure, root)


def _panel(axes: Any, arms: Sequence[Row], cost: str, looks: Mapping[str, str]) -> None:
    """Draws an arm as a point with its spread over seeds, and the Pareto front as a staircase."""
    from matplotlib.ticker import LogLocator, NullFormatter

    points = [(row[cost], row["last"]) for row in arms]
    front = [points[index] for index in pareto(points)]
    axes.step(*zip(*front, strict=True), where="post", color="0.6", linestyle="--", label="Pareto front")
    for row in arms:
        name, spread = row["strategy"], row["last_deviation"] or 0.0
        axes.errorbar(row[cost], row["last"], spread, fmt=looks[name], label=name, capsize=3)
    _limit(axes, arms)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def _limit(axes: Any, arms: Sequence[Row]) -> None:
    """Keeps one arm that failed to learn from flattening all others: it is named instead."""
    top = max(row["last"] for row in arms)
    low = [row for row in arms if row["last"] < top - _FARTHEST]
    if low:
        axes.set_ylim(top - _FARTHEST, top + 1)
        said = ", ".join(f"{row['strategy']} {row['last']:.1f}" for row in low)
        axes.text(0.02, 0.03, f"below: {said}", transform=axes.transAxes, fontsize="small")
