"""A figure of a report, and how it becomes files."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from fedhp.drawing.style import SETTINGS, darkened

_WIDTH = 4.6  # inches: on a phone, where a picture shrinks to three quarters, its letters can still be read
_PNG_DPI = 160


@dataclass(frozen=True)
class Plot:
    """A figure.

    Attributes:
        name: What its files are called.
        title: What stands above it.
        caption: What is to be seen, and in which units; where nothing is drawn, why.
        alt: What it shows, for those who cannot see it.
        draw: Draws it; None where the record holds nothing to draw.
        height: In inches.
    """

    name: str
    title: str
    caption: str
    alt: str = ""
    draw: Callable[[Any], None] | None = None
    height: float = 3.3


@dataclass(frozen=True)
class Picture:
    """A drawn figure: as SVG in the light and the dark scheme, and as PNG in the light one."""

    light: str
    dark: str
    png: bytes


def render(plot: Plot) -> Picture | None:
    """Draws a figure; None where there is nothing to draw."""
    if plot.draw is None:
        return None
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(_WIDTH, plot.height), layout="constrained")
        plot.draw(figure)
        vector, pixels = io.StringIO(), io.BytesIO()
        # By the canvases themselves: `savefig` would draw everything twice. Without a date, so that the same
        # record gives the same files.
        FigureCanvasSVG(figure).print_svg(vector, metadata={"Title": plot.title, "Date": None})
        figure.set_layout_engine("none")  # all is in its place now, and finding it takes long
        figure.set_dpi(_PNG_DPI)
        FigureCanvasAgg(figure).print_png(pixels, metadata={"Title": plot.title})
    svg = vector.getvalue()
    return Picture(svg, darkened(svg), pixels.getvalue())
