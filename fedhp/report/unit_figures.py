"""The figure of what lives: the units over rounds."""

from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fedhp.drawing.axes import image, panel_lines, panels, short
from fedhp.drawing.plot import Plot
from fedhp.records.result import RunResult
from fedhp.report.sparse_figures import first_weights
from fedhp.report.survival import Survival, survival

_MOST_GROUPS = 12
_BLANK = "#00000000"
# On white as on near black: from cut by all, over contested, to kept by all; grey where nobody judged.
_VOTES = LinearSegmentedColormap.from_list(
    "votes", [(0.0, "#c8500a"), (0.5, "#f2a531"), (0.85, "#f7e3a0"), (1.0, "#3d8ec4")]
)
_VOTES = _VOTES.with_extremes(over="#8a929c", bad=_BLANK)
_KEPT = ListedColormap(["#3d8ec4"]).with_extremes(bad=_BLANK)
_UNJUDGED = 2.0  # above every share
_VOTED = (
    "The colour is the share, by samples, of the clients assigned the unit in the round that kept it; grey "
    "where none was assigned it."
)


def survivors(run: RunResult) -> Plot:
    """Units over rounds, coloured by the vote; of sparse training, what has become of the first weights."""
    if run.config.leaves_out_weights and run.config.prune.target_compression > 1:
        return first_weights(run)
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
    return image(axes, np.where(one.alive, votes, np.nan), _VOTES if judged else _KEPT, place, 1.0)


def _vote_bar(figure: Any, image: Any, beside: list[Any]) -> None:
    bar = figure.colorbar(image, ax=beside, location="top", fraction=0.06, aspect=45, pad=0.02)
    bar.set_label("share of its assignees that kept the unit", fontsize=9)
    bar.ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    bar.outline.set_visible(False)
