"""The figures of a comparison's report, in the order of the page."""

from collections.abc import Iterator

from fedhp.comparison import class_figures, learning, tradeoffs
from fedhp.comparison.result import Result
from fedhp.drawing.plot import Plot

_FIGURES = (
    tradeoffs.memory,
    tradeoffs.traffic,
    learning.accuracy,
    learning.traffic,
    learning.size,
    class_figures.accuracy,
    class_figures.fairness,
    class_figures.memory,
)


def plots(result: Result) -> Iterator[Plot]:
    """Yields every figure; one that cannot be drawn says why."""
    for figure in _FIGURES:
        yield figure(result)
