"""From a scenario to what a run needs, with every check that can be made before the first device is asked."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

from fedhp.aggregation.options import StrategyConfig
from fedhp.choices import check_choice
from fedhp.data.dataset import Dataset, open_dataset
from fedhp.data.partition import partition_rows
from fedhp.data.parts import test_shard
from fedhp.errors import BudgetError, ScenarioError
from fedhp.federation import wire
from fedhp.federation.strategy import FleetStrategy
from fedhp.model.building import initial_state
from fedhp.references import resolve
from fedhp.run.prepared import Setup
from fedhp.run.structures import with_structure
from fedhp.scenario.recipes import for_strategy, recipe_of
from fedhp.scenario.schema import Scenario
from fedhp.tracking.wandb_tracker import check_installed
from fedhp.training.method_names import DYNHP
from fedhp.training.recipe import Recipe

# The strategies themselves stand outside of the core, which knows them by this reference alone.
_REGISTRY = "strategies:STRATEGIES"


def prepare(scenario: Scenario, simulated: bool = True) -> Setup:
    """Opens the data, lays out the model and checks that everything fits together.

    Args:
        scenario: What is to be run.
        simulated: Whether the devices will be those of the scenario's classes. Real ones tell their budgets
            when they are asked, and those that are too small are left out by name.

    Raises:
        ScenarioError: If the strategy is unknown, or the model cannot be pruned as asked.
        BudgetError: If a device class of a simulation cannot train what the strategy asks at least.
        DataError: If the data is missing or wrong, or cannot be partitioned as asked.
    """
    kind = checked_strategy(scenario)
    scenario = for_strategy(scenario, kind)
    dataset = open_dataset(scenario.data)
    parts = partition_rows(scenario.data, scenario.fleet.num_clients, scenario.seed)
    recipe = recipe_of(scenario, dataset.input_shape, dataset.num_classes, kind.methods)
    scenario = with_structure(replace(scenario, prune=recipe.prune), recipe.architecture.layout)
    test = test_shard(scenario.data)
    memory = recipe.memory_model(test.raw_itemsize)
    recipe.device()
    recipe.check_batch()
    _check_devices(scenario)
    if simulated:
        _check_found_by_workers(scenario, kind.methods)
    recipe.check_methods()
    kind.check(recipe)
    if recipe.architecture.plain is not None:
        _check_reconciled(kind, scenario)
    state = initial_state(recipe.architecture, scenario.seed)
    strategy = kind(scenario, recipe, memory, state, _brief(scenario, dataset, kind, recipe))
    if simulated:
        _check_budgets(strategy, recipe)
    return Setup(scenario, dataset, recipe, memory, test, strategy, tuple(map(len, parts)))


def _brief(scenario: Scenario, dataset: Dataset, kind: type[FleetStrategy], recipe: Recipe) -> wire.Brief:
    return wire.Brief(
        scenario.to_json(),
        dataset.input_shape,
        dataset.num_classes,
        dataset.normalisation,
        kind.methods,
        kind.budgeted,
        dataset.label_names,
        tuple(recipe.shape.shares[group] for group in recipe.architecture.layout.scored),
    )


def _check_found_by_workers(scenario: Scenario, methods: Sequence[str]) -> None:
    train = scenario.train
    own = [("strategy.name", methods), ("train.method", [train.method]), ("train.methods", train.methods)]
    for key, references in (*own, ("model.target", [scenario.model.target])):
        within = [one for one in references if one.startswith("__main__:")]
        if within and scenario.simulation.num_workers:
            raise ScenarioError(
                f"{key}: '{within[0]}' is of the script or notebook itself, which workers do not import; put "
                f"it into a file of its own, or set simulation.num_workers=0"
            )


def _check_devices(scenario: Scenario) -> None:
    check_installed(scenario.tracking.wandb)
    simulation = scenario.simulation
    if scenario.train.device == "cuda" and simulation.num_workers and not simulation.gpus_per_worker:
        raise ScenarioError(
            "train.device = cuda needs simulation.gpus_per_worker above 0 (or num_workers = 0): workers "
            "see only the GPUs that they reserve"
        )


def registry() -> Mapping[str, type[FleetStrategy]]:
    """Returns the strategies that ship, by name."""
    return resolve(_REGISTRY)


def strategy_class(name: str) -> type[FleetStrategy]:
    """Returns the strategy of a name, or of the user's own by reference.

    Raises:
        ScenarioError: If there is none.
    """
    if ":" not in name:
        own = "or give a class of your own as 'package.module:Class'"
        check_choice("strategy.name", name, registry(), own)
        return registry()[name]
    found = resolve(name, "strategy.name")
    if not (isinstance(found, type) and issubclass(found, FleetStrategy)):
        raise ScenarioError(f"strategy.name: '{name}' is no subclass of FleetStrategy")
    _check_hooks(name, found)
    return found


def _check_hooks(name: str, kind: type[FleetStrategy]) -> None:
    """Refuses what a run does not call, and what earlier versions called methods: both would do nothing."""
    for phase in ("start", "configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate"):
        if getattr(kind, phase) is not getattr(FleetStrategy, phase):
            raise ScenarioError(
                f"strategy.name: '{name}' overrides Flower's {phase}, which a run of fedhp does not go "
                f"through; override sample, assign, survivors or average instead"
            )
    if kind.needs == "sums" and kind.ask is not FleetStrategy.ask:
        raise ScenarioError(
            f"strategy.name: '{name}' overrides ask, which devices that are simulated together are not asked "
            f"by; override sample or assign instead, or say needs = 'updates'"
        )
    for flag, said in (("prunes", "(*MaskIntersection.methods,)"), ("ordered", "('ordered_dropout',)")):
        if isinstance(getattr(kind, flag, None), bool):
            raise ScenarioError(f"strategy.name: '{name}' sets {flag}; say methods = {said} instead")
    if kind.needs not in ("sums", "updates"):
        raise ScenarioError(
            f"strategy.name: '{name}': needs must be 'sums' or 'updates', got {kind.needs!r:.40}"
        )
    if kind.needs == "sums" and kind.reconciliation is not FleetStrategy.reconciliation:
        raise ScenarioError(
            f"strategy.name: '{name}' overrides reconciliation, which is given every update only where the "
            f"strategy says needs = 'updates'"
        )
    if kind.needs == "sums" and kind.model_of is not FleetStrategy.model_of:
        raise ScenarioError(
            f"strategy.name: '{name}' overrides model_of, which devices that are simulated together have no "
            f"models by; the strategy has to say needs = 'updates'"
        )
    if not isinstance(kind.methods, tuple) or not all(isinstance(one, str) for one in kind.methods):
        raise ScenarioError(
            f"strategy.name: '{name}': methods must be a tuple of names or references, got "
            f"{kind.methods!r:.80}"
        )


def checked_strategy(scenario: Scenario) -> type[FleetStrategy]:
    """Returns a scenario's strategy, which has a use for all the options that are given.

    Raises:
        ScenarioError: If there is none of that name, it has no use for an option or a client method, or the
            scenario asks for a pattern of weights.
    """
    kind = strategy_class(scenario.strategy.name)
    _check_options(kind, scenario.strategy)
    _check_method(kind, scenario)
    _check_pattern(scenario.prune.pattern.name)
    return kind


def _check_method(kind: type[FleetStrategy], scenario: Scenario) -> None:
    if scenario.train.method != DYNHP and not kind.prunes():
        pruning = [name for name, strategy in registry().items() if strategy.prunes()]
        raise ScenarioError(
            f"train.method = {scenario.train.method} has no effect with strategy '{scenario.strategy.name}', "
            f"whose devices train what they are sent; leave it out, or choose one of {', '.join(pruning)}"
        )


def _check_reconciled(kind: type[FleetStrategy], scenario: Scenario) -> None:
    """Refuses what adds up updates of networks that hold the same weights, where clients move them."""
    name, rule = scenario.strategy.name, scenario.strategy.robust.rule
    key = scenario.leaves_out_weights or f"strategy.name = {name}"
    if rule != "mean":
        raise ScenarioError(
            f"strategy.robust.rule = {rule} has no effect with {key}, whose clients hold weights of their "
            f"own; leave it out, or choose another"
        )
    if kind.reconciliation is not FleetStrategy.reconciliation:
        raise ScenarioError(
            f"{key}: strategy '{name}' has a reconciliation of its own, which knows nothing of weights that "
            f"clients move; choose another"
        )


def _check_pattern(pattern: str) -> None:
    if pattern != "none":
        raise ScenarioError(
            f"prune.pattern.name = {pattern} is for 'fedhp train': of models that are masked otherwise, the "
            f"mean has no pattern. Leave it out, and export the fleet's model with --compress "
            f"{pattern.replace('nm', 'obc')}"
        )


def _check_options(kind: type[FleetStrategy], config: StrategyConfig) -> None:
    """Refuses options that the strategy has no use for: whoever set one would take it for heeded."""
    usual = StrategyConfig()
    if config.robust.rule != "mean" and kind.reconciliation is not FleetStrategy.reconciliation:
        raise ScenarioError(
            f"strategy.robust.rule: strategy '{config.name}' has no use for it, as updates are added up by a "
            f"reconciliation of its own; leave it out"
        )
    for option in fields(StrategyConfig):
        key = option.name
        has_use = key in ("name", "optimizer", "robust", *kind.options)
        if has_use or getattr(config, key) == getattr(usual, key):
            continue
        owners = [name for name, strategy in registry().items() if key in strategy.options]
        raise ScenarioError(
            f"strategy.{key}: strategy '{config.name}' has no use for it; leave it out, or choose one of "
            f"{', '.join(owners)}"
        )


def _check_budgets(strategy: FleetStrategy, recipe: Recipe) -> None:
    # The smallest budget first: what an error says of it helps all.
    for kind in sorted(strategy.scenario.fleet.classes, key=lambda kind: kind.memory_bytes):
        try:
            strategy.check_budget(kind.memory_bytes)
        except BudgetError as error:
            raise BudgetError(f"fleet class '{kind.name}' ({kind.memory}): {error}{_kept(recipe)}") from None


def _kept(recipe: Recipe) -> str:
    """Says what takes memory that a plain training does without."""
    slots = {kind.said(recipe): kind.extras(recipe).slots for kind in recipe.methods}
    kept = [f"{said} keeps {n} tensor{'s' * (n > 1)} per parameter" for said, n in slots.items() if n]
    return f". Of those bytes, {', and '.join(kept)}" if kept else ""
