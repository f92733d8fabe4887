"""The figure of who holds what: the samples of each client, or, of very many, of each device class."""

from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter, MaxNLocator, StrMethodFormatter

from fedhp.drawing.axes import image, lines_of
from fedhp.drawing.plot import Plot
from fedhp.drawing.style import LIGHT
from fedhp.records.result import RunResult
from fedhp.report import series

_NAME, _TITLE = "partition", "Who holds which labels"
_MOST_CLIENTS = 1000  # that are drawn one by one: no screen is much wider, and each is a shape in the file
_MOST_CLASSES = 12
_MOST_BARS = 40  # that can stand apart from each other
_MOST_BINS = 40
_SAMPLES = LinearSegmentedColormap.from_list("samples", ["#3d8ec400", "#3d8ec4ff", "#9b2f86ff"])


def partition(run: RunResult) -> Plot:
    """Samples per client and label; of more than 1,000 clients, per device class and label."""
    table = run.partition
    if table is None or table.empty:
        return Plot(
            _NAME,
            _TITLE,
            "The record does not say who holds which labels: devices with data of their own keep that to "
            "themselves, a device that trains alone holds all, and earlier versions did not record it.",
        )
    counts: series.Frame = table.pivot_table(index="label", columns="client", values="count", fill_value=0)
    return _one_by_one(run, counts) if counts.shape[1] <= _MOST_CLIENTS else _by_class(run, counts)


def _one_by_one(run: RunResult, counts: series.Frame) -> Plot:
    sizes, kinds = counts.sum(), (counts > 0).sum()

    def draw(figure: Any) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2.6])
        width = 0.8 if len(sizes) <= _MOST_BARS else 1.0
        top.bar(range(len(sizes)), sizes, width=width, color=LIGHT["series1"])
        top.set_ylabel("samples")
        top.grid(visible=False, axis="x")
        _colours(figure, _labels(bottom, counts), [top, bottom], "samples of the label")

    return Plot(
        _NAME,
        _TITLE,
        f"Samples of each client, {sizes.min():,.0f} to {sizes.max():,.0f}, and how many of them "
        f"have which label, by the partition '{run.config.data.partition.name}'.",
        f"{len(sizes)} clients, of {kinds.min()} to {kinds.max()} of {len(counts)} labels each.",
        draw,
        3.6,
    )


def _labels(axes: Any, counts: series.Frame) -> Any:
    clients = counts.columns.tolist()
    axes.set_xlabel("client")
    axes.set_ylabel("label")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: _named(clients, place)))
    place = (-0.5, len(clients) - 0.5, len(counts) - 0.5, -0.5)
    return image(axes, counts.to_numpy(float), _SAMPLES, place, counts.to_numpy().max())


def _named(clients: list[int], place: float) -> str:
    return str(clients[int(place)]) if 0 <= place < len(clients) else ""


def _by_class(run: RunResult, counts: series.Frame) -> Plot:
    sizes, kinds = counts.sum().to_numpy(), (counts > 0).sum()
    means = counts.T.groupby(series.classes_of(run, counts.columns), sort=False).mean()
    shown = means.head(_MOST_CLASSES)

    def draw(figure: Any) -> None:
        top, bottom = figure.subplots(2, 1, height_ratios=[1.3, 0.7 + 0.3 * len(shown)])
        _histogram(top, sizes)
        lines_of(bottom, [str(name) for name in shown.index])
        bottom.set_xlabel("label")
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
        place = (-0.5, shown.shape[1] - 0.5, len(shown) - 0.5, -0.5)
        found = image(bottom, shown.to_numpy(float), _SAMPLES, place, shown.to_numpy().max())
        _colours(figure, found, [bottom], "samples a client")

    left_out = len(means) - len(shown)
    return Plot(
        _NAME,
        _TITLE,
        f"{len(sizes):,} clients by the partition '{run.config.data.partition.name}': above, how many "
        f"hold how many samples, {sizes.min():,.0f} to {sizes.max():,.0f}; below, how many of each label a "
        f"client of a device class holds in the mean. A client has samples of {kinds.min()} to {kinds.max()} "
        f"of {len(counts)} labels, half of the clients of {kinds.median():.0f} or fewer."
        + (f" Classes beyond the first {_MOST_CLASSES}: {left_out}." if left_out > 0 else ""),
        f"{len(sizes):,} clients, half of them with {np.median(sizes):,.0f} samples or fewer.",
        draw,
        3.0 + 0.3 * len(shown),
    )


def _histogram(axes: Any, sizes: Any) -> None:
    low, high = int(sizes.min()), int(sizes.max())
    step = -(-(high - low + 1) // _MOST_BINS)  # whole samples, so that no bin is empty for its bounds alone
    edges = np.arange(low, high + step + 1, step) - 0.5
    axes.stairs(np.histogram(sizes, edges)[0], edges, fill=True, color=LIGHT["series1"])
    axes.set_xlabel("samples of a client")
    axes.set_ylabel("clients")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _colours(figure: Any, found: Any, beside: list[Any], label: str) -> None:
    bar = figure.colorbar(found, ax=beside, fraction=0.05, aspect=30)
    bar.set_label(label, fontsize=9)
    bar.outline.set_visible(False)
