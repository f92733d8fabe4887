"""How arms differ in pairs: by how much, how sure that is, and which are one and the same."""

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import mean
from typing import Any

from scipy.stats import ttest_rel

from fedhp.comparison.facets import Facet
from fedhp.comparison.rows import CONFIDENCE, ENOUGH, OVER_SEEDS
from fedhp.sweep.texts import Row

_NOT_MEASURED = "seconds"  # differs between runs that are equal in all else


def pair_rows(facets: Sequence[Facet], runs: Sequence[Row]) -> list[Row]:
    """Returns, facet by facet, a row per pair of arms: the difference of their last accuracies over seeds.

    ``points`` is the mean over common seeds of the first's less the second's, ``low`` and ``high`` bound it
    with a confidence of 95%, ``p`` is two-sided, of a paired t-test (Student 1908), and ``p_holm`` the same
    corrected for all pairs of the facet. The bounds are None where there are fewer than three common seeds,
    and they and p where there are fewer than two, or the differences do not vary.
    """
    return [row for facet in facets for row in _corrected(list(_pairs_of(facet, runs)))]


def _pairs_of(facet: Facet, runs: Sequence[Row]) -> Sequence[Row]:
    pairs = combinations(facet.done.values(), 2)
    found = ((one, other, _difference(by_seed(one, runs), by_seed(other, runs))) for one, other in pairs)
    return [
        {
            "facet": facet.title,
            "strategy": one["strategy"],
            "value": one["value"],
            "other_strategy": other["strategy"],
            "other_value": other["value"],
            **difference,
        }
        for one, other, difference in found
        if difference
    ]


def by_seed(arm: Row, runs: Sequence[Row]) -> dict[int, Row]:
    """Returns the rows of an arm's runs that have a result, by seed."""
    own = (arm["strategy"], arm["value"])
    return {row["seed"]: row for row in runs if (row["strategy"], row["value"]) == own and "last" in row}


def _difference(first: Mapping[int, Row], second: Mapping[int, Row]) -> Row:
    """Returns by how much the first arm is better; nothing where the two have no seed in common."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return {}
    a, b = ([rows[seed]["last"] for seed in seeds] for rows in (first, second))
    differences = [x - y for x, y in zip(a, b, strict=True)]
    row: Row = {"seeds": len(seeds), "points": mean(differences), "low": None, "high": None, "p": None}
    if max(differences) - min(differences) > 1e-9:  # percentages: equal but for rounding is equal
        test: Any = ttest_rel(a, b)
        row["p"] = float(test.pvalue)
        if len(seeds) >= ENOUGH:
            low, high = test.confidence_interval(CONFIDENCE)
            row |= {"low": max(-100.0, float(low)), "high": min(100.0, float(high))}
    return row


def _corrected(family: Sequence[Row]) -> list[Row]:
    corrected = iter(holm([row["p"] for row in family if row["p"] is not None]))
    return [{**row, "p_holm": None if row["p"] is None else next(corrected)} for row in family]


def holm(chances: Sequence[float]) -> list[float]:
    """Returns p values corrected for their number (Holm 1979): below a level, none of them by chance alone.

    The smallest of n counts n times, the next n - 1 times, and none less than a smaller one; 1 at most.
    """
    order = sorted(range(len(chances)), key=lambda index: chances[index])
    corrected, least = [0.0] * len(chances), 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(chances) - rank) * chances[index]))
        corrected[index] = least
    return corrected


def identical(facet: Facet, runs: Sequence[Row]) -> list[list[str]]:
    """Returns the groups of arms that are equal in every figure of every seed, of two arms or more."""
    figures = [key for key in OVER_SEEDS if key != _NOT_MEASURED]
    groups: dict[str, list[str]] = {}
    for label, arm in facet.done.items():
        own = {seed: [row[key] for key in figures] for seed, row in sorted(by_seed(arm, runs).items())}
        groups.setdefault(json.dumps(own), []).append(label)
    return [group for group in groups.values() if len(group) > 1]
