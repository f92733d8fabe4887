"""Figures of what lives and of who holds what: the units over rounds, the partition of the samples."""

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from fedhp.report import series
from fedhp.report.axes import panel_lines, panels, short
from fedhp.report.plot import Plot
from fedhp.report.style import LIGHT
from fedhp.report.survival import Survival, survival

if TYPE_CHECKING:
    from fedhp.tracking import RunResult

_MOST_GROUPS = 12
_MOST_BARS = 40  # that can stand apart from each other
_BLANK = "#00000000"
# On white as on near black: from cut by all, over contested, to kept by all; grey where nobody judged.
_VOTES = LinearSegmentedColormap.from_list(
    "votes", [(0.0, "#c8500a"), (0.5, "#f2a531"), (0.85, "#f7e3a0"), (1.0, "#3d8ec4")]
)
_VOTES = _VOTES.with_extremes(over="#8a929c", bad=_BLANK)
_KEPT = ListedColormap(["#3d8ec4"]).with_extremes(bad=_BLANK)
_SAMPLES = LinearSegmentedColormap.from_list("samples", ["#3d8ec400", "#3d8ec4ff", "#9b2f86ff"])
_UNJUDGED = 2.0  # above every share
_VOTED = (
    "The colour is the share, by samples, of the clients assigned the unit in the round that kept it; grey "
    "where none was assigned it."
)


def survivors(run: "RunResult") -> Plot:
    """Units over rounds, coloured by the vote."""
    name, title, groups = "survivors", "Which units survived", survival(run)
    cut = [one for one in groups if one.was_cut]
    if not cut:
        return Plot(name, title, "No unit has been cut: every one that the run started with is there.")
    shown, judged = cut[:_MOST_GROUPS], any(one.was_judged for one in cut)

    def draw(figure: Any) -> None:
        titles = [f"{short(one.group)}: {len(one.units)} to {one.survivors}" for one in shown]
        drawn = panels(figure, titles, "units, the longest-lived on top")
        rounds = run.rounds["round"].tolist()
        images = [_history(axes, one, rounds, judged) for axes, one in zip(drawn, shown, strict=True)]
        if judged:
            _vote_bar(figure, images[0], drawn)

    fates = [f"{one.group}: {one.survivors} of {len(one.units)} units survived" for one in shown]
    left_out = len(cut) - len(shown)
    whole = [one.group for one in groups if not one.was_cut]
    return Plot(
        name,
        title,
        "A line per unit that the run started with, for as long as the unit was in the model. "
        + (_VOTED if judged else "The record holds no votes.")
        + (f" Groups that lost no unit: {', '.join(whole)}." if whole else "")
        + (f" Groups that are not shown: {left_out} more." if left_out else ""),
        "; ".join(fates) + ".",
        draw,
        1.2 + 1.6 * panel_lines(shown),
    )


def _history(axes: Any, one: Survival, rounds: list[int], judged: bool) -> Any:
    votes = np.nan_to_num(one.votes, nan=_UNJUDGED) if judged else np.zeros(one.alive.shape)
    place = (rounds[1] - 0.5, rounds[-1] + 0.5, len(one.units), 0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    return _image(axes, np.where(one.alive, votes, np.nan), _VOTES if judged else _KEPT, place, 1.0)


def _vote_bar(figure: Any, image: Any, beside: list[Any]) -> None:
    bar = figure.colorbar(image, ax=beside, location="top", fraction=0.06, aspect=45, pad=0.02)
    bar.set_label("share of its assignees that kept the unit", fontsize=9)
    bar.ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    bar.outline.set_visible(False)


def partition(run: "RunResult") -> Plot:
    """Samples per client and label."""
    name, title, table = "partition", "Who holds which labels", run.partition
    if table is None:
        return Plot(
            name,
            title,
            "The record does not say who holds which labels: devices with data of their own keep that to "
            "themselves, a device that trains alone holds all, and earlier versions did not record it.",
        )
    counts: series.Frame = table.pivot_table(index="label", columns="client", values="count", fill_value=0)
    sizes, kinds = counts.sum(), (counts > 0).sum()

    def draw(figure: Any) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2.6])
        width = 0.8 if len(sizes) <= _MOST_BARS else 1.0
        top.bar(range(len(sizes)), sizes, width=width, color=LIGHT["series1"])
        top.set_ylabel("samples")
        top.grid(visible=False, axis="x")
        image = _labels(bottom, counts)
        bar = figure.colorbar(image, ax=[top, bottom], fraction=0.05, aspect=30)
        bar.set_label("samples of the label", fontsize=9)
        bar.outline.set_visible(False)

    return Plot(
        name,
        title,
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
    return _image(axes, counts.to_numpy(float), _SAMPLES, place, counts.to_numpy().max())


def _named(clients: list[int], place: float) -> str:
    return str(clients[int(place)]) if 0 <= place < len(clients) else ""


def _image(axes: Any, values: Any, colours: Colormap, place: tuple[float, ...], most: float) -> Any:
    """Draws a matrix whose cells stay sharp however large they are shown."""
    axes.grid(visible=False)
    look = {"cmap": colours, "vmin": 0, "vmax": most, "aspect": "auto", "interpolation": "none"}
    return axes.imshow(values, extent=place, **look)
