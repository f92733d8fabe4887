"""How figures look: two colour schemes by role, and matplotlib's settings.

A figure is drawn once, in the light scheme; its dark twin is the same drawing with the colours exchanged. So
a scheme's colours all differ, and colour maps, which are pixels and stay as they are, must suit both papers.
"""

import re
from collections.abc import Sequence
from itertools import cycle, product
from typing import Any

LIGHT = {
    "paper": "#ffffff",
    "ink": "#1d2430",
    "faint": "#5c6674",
    "grid": "#e3e7ec",
    "limit": "#b3003c",
    # Okabe and Ito's palette, which the colour-blind can tell apart; of equal weight on the paper.
    "series1": "#0072b2",
    "series2": "#d55e00",
    "series3": "#009e73",
    "series4": "#b4588f",
    "series5": "#9a7400",
    "series6": "#3f8fc9",
}
DARK = {
    "paper": "#171b21",
    "ink": "#e8ebf0",
    "faint": "#a3adba",
    "grid": "#2e353f",
    "limit": "#ff6b8b",
    "series1": "#56aee8",
    "series2": "#ff8f4a",
    "series3": "#2fcf9f",
    "series4": "#e59bc6",
    "series5": "#e8bf3c",
    "series6": "#a5d3f5",
}

_SERIES = [colour for role, colour in LIGHT.items() if role.startswith("series")]
_LINES = ("-", "--", ":", "-.")
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "d")  # told apart in print without colours

SETTINGS: Any = {
    "figure.facecolor": LIGHT["paper"],
    "axes.facecolor": LIGHT["paper"],
    "axes.edgecolor": LIGHT["faint"],
    "axes.labelcolor": LIGHT["ink"],
    "axes.titlecolor": LIGHT["ink"],
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT["grid"],
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["faint"],
    "ytick.color": LIGHT["faint"],
    "xtick.labelcolor": LIGHT["ink"],
    "ytick.labelcolor": LIGHT["ink"],
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "font.size": 10,
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "text.parse_math": False,  # a name is a name, whatever signs it has
    "svg.fonttype": "path",
    "svg.hashsalt": "fedhp",  # the same figure is the same file
}


def looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns a line's colour and style for each name; a colour returns with another style."""
    pairs = cycle(product(_LINES, _SERIES))
    return {
        name: {"color": colour, "linestyle": line} for name, (line, colour) in zip(names, pairs, strict=False)
    }


def marked_looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns a colour, a line style and a mark for each name."""
    marks = {name: {"marker": mark} for name, mark in zip(names, cycle(_MARKS), strict=False)}
    return {name: {**look, **marks[name]} for name, look in looks(names).items()}


def darkened(svg: str) -> str:
    """Returns a figure that was drawn in the light scheme in the dark one."""
    dark = {colour: DARK[role] for role, colour in LIGHT.items()}
    return re.sub("|".join(map(re.escape, dark)), lambda found: dark[found[0]], svg)
