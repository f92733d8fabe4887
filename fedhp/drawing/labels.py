"""Names beside what they name, where they do not collide: a reader need not look up and down for them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from fedhp.drawing.style import LIGHT

_SIZE = 8
_AWAY = (6, 14, 24, 36, 50)  # points from a mark to its name, the nearest first
_MARK = 4  # half of a mark's width
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.7), (-0.8, 0.7), (0.8, -0.7), (-0.8, -0.7))
_LEADER = {"arrowstyle": "-", "color": LIGHT["faint"], "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}

Points = Mapping[str, tuple[float, float]]


def at_the_end(figure: Any, axes: Any, ends: Points, colours: Mapping[str, str]) -> None:
    """Writes each line's name right of the axes, as near to the height where it ends as there is room.

    Args:
        figure: The figure, with everything else drawn.
        axes: Whose right edge the lines reach.
        ends: The last point of each line, in data coordinates.
        colours: The colour of each.
    """
    names = sorted(ends, key=lambda name: ends[name][1])
    texts = {
        name: axes.text(1.05, 0.5, name, transform=axes.transAxes, size=_SIZE, va="center") for name in names
    }
    figure.draw_without_rendering()  # how high the axes are, is known only now
    box = axes.get_window_extent()
    to_axes = axes.transAxes.inverted()
    wanted = [float(to_axes.transform(axes.transData.transform(ends[name]))[1]) for name in names]
    gap = max(text.get_window_extent().height for text in texts.values()) / box.height
    for name, end, place in zip(names, wanted, apart(wanted, gap), strict=True):
        texts[name].set(y=place, color=colours[name])
        axes.plot(
            [1.005, 1.04],
            [end, place],
            transform=axes.transAxes,
            clip_on=False,
            color=colours[name],
            linewidth=0.7,
        )


def apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Returns places between 0 and 1 near to rising wishes, and no nearer to each other than a gap.

    Where there is no room for all of them, they are as far apart as there is.
    """
    gap = min(gap, 1 / max(1, len(wanted) - 1))
    places: list[float] = []
    for wish in wanted:
        places.append(max(wish, 0.0 if not places else places[-1] + gap))
    ceiling = 1.0
    for number in reversed(range(len(places))):  # what was pushed out at the top goes back down
        places[number] = min(places[number], ceiling)
        ceiling = places[number] - gap
    return places


def around(figure: Any, points: Mapping[Any, Points], colours: Mapping[str, str]) -> bool:
    """Writes each name beside its point, and says whether all found room; otherwise none is written.

    Args:
        figure: The figure, with everything else drawn.
        points: Per axes, the named points in data coordinates.
        colours: The colour of each name.
    """
    figure.draw_without_rendering()  # where everything is, is known only now
    pixel = 72 / figure.dpi  # in points
    found = []
    for axes, own in points.items():
        marks = {name: axes.transData.transform(point) for name, point in own.items()}
        taken = [_box(mark, _MARK / pixel, _MARK / pixel) for mark in marks.values()]
        taken += [text.get_window_extent() for text in axes.texts]
        for name in sorted(own, key=lambda name: -own[name][1]):
            half = _half_size(axes, name)
            box = _free(marks[name], half, pixel, axes.get_window_extent(), taken)
            if box is None:
                return False
            taken.append(box)
            middle = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
            offset = tuple(pixel * (to - at) for to, at in zip(middle, marks[name], strict=True))
            found.append((axes, name, own[name], offset))
    for axes, name, point, offset in found:
        look = {"size": _SIZE, "color": colours[name], "ha": "center", "va": "center"}
        text = axes.annotate(name, point, offset, textcoords="offset points", arrowprops=_LEADER, **look)
        text.set_in_layout(False)
        text.set_path_effects([withStroke(linewidth=2.5, foreground=LIGHT["paper"])])  # lines may pass below
    return True


def _half_size(axes: Any, name: str) -> tuple[float, float]:
    """Returns half of a name's width and height in pixels."""
    text = axes.text(0, 0, name, size=_SIZE)
    box = text.get_window_extent()
    text.remove()
    return box.width / 2, box.height / 2


def _free(
    mark: tuple[float, float], half: tuple[float, float], pixel: float, edge: Bbox, taken: Sequence[Bbox]
) -> Bbox | None:
    """Returns the first free place around a mark, the nearest first; None where there is none."""
    for away in _AWAY:
        for right, up in _DIRECTIONS:
            middle = (
                mark[0] + right * away / pixel + math.copysign(half[0], right) * (right != 0),
                mark[1] + up * away / pixel + math.copysign(half[1], up) * (up != 0),
            )
            box = _box(middle, *half)
            inside = edge.x0 <= box.x0 and box.x1 <= edge.x1 and edge.y0 <= box.y0 and box.y1 <= edge.y1
            if inside and not any(box.overlaps(other) for other in taken):
                return box
    return None


def _box(middle: tuple[float, float], half_width: float, half_height: float) -> Bbox:
    x, y = middle
    return Bbox([[x - half_width, y - half_height], [x + half_width, y + half_height]])
