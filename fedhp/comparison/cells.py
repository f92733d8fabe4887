"""The runs of a comparison: strategies x seeds x the values of the keys that are varied."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from fedhp.aggregation.options import StrategyConfig
from fedhp.api import resume, simulate
from fedhp.comparison.grid import Comparison
from fedhp.errors import ScenarioError
from fedhp.federation.strategy import FleetStrategy
from fedhp.latency.target import with_widths
from fedhp.records.load import load_state
from fedhp.run.setup import checked_strategy, strategy_class
from fedhp.scenario.heeded import leaves, unheeded
from fedhp.scenario.loading import given_keys, load_scenario
from fedhp.scenario.schema import Scenario, SimulationConfig, TrackingConfig
from fedhp.sweep.cell import Cell, check_names
from fedhp.training.method_names import DYNHP

_HELD_OUT = "data.local_test"
_STRUCTURE = "strategy.structure"
_METHOD = "train.method"
# What is held against what: fresh weights of the units that pruning ends with.
_CONTROL, _PRUNED = "scratch", "mask_intersection"
_SHARE_HELD_OUT = 0.2  # where nobody said: on samples trained on, those who overfit look best


def comparison_cells(comparison: Comparison) -> list[Cell]:
    """Returns a comparison's runs.

    A key is varied, and set, for those strategies that have a use for it; of the others there is one run for
    all its values.

    Raises:
        ScenarioError: If a strategy is unknown, a value wrong, or none for a fleet, no strategy has a use for
            a key, or no network keeps within a target in milliseconds.
    """
    for key in comparison.over:
        if not any(_heeds(comparison, strategy, key) for strategy in comparison.strategies):
            raise ScenarioError(f"--over: none of {', '.join(comparison.strategies)} has a use for {key}")
    _check_control(comparison)
    cells = [
        cell
        for strategy in comparison.strategies
        for point in _points(comparison, strategy)
        for cell in _over_seeds(comparison, strategy, point)
    ]
    check_names(cells)
    return cells


def _check_control(comparison: Comparison) -> None:
    """Refuses a control of runs by other methods than DynHP, which it is the control of."""
    method = load_scenario(comparison.scenario, comparison.overrides).train.method
    followed = any(_follows(comparison, strategy) for strategy in comparison.strategies)
    if followed and method != DYNHP and _METHOD not in comparison.over:
        raise ScenarioError(
            f"{_CONTROL} is the control of DynHP, and trains the units that {_PRUNED} ends with by it; with "
            f"train.method = {method} leave {_CONTROL} out of --strategies"
        )


def _points(comparison: Comparison, strategy: str) -> Iterator[Mapping[str, Any]]:
    """Yields the values, by key, of all combinations of what the strategy has a use for."""
    keys = [key for key in comparison.over if _heeds(comparison, strategy, key)]
    for values in product(*(comparison.over[key] for key in keys)):
        point = dict(zip(keys, values, strict=True))
        if not (_follows(comparison, strategy) and point.get(_METHOD, DYNHP) != DYNHP):
            yield point


def _heeds(comparison: Comparison, strategy: str, key: str) -> bool:
    """Says whether a key makes any difference to a strategy, or to the run that it takes its units of."""
    if _follows(comparison, strategy):
        return _has_use(strategy, key) or _has_use(_PRUNED, key)
    return _has_use(strategy, key)


def _has_use(strategy: str, key: str) -> bool:
    """Says whether a key makes any difference: those of pruning only where models become smaller."""
    kind = strategy_class(strategy)
    return key not in _unused(strategy) and (kind.heeds(key) or not f"{key}.".startswith("prune."))


def _follows(comparison: Comparison, strategy: str) -> bool:
    """Says whether a strategy's runs take the units that those by `_PRUNED` end with."""
    said = _STRUCTURE in (*given_keys(comparison.overrides), *comparison.over)
    return strategy == _CONTROL and _PRUNED in comparison.strategies and not said


def _over_seeds(comparison: Comparison, strategy: str, point: Mapping[str, Any]) -> Iterator[Cell]:
    said = {key: _said(value) for key, value in point.items()}
    for seed in comparison.seeds:
        own = {key: value for key, value in point.items() if _has_use(strategy, key)}
        unused = {**unheeded(str(own.get(_METHOD)), Scenario()), **_unused(strategy)}
        values = {**unused, **own, "strategy.name": strategy, "seed": seed}
        scenario = _holding_out(comparison, load_scenario(comparison.scenario, comparison.overrides, values))
        # Before any runs beside it, which would be in the way of measuring.
        chosen = with_widths(scenario, checked_strategy(scenario))
        labels = {"strategy": strategy, "values": said, "seed": seed}
        name = _name(strategy, said, seed)
        run = partial(run_fleet, notes=chosen.notes) if chosen.notes else run_fleet
        cell = Cell(name, _grouped(comparison, chosen.scenario, name), run, labels)
        yield _after_pruned(comparison, cell, point) if _follows(comparison, strategy) else cell


def _after_pruned(comparison: Comparison, cell: Cell, point: Mapping[str, Any]) -> Cell:
    """Returns a run with fresh weights as one that waits for the pruned run of its seed and values."""
    own = {key: _said(value) for key, value in point.items() if _has_use(_PRUNED, key)}
    pruned = _name(_PRUNED, own, cell.labels["seed"])
    return replace(cell, after=(pruned,), settle=partial(_with_units_of, pruned))


def _with_units_of(pruned: str, scenario: Scenario, root: Path) -> Scenario:
    state, _ = load_state(root / pruned)
    strategy = replace(scenario.strategy, structure=state.structure.to_text())
    return replace(scenario, strategy=strategy)


def _name(strategy: str, said: Mapping[str, str], seed: int) -> str:
    parts = [strategy.replace(":", "."), *(_folder(key, text) for key, text in said.items())]
    return "/".join([*parts, f"seed-{seed}"])


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
    heeded = {"name", "optimizer", *kind.options}
    if kind.reconciliation is FleetStrategy.reconciliation:  # which a rule changes
        heeded.add("robust")
    unused = {key: value for key, value in leaves(usual, "strategy.") if key.split(".")[1] not in heeded}
    if not kind.prunes():
        unused[_METHOD] = DYNHP
    return unused if kind.cuts_inputs else {**unused, "model.prune_inputs": False}


def run_fleet(cell: Cell, root: Path, notes: tuple[str, ...] = ()) -> None:
    """Runs a cell in this process, since cells, not clients, run in parallel; and judges its model.

    Args:
        cell: The cell.
        root: The comparison's folder.
        notes: What is known of it already that its user should know.
    """
    # Its packages are those of which a command has made sure by now.
    from fedhp.comparison.devices import write_devices

    folder, alone = root / cell.name, SimulationConfig(num_workers=0)
    scenario = replace(cell.settled(root), simulation=alone)
    if folder.exists():
        run = resume(folder, show=False, simulation={"num_workers": 0})
    else:
        run = simulate(scenario, folder, show=False, notes=notes)
    write_devices(run)
