"""The runs of a comparison: strategies x seeds x the values of the keys that are varied."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from fedhp.aggregation.options import StrategyConfig
from fedhp.api import simulate
from fedhp.errors import ScenarioError
from fedhp.run.setup import strategy_class
from fedhp.scenario.loading import given_keys, load_scenario
from fedhp.scenario.schema import Scenario, SimulationConfig, TrackingConfig
from fedhp.sweep.cell import Cell, check_names

_HELD_OUT = "data.local_test"
_SHARE_HELD_OUT = 0.2  # where nobody said: on samples trained on, those who overfit look best
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

    Raises:
        ScenarioError: If a strategy or a value stands twice, or an override is of a key that is varied.
    """

    scenario: str
    strategies: Sequence[str]
    seeds: Sequence[int]
    over: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    overrides: Sequence[str] = ()

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


def comparison_cells(comparison: Comparison) -> list[Cell]:
    """Returns a comparison's runs.

    A key is varied, and set, for those strategies that have a use for it; of the others there is one run for
    all its values.

    Raises:
        ScenarioError: If a strategy is unknown, a value wrong, or no strategy has a use for a key.
    """
    for key in comparison.over:
        if not any(_heeds(strategy, key) for strategy in comparison.strategies):
            raise ScenarioError(f"--over: none of {', '.join(comparison.strategies)} has a use for {key}")
    cells = [
        cell
        for strategy in comparison.strategies
        for point in _points(comparison, strategy)
        for cell in _over_seeds(comparison, strategy, point)
    ]
    check_names(cells)
    return cells


def _points(comparison: Comparison, strategy: str) -> Iterator[Mapping[str, Any]]:
    """Yields the values, by key, of all combinations of what the strategy has a use for."""
    keys = [key for key in comparison.over if _heeds(strategy, key)]
    for values in product(*(comparison.over[key] for key in keys)):
        yield dict(zip(keys, values, strict=True))


def _heeds(strategy: str, key: str) -> bool:
    """Says whether a key makes any difference to a strategy: those of pruning only where devices prune."""
    prunes = strategy_class(strategy).prunes()
    return key not in _unused(strategy) and (prunes or not f"{key}.".startswith("prune."))


def _over_seeds(comparison: Comparison, strategy: str, point: Mapping[str, Any]) -> Iterator[Cell]:
    said = {key: _said(value) for key, value in point.items()}
    place = "/".join([strategy.replace(":", "."), *(_folder(key, text) for key, text in said.items())])
    for seed in comparison.seeds:
        values = {**_unused(strategy), **point, "strategy.name": strategy, "seed": seed}
        scenario = _holding_out(comparison, load_scenario(comparison.scenario, comparison.overrides, values))
        labels = {"strategy": strategy, "values": said, "seed": seed}
        name = f"{place}/seed-{seed}"
        yield Cell(name, _grouped(comparison, scenario, name), run_fleet, labels)


def _folder(key: str, said: str) -> str:
    return re.sub(r"[^\w.,-]+", "_", f"{key.rpartition('.')[2]}-{said}")


def _holding_out(comparison: Comparison, scenario: Scenario) -> Scenario:
    """Returns a scenario whose devices hold samples out, unless it was said how many they should."""
    said = _HELD_OUT in (*given_keys(comparison.overrides), *comparison.over)
    if said or scenario.data.local_test:
        return scenario
    return replace(scenario, data=replace(scenario.data, local_test=_SHARE_HELD_OUT))


def _grouped(comparison: Comparison, scenario: Scenario, name: str) -> Scenario:
    """Returns a run's scenario with its place in Weights & Biases: a comparison is one group there."""
    wandb = scenario.tracking.wandb
    group = wandb.group or f"compare-{Path(comparison.scenario).stem}"
    return replace(scenario, tracking=TrackingConfig(replace(wandb, group=group, name=name)))


def _said(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _unused(strategy: str) -> dict[str, Any]:
    """Returns the keys that a strategy has no use for, with their defaults: one scenario serves all."""
    kind, usual = strategy_class(strategy), StrategyConfig()
    foreign = {option.name for option in fields(usual)} - {"name", "optimizer", *kind.options}
    unused = {f"strategy.{option}": getattr(usual, option) for option in foreign}
    return unused if kind.cuts_inputs else {**unused, "model.prune_inputs": False}


def run_fleet(cell: Cell, root: Path) -> None:
    """Runs a cell in this process, since cells, not clients, run in parallel; and judges its model."""
    # Its packages are those of which a command has made sure by now.
    from fedhp.comparison.devices import write_devices

    alone = replace(cell.scenario, simulation=SimulationConfig(num_workers=0))
    write_devices(simulate(alone, root / cell.name, show=False))
