"""Rows of many runs: those that belong together, and what the seeds of an arm come to.

Means are exact before they are rounded, as those of NumPy and pandas are not: a table holds every digit, and
must not depend on the order of its seeds.
"""

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from fedhp.sweep.texts import Row


def grouped(rows: Sequence[Row], *keys: str) -> list[list[Row]]:
    """Returns together the rows that agree in these columns, in the order in which they came."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(groups.values())


def known(rows: Sequence[Row], key: str) -> list[Any]:
    """Returns a column's values, of the rows that have one."""
    return [row[key] for row in rows if row.get(key) is not None]


def mean_of(rows: Sequence[Row], key: str) -> float | None:
    """Returns a column's mean; None where no row has a value."""
    values = known(rows, key)
    return mean(values) if values else None


def deviation_of(rows: Sequence[Row], key: str) -> float | None:
    """Returns the standard deviation of a sample; of one value, nothing is known of the spread."""
    values = known(rows, key)
    return stdev(values) if len(values) > 1 else None
