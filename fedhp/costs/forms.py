"""Which groups a storage's bytes grow with, told by its sizes in a few rehearsals of unlike unit counts.

What lives in a step has the channels of some part of some parameter's axis: one group's, or several in a row
where maps are concatenated. Unit counts are chosen such that the sizes of no two of those are in the same
proportion throughout, so that the proportion of a storage's own sizes tells its channels.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedhp.model.layout import Layout
from fedhp.seeds import generator

Counts = Mapping[str, int]

_FEWEST = 3
_NUM_COUNTS, _TRIALS = (3, 4, 5, 6), 8  # more where groups are many, or so narrow that they are alike

_Key = tuple[int, ...]


def telling_counts(layout: Layout) -> list[dict[str, int]]:
    """Returns unlike unit counts of all groups, which tell those parts of axes apart that can be."""
    parts, num_groups = list(_parts(layout)), len(layout.widths)
    most_units = _FEWEST + 5 + 2 * math.isqrt(num_groups)
    # Not above a group's width, where it can be: a network may take the first so many of some channels.
    highest = [max(_FEWEST + 1, min(width, most_units)) for width in layout.widths.values()]
    best: list[dict[str, int]] = []
    most = -1
    for trial, number_of_counts in enumerate(np.repeat(_NUM_COUNTS, _TRIALS)):
        stream = generator(trial, "telling counts")
        drawn = stream.integers(_FEWEST, highest, (number_of_counts, num_groups), endpoint=True)
        counts = [dict(zip(layout.widths, row.tolist(), strict=True)) for row in drawn]
        number = len({_key(sizes) for sizes in _sizes(parts, counts)})
        if number > most:
            best, most = counts, number
        if number == len(parts):
            break
    return best


def forms_by_size(
    layout: Layout, counts: Sequence[Counts], sizes: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """Returns every storage's bytes as coefficients of ``(1, units)``.

    Args:
        layout: The model's wiring.
        counts: The unit counts of the rehearsals.
        sizes: Each storage's bytes in each of them, of shape ``(storages, rehearsals)``.

    Returns:
        Coefficients of shape ``(storages, 1 + groups)``; None where some size is in no known proportion.
    """
    parts = list(_parts(layout))
    known: dict[_Key, NDArray[np.int64] | None] = {}
    for part, own in zip(parts, _sizes(parts, counts), strict=True):
        known[_key(own)] = None if _key(own) in known else np.array(part, np.int64)
    forms = np.zeros((len(sizes), 1 + len(layout.widths)), np.int64)
    units = np.array([1, *counts[0].values()], np.int64)
    for row, own in enumerate(sizes.tolist()):
        if not any(own):
            continue
        part = known.get(_key(own))
        if part is None:
            return None
        forms[row] = part * own[0] // (part @ units)
    return forms


def _parts(layout: Layout) -> Iterator[_Key]:
    """Yields the coefficients of ``(1, units)`` of what never grows and of all stretches of axes, each once.

    They are in lowest terms.
    """
    places = {group: place for place, group in enumerate(layout.widths, 1)}
    axes = dict.fromkeys(runs for name in layout.shapes for runs in layout.runs(name) if runs)
    constant = (1, *[0] * len(places))
    seen: set[_Key] = {constant}
    yield constant
    for runs in axes:
        for start in range(len(runs)):
            part = [0] * (1 + len(places))
            for run in runs[start:]:
                part[0 if run.group is None else places[run.group]] += run.span
                factor = math.gcd(*part)
                key = tuple(number // factor for number in part)
                if key not in seen:
                    seen.add(key)
                    yield key


def _sizes(parts: Sequence[_Key], counts: Sequence[Counts]) -> list[list[int]]:
    units = np.array([[1, *one.values()] for one in counts], np.int64)
    return (np.array(parts, np.int64).reshape(len(parts), -1) @ units.T).tolist()


def _key(sizes: Sequence[int]) -> _Key:
    factor = math.gcd(*sizes)
    return tuple(size // factor for size in sizes)
