"""Figures of the global model: accuracy over rounds and over bytes, its size, and how far clients move it."""

from typing import Any

from matplotlib.ticker import StrMethodFormatter

from fedhp.drawing.axes import Climb, byte_unit, dots, over_rounds
from fedhp.drawing.plot import Plot
from fedhp.drawing.style import LIGHT, looks
from fedhp.records.result import RunResult
from fedhp.records.wording import percent
from fedhp.report import series
from fedhp.sizes import format_size

_FAR_ABOVE = 10  # times the median: on a linear axis, that would be a line at the bottom


def accuracy(run: RunResult) -> Plot:
    """Accuracy on the held-out samples over rounds."""
    rounds: series.Frame = run.rounds
    best = rounds.loc[rounds["accuracy"].idxmax()]
    first, last = rounds.iloc[0], rounds.iloc[-1]
    levels = series.levels(rounds)
    climb = Climb([100 * rounds["accuracy"], *levels.values()])
    ends = ", ".join(f"{name}: {shares.iloc[-1]:.1f}%" for name, shares in levels.items())
    narrower = f" Thin lines are the narrower networks that it stands for, by width ({ends})." if ends else ""

    def draw(figure: Any) -> None:
        axes, lines = figure.subplots(), looks(["the whole", *levels])
        for name, shares in levels.items():
            axes.plot(rounds["round"], shares, linewidth=1, label=name, **lines[name])
        axes.plot(rounds["round"], 100 * rounds["accuracy"], color=LIGHT["series1"], **dots(rounds))
        axes.plot(best["round"], 100 * best["accuracy"], "o", color=LIGHT["series2"], label="best")
        axes.legend(loc="lower right")
        over_rounds(axes, "accuracy, %")
        climb.cut(axes)

    return Plot(
        "accuracy",
        "Accuracy over rounds",
        "The global model's accuracy on the held-out samples after each round, in percent; round 0 is the "
        f"model before training. The best, {percent(best['accuracy'])}, came in round {best['round']:.0f}."
        f"{narrower}{climb.said}",
        f"A line from {percent(first['accuracy'])} in round {first['round']:.0f} to "
        f"{percent(last['accuracy'])} in round {last['round']:.0f}.",
        draw,
    )


def traffic(run: RunResult) -> Plot:
    """Accuracy over all bytes that were sent."""
    rounds, moved = run.rounds, series.traffic(run.rounds)
    name, title = "traffic", "Accuracy over bytes moved"
    if not moved[-1]:
        alone = "Nothing was sent: the device trained alone, and its rounds are epochs."
        return Plot(name, title, alone if len(run.clients) else "Nothing has been sent yet.")
    climb = Climb([100 * rounds["accuracy"]])

    def draw(figure: Any) -> None:
        axes, (unit, scale) = figure.subplots(), byte_unit(moved[-1])
        sent = [so_far / scale for so_far in moved]
        axes.plot(sent, 100 * rounds["accuracy"], color=LIGHT["series1"], **dots(rounds))
        axes.set_xlabel(f"sent since the start, down and up, {unit}")
        axes.set_ylabel("accuracy, %")
        climb.cut(axes)

    total = format_size(moved[-1])
    return Plot(
        name,
        title,
        "The global model's accuracy on the held-out samples, in percent, over the payload bytes of all "
        f"messages to and from the clients so far; {total} in all.{climb.said}",
        f"A line that ends at {percent(rounds['accuracy'].iloc[-1])} after {total}.",
        draw,
    )


def size(run: RunResult) -> Plot:
    """Parameters left over rounds."""
    rounds: series.Frame = run.rounds
    last, target = rounds.iloc[-1], run.config.prune.target_compression
    full = last["params"] * last["compression"]

    def draw(figure: Any) -> None:
        axes, colour = figure.subplots(), LIGHT["series1"]
        axes.plot(rounds["round"], rounds["params"], color=colour, drawstyle="steps-post", **dots(rounds))
        axes.fill_between(rounds["round"], rounds["params"], step="post", color=colour, alpha=0.15)
        axes.axhline(full, color=LIGHT["faint"], linestyle=":", label="full model")
        if target > 1:
            axes.axhline(full / target, color=LIGHT["limit"], linestyle="--", label=f"target, {target:.4g}x")
        axes.set_ylim(0, 1.05 * full)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.legend(loc="best")
        over_rounds(axes, "parameters left")

    return Plot(
        "size",
        "Compression over rounds",
        "Parameters of the global model after each round, with those of the full model and of the scenario's "
        f"target: {last['params']:,.0f} are left of {full:,.0f}, {last['compression']:.2f}x fewer.",
        f"Steps from {rounds['params'].iloc[0]:,} down to {last['params']:,.0f} parameters.",
        draw,
    )


def norms(run: RunResult) -> Plot:
    """How far the clients' updates lie from the models that they were sent."""
    name, title = "norms", "Size of the updates"
    known: series.Frame = run.clients.dropna(subset=["update_norm"])
    if known.empty:
        return Plot(name, title, "The record holds no norms of updates.")
    spread = known.groupby("round")["update_norm"].quantile([0.1, 0.5, 0.9, 1.0]).unstack()
    largest = known.loc[known["update_norm"].idxmax()]

    def draw(figure: Any) -> None:
        axes, colour = figure.subplots(), LIGHT["series1"]
        band = {"color": colour, "alpha": 0.25, "linewidth": 0, "label": "10% to 90%"}
        axes.fill_between(spread.index, spread[0.1], spread[0.9], **band)
        axes.plot(spread.index, spread[0.5], color=colour, label="median", **dots(spread))
        axes.plot(spread.index, spread[1.0], color=LIGHT["series2"], linewidth=1, label="largest")
        if spread[1.0].max() > _FAR_ABOVE * spread[0.5].max() and spread[0.1].min() > 0:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.legend(loc="best")
        over_rounds(axes, "norm of the update")

    return Plot(
        name,
        title,
        "The Euclidean norm of what a client changed of the weights that it sent back, over a round's "
        f"clients. The largest, {largest['update_norm']:.3g}, was that of client "
        f"{largest['client']:.0f} in round {largest['round']:.0f}.",
        f"Medians from {spread[0.5].iloc[0]:.3g} in round {spread.index[0]} to {spread[0.5].iloc[-1]:.3g} in "
        f"round {spread.index[-1]}.",
        draw,
    )
