"""What a comparison's figures have in common: a panel per facet, a look per arm."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedhp.comparison.facets import Facet
from fedhp.comparison.result import Result
from fedhp.drawing import labels
from fedhp.drawing.axes import Look, byte_unit, legend_above
from fedhp.drawing.style import LIGHT, marked_looks

CEILING = "dense"  # trains the whole model on every device, whatever its budget
_MOST = 6  # facets that a page has room for
_NAME_HEIGHT = 0.145  # inches that a name takes


def facets(result: Result) -> list[Facet]:
    """Returns the facets that are drawn: the first of those in which anything has come out."""
    return [facet for facet in result.facets if facet.done][:_MOST]


def rest(result: Result) -> str:
    """Says how many facets are not drawn."""
    left_out = len([facet for facet in result.facets if facet.done]) - _MOST
    return f" Values beyond the first {_MOST}, only in the tables: {left_out}." if left_out > 0 else ""


def has_ceiling(shown: Sequence[Facet]) -> bool:
    """Says whether the ceiling is among what is drawn."""
    return any(CEILING in facet.done for facet in shown)


def looks(result: Result) -> dict[str, Look]:
    """Returns each arm's colour, line and mark, the same in all figures; the ceiling's is the ink's."""
    labels = dict.fromkeys(label for facet in result.facets for label in facet.arms)
    found = marked_looks([label for label in labels if label != CEILING])
    return found | {CEILING: {"color": LIGHT["ink"], "linestyle": "-.", "marker": "*"}}


def colours(result: Result) -> dict[str, str]:
    """Returns each arm's colour."""
    return {label: look["color"] for label, look in looks(result).items()}


def panels(figure: Any, shown: Sequence[Facet], sharex: bool = True) -> list[Any]:
    """Returns axes for each facet, one below the other: names need the width."""
    grid = figure.subplots(len(shown), 1, squeeze=False, sharex=sharex)[:, 0]
    for axes, facet in zip(grid, shown, strict=True):
        axes.set_title(facet.title)
    return list(grid)


def height(shown: Sequence[Facet], least: float = 2.6) -> float:
    """Returns the inches of a figure whose arms' names stand one below the other in each panel."""
    most = max(len(facet.done) for facet in shown)
    return 0.5 + len(shown) * max(least, 0.5 + _NAME_HEIGHT * most)


def bytes_scale(mebibytes: Sequence[float]) -> tuple[str, float]:
    """Returns the unit in which the largest of some sizes is best written, and a MiB in it."""
    unit, scale = byte_unit(max(mebibytes) * 2**20)
    return unit, 2**20 / scale


def name_arms(
    figure: Any,
    points: Mapping[Any, labels.Points],
    looks: Mapping[str, Look],
    lines: Mapping[str, Look] | None = None,
) -> None:
    """Names the arms at their points, or all in the legend where these are too close together.

    Args:
        figure: The figure, with everything else drawn.
        points: Per axes, where each arm is, in data coordinates.
        looks: How each looks in the legend.
        lines: What else the legend has.
    """
    lines = lines or {}
    if lines:
        legend_above(figure, lines)
    seen = {
        axes: {label: at for label, at in own.items() if axes.get_ylim()[0] <= at[1] <= axes.get_ylim()[1]}
        for axes, own in points.items()
    }
    if labels.around(figure, seen, {label: look["color"] for label, look in looks.items()}):
        return
    for legend in figure.legends:
        legend.remove()
    named = {label: look for label, look in looks.items() if any(label in own for own in points.values())}
    legend_above(figure, {**lines, **named})
