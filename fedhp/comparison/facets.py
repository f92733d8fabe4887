"""Which arms of a comparison are held against each other: those of one value of each varied key."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from fedhp.sweep.texts import Row


@dataclass(frozen=True)
class Facet:
    """Arms that are held against each other.

    Attributes:
        title: What they have in common, such as ``data.partition.alpha = 0.1``; empty where all are here.
        arms: Their rows by what they are called, the most accurate first, those without a result last.
    """

    title: str
    arms: dict[str, Row]

    @property
    def done(self) -> dict[str, Row]:
        """The arms that have a result."""
        return {label: row for label, row in self.arms.items() if row["last"] is not None}


def facets(keys: Sequence[str], arms: Sequence[Row]) -> list[Facet]:
    """Returns a facet per combination of the varied keys' values.

    Arms to which a key means nothing stand with each of its values. Where a single strategy has values, these
    are what is compared: one facet holds all.
    """
    if len({row["strategy"] for row in arms if row["value"]}) <= 1:
        return [Facet("", {name(row): row for row in _by_accuracy(arms)})]
    return [
        Facet(
            ", ".join(f"{key} = {value}" for key, value in zip(keys, point, strict=True)),
            {
                row["strategy"]: row
                for row in _by_accuracy(arms)
                if all(row[key] in (value, "") for key, value in zip(keys, point, strict=True))
            },
        )
        for point in product(*(values_of(key, arms) for key in keys))
    ]


def values_of(key: str, rows: Sequence[Row]) -> list[str]:
    """Returns the values of a varied key: numbers rising, others as they came."""
    values = list(dict.fromkeys(row[key] for row in rows if row[key]))
    try:
        return sorted(values, key=float)
    except ValueError:
        return values


def name(row: Row) -> str:
    """Returns what an arm is called: its strategy, and its values of the varied keys."""
    return f"{row['strategy']} {row['value']}".strip()


def _by_accuracy(arms: Sequence[Row]) -> list[Row]:
    return sorted(arms, key=lambda row: -(row["last"] if row["last"] is not None else -1.0))
