"""A study's picture: accuracy over compression, with the spread over seeds, a panel per scenario."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from fedhp.errors import require
from fedhp.studies.writing import scenarios
from fedhp.sweep.texts import Row

_MARKERS = ("o", "s", "^")
_COLOURS = [f"C{number}" for number in range(7)]  # of the usual ten, without the grey of the dense band


def draw(root: Path, arms: Sequence[Row], names: Mapping[str, str]) -> list[Path]:
    """Draws the table's rows into ``figure.png`` and ``figure.svg``, and returns the files.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    panels = scenarios(arms)
    figure = new_figure(4.4 * len(panels), 3.8)
    for axes, scenario in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _panel(axes, [row for row in arms if row["scenario"] == scenario and row["seeds"]], names)
        axes.set_title(scenario)
    figure.axes[0].set_ylabel("accuracy, %")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return save(figure, root)


def new_figure(width: float, height: float) -> Any:
    """Returns an empty figure of a size in inches.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    with require("drawing a figure", "plots", "matplotlib"):
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, root: Path) -> list[Path]:
    """Writes ``figure.png`` and ``figure.svg``, and returns the files."""
    files = [root / "figure.png", root / "figure.svg"]
    for file in files:
        figure.savefig(file, dpi=150)
    return files


def _panel(axes: Any, rows: Sequence[Row], names: Mapping[str, str]) -> None:
    """Draws a line per arm through its targets; what has no target, the dense network, is a band."""
    looks = product(_MARKERS, _COLOURS)  # a colour returns with another marker
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        name = names.get(arm, arm)
        if [row["target"] for row in own] == [1]:
            _band(axes, own[0], name)
            continue
        marker, colour = next(looks)
        axes.errorbar(
            [row["compression"] for row in own],
            [row["last"] for row in own],
            yerr=[row["last_deviation"] or 0.0 for row in own],
            label=name,
            color=colour,
            marker=marker,
            markersize=4,
            capsize=3,
        )
    axes.set_xscale("log")
    ticks = sorted({row["target"] for row in rows} - {1.0})
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("compression")
    axes.grid(alpha=0.3)


def _band(axes: Any, row: Row, name: str) -> None:
    spread = row["last_deviation"] or 0.0
    axes.axhline(row["last"], color="grey", linestyle="--", label=name)
    axes.axhspan(row["last"] - spread, row["last"] + spread, color="grey", alpha=0.2)
