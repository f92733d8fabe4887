"""What is compared: strategies, seeds, and the values of the keys that are varied."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from fedhp.errors import ScenarioError
from fedhp.scenario.loading import given_keys

_MOST_KEYS = 2
_OWN = ("seed", "strategy.name")  # keys that a comparison sets itself


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        scenario: A scenario's name or path.
        strategies: Names of strategies, or classes of the user's own.
        seeds: Seeds; each fixes partition, initial weights, sampling and batches.
        over: The values of each key that is varied besides.
        overrides: Scenario values that hold in every run, as on the command line.
        export: The format that each network is exported to; empty for none.

    Raises:
        ScenarioError: If a strategy or a value stands twice, or an override is of a key that is varied.
    """

    scenario: str
    strategies: Sequence[str]
    seeds: Sequence[int]
    over: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    export: str = ""

    def __post_init__(self) -> None:
        lists = [("--over", list(map(str, values))) for values in self.over.values()]
        for what, given in (("--strategies", self.strategies), *lists):
            if twice := next((one for one in given if list(given).count(one) > 1), None):
                raise ScenarioError(f"{what} names {twice} twice")
        varied = [key for key in given_keys(self.overrides) if key in (*_OWN, *self.over)]
        varied += [key for key in self.over if key in _OWN]
        if varied:
            raise ScenarioError(
                f"{', '.join(varied)}: the comparison sets this itself, in each of its runs; leave it out "
                "(--seeds, --strategies and --over choose among them)"
            )


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Reads what ``--over`` was given, once or twice: by key, its values.

    Raises:
        ScenarioError: If one is not of its form, a key stands twice, or there are more than two.
    """
    given = [parse_over(text) for text in texts]
    grid = dict(given)
    if len(grid) < len(given) or len(grid) > _MOST_KEYS:
        said = ", ".join(key for key, _ in given)
        raise ScenarioError(f"--over takes one key, or two different ones, each with its values; got {said}")
    return grid


def parse_over(text: str) -> tuple[str, list[Any]]:
    """Reads ``key=v1,v2``: the key, and its values as YAML has them, lists too.

    Raises:
        ScenarioError: If it is not of this form.
    """
    key, _, listed = text.partition("=")
    try:
        values = yaml.safe_load(f"[{listed}]")
    except yaml.YAMLError:
        values = []
    if not key or not values or None in values:
        raise ScenarioError(
            f"--over takes key=value,value, such as data.partition.alpha=0.1,0.5; got '{text}'"
        )
    return key, values
