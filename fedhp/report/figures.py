"""The figures of a run's report, in the order of the page."""

from collections.abc import Iterator

from fedhp.drawing.plot import Plot
from fedhp.records.result import RunResult
from fedhp.report import class_figures, learning_figures, partition_figures, unit_figures

_FIGURES = (
    learning_figures.accuracy,
    learning_figures.traffic,
    learning_figures.size,
    learning_figures.norms,
    class_figures.memory,
    class_figures.batches,
    class_figures.accuracy,
    class_figures.fairness,
    partition_figures.partition,
    unit_figures.survivors,
)


def plots(run: RunResult) -> Iterator[Plot]:
    """Yields every figure; one that cannot be drawn says why.

    Raises:
        RecordError: If the record is damaged.
    """
    for figure in _FIGURES:
        yield figure(run)
