"""What figures have in common: axes of rounds, units of bytes, a panel per device class."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fedhp.drawing.style import LIGHT

Look = dict[str, Any]

_FEW = 12
_FARTHEST = 30.0  # points below the best that are shown
_FEWEST = 10.0
_MOST_SIDE_BY_SIDE = 4
_LONGEST_NAME = 16
_LONGEST_BESIDE = 24
_UNITS = ("B", "KiB", "MiB", "GiB")


def over_rounds(axes: Any, ylabel: str) -> None:
    """Labels axes whose x is the round."""
    axes.set_xlabel("round")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def logarithmic(axis: Any, said: Callable[[float], str]) -> None:
    """Makes an axis one of logarithms, which names 1, 2, 5, 10 and so on."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: said(value)))
    axis.set_minor_formatter(NullFormatter())


class Climb:
    """Where an axis of percent begins and ends, so that differences at the end can be seen.

    The first climb from guessing is cut off, unless there are few rounds: no more than 30 points below the
    best are shown, and no more than from the second third of the rounds on.

    Attributes:
        said: What a caption has to say of it, with a blank before; empty where nothing is cut off.

    Args:
        lines: What is drawn, in percent by round.
        tops: The upper edges of what is drawn, where bands reach above the lines.
        points: How many are shown at least: none where lines are to be told apart; of one alone,
            enough that its noise does not look large.
    """

    def __init__(self, lines: Sequence[Any], tops: Sequence[Any] = (), points: float = _FEWEST) -> None:
        self._limits: tuple[float, float] | None = None
        self.said = ""
        late = min(line.iloc[len(line) // 3 :].min() for line in lines)
        top = max(line.max() for line in (*lines, *tops))
        low = max(min(late, top - points), top - _FARTHEST, 0.0)
        if not low < top or max(map(len, lines)) <= _FEW:  # written so that NaN leaves the axis to itself
            return
        self._limits = low - 0.02 * (top - low), top + 0.04 * (top - low)
        if min(line.min() for line in lines) < self._limits[0]:
            self.said = " What is far below the end is cut off."

    def cut(self, axes: Any) -> None:
        """Sets the limits of axes that everything is drawn on."""
        if self._limits is not None:
            axes.set_ylim(self._limits)


def dots(points: Any) -> Look:
    """Marks the points of a line where there are so few that it might not show them."""
    return {"marker": "o", "markersize": 3.5} if len(points) <= _FEW else {}


def byte_unit(num_bytes: float) -> tuple[str, int]:
    """Returns the unit in which a size is best written, and its bytes."""
    power = max(0, min(len(_UNITS) - 1, (int(num_bytes).bit_length() - 1) // 10))
    return _UNITS[power], 1024**power


def panels(figure: Any, titles: Sequence[str], ylabel: str = "", sharey: bool = False) -> list[Any]:
    """Returns axes over rounds for each title; two stand side by side, which a phone can still show."""
    columns = min(2, len(titles))
    grid = figure.subplots(panel_lines(titles), columns, sharex=True, sharey=sharey, squeeze=False)
    for axes in grid.flat[len(titles) :]:
        axes.set_axis_off()
        grid[-2, -1].tick_params(labelbottom=True)  # below it is nothing that would bear its labels
    used = list(grid.flat[: len(titles)])
    for axes, title in zip(used, titles, strict=True):
        axes.set_title(title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    figure.supxlabel("round", fontsize=10)
    if ylabel:
        figure.supylabel(ylabel, fontsize=10)
    return used


def panel_lines(titles: Sequence[Any]) -> int:
    """Returns how many panels stand one below the other."""
    return math.ceil(len(titles) / 2)


def short(name: str, longest: int = _LONGEST_NAME) -> str:
    """Returns a name that fits above a panel: its beginning and its end."""
    return name if len(name) <= longest else f"{name[: longest // 2]}…{name[-longest // 2 :]}"


def legend_above(figure: Any, looks: Mapping[str, Look]) -> None:
    """Puts one legend above all axes, where it hides no line."""
    handles = [Line2D([], [], label=label, **look) for label, look in looks.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(_MOST_SIDE_BY_SIDE, len(handles)))


def intervals(axes: Any, spreads: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    """Draws shares in percent, a line per name: the range, the quantiles 10% to 90% and the median."""
    for place, (kind, values) in enumerate(spreads.items()):
        colour = colours.get(kind, LIGHT["ink"])
        least, low, middle, high, most = (100 * values.quantile([0, 0.1, 0.5, 0.9, 1])).tolist()
        axes.plot([least, most], [place, place], color=colour, linewidth=1.2)
        axes.plot([low, high], [place, place], color=colour, linewidth=6, alpha=0.5, solid_capstyle="butt")
        axes.plot(middle, place, "o", color=colour, markersize=6)
    lines_of(axes, list(spreads))


def lines_of(axes: Any, names: Sequence[str]) -> None:
    """Gives each name a line of its own, the first on top."""
    axes.set_yticks(range(len(names)), [short(name, _LONGEST_BESIDE) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def image(axes: Any, values: Any, colours: Any, place: tuple[float, ...], most: float) -> Any:
    """Draws a matrix whose cells stay sharp however large they are shown."""
    axes.grid(visible=False)
    look = {"cmap": colours, "vmin": 0, "vmax": most, "aspect": "auto", "interpolation": "none"}
    return axes.imshow(values, extent=place, **look)
