"""The figure of sparse training: how far the weights of each layer have moved."""

import json
from typing import Any

import numpy as np
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from fedhp.drawing.axes import legend_above, over_rounds, short
from fedhp.drawing.plot import Plot
from fedhp.drawing.style import looks
from fedhp.errors import RecordError
from fedhp.records.result import RunResult

_MOST_LAYERS = 8


def first_weights(run: RunResult) -> Plot:
    """The weights that a run began with, over rounds: which share of each layer's is there still."""
    shares, kept = _shares(run)
    shown = list(shares)[:_MOST_LAYERS]
    more = f" Layers that are not shown: {len(shares) - len(shown)} more." if len(shown) < len(shares) else ""

    def draw(figure: Any) -> None:
        axes, lines = figure.subplots(), looks(shown)
        for layer in shown:
            axes.plot(run.rounds["round"], shares[layer], **lines[layer])
        over_rounds(axes, "weights of the start")
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        legend_above(figure, {short(layer): lines[layer] for layer in shown})

    fates = [f"{layer}: {kept[layer]:,} weights, {shares[layer][-1]:.0%} of the first" for layer in shares]
    return Plot(
        "survivors",
        "How far weights have moved",
        "Of the weights that a layer had at the start, the share that it has. It keeps as many all along."
        + more,
        "; ".join(fates) + ".",
        draw,
    )


def _shares(run: RunResult) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Returns per layer the share of its first weights in each round, and how many it has."""
    try:
        first = _masks(run.rounds["structure"].iloc[0])
        kept = {layer: int(mask.sum()) for layer, mask in first.items()}
        shares: dict[str, list[float]] = {layer: [] for layer in first}
        for text in run.rounds["structure"]:
            for layer, mask in _masks(text).items():
                shares[layer].append(float((mask & first[layer]).sum() / max(1, kept[layer])))
        return shares, kept
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        path = run.folder / "rounds.parquet"
        raise RecordError(f"{path}: structures that cannot be read: {error}") from None


def _masks(text: str) -> dict[str, NDArray[np.bool_]]:
    packed = {group: np.frombuffer(bytes.fromhex(bits), np.uint8) for group, bits in json.loads(text).items()}
    return {group: np.unpackbits(bits).astype(np.bool_) for group, bits in packed.items()}
