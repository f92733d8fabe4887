"""Which arms of a comparison are held against each other: those of one value of the varied key."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedhp.comparison.rows import Row


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


def facets(key: str, arms: Sequence[Row]) -> list[Facet]:
    """Returns a facet per value of the varied key.

    Arms without a value, to whom the key means nothing, stand in each. Where a single strategy has values,
    these are what is compared: one facet holds all.
    """
    if len({row["strategy"] for row in arms if row["value"]}) <= 1:
        return [Facet("", {name(row): row for row in _by_accuracy(arms)})]
    values = dict.fromkeys(row["value"] for row in arms if row["value"])
    return [
        Facet(
            f"{key} = {value}",
            {row["strategy"]: row for row in _by_accuracy(arms) if row["value"] in (value, "")},
        )
        for value in values
    ]


def name(row: Row, prefix: str = "") -> str:
    """Returns what an arm is called: its strategy, and the value of the varied key."""
    strategy, value = row[f"{prefix}strategy"], row[f"{prefix}value"]
    return f"{strategy} {value}".strip()


def _by_accuracy(arms: Sequence[Row]) -> list[Row]:
    return sorted(arms, key=lambda row: -(row["last"] if row["last"] is not None else -1.0))
