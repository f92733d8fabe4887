"""From a scenario to what its clients train by."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from fedhp.model.zoo import architecture
from fedhp.pruning.moving import Moves
from fedhp.pruning.schedule import settled
from fedhp.scenario.schema import Scenario
from fedhp.training.method_names import PRUNING, with_choice
from fedhp.training.recipe import Recipe


class StrategyKind(Protocol):
    """What is asked of a strategy before any model: see `fedhp.federation.strategy.FleetStrategy`."""

    @property
    def methods(self) -> Sequence[str]:
        """The client methods that it asks for."""
        ...

    @property
    def cuts_inputs(self) -> bool:
        """Whether inputs are among what it cuts."""
        ...

    def heeds(self, key: str) -> bool:
        """Says whether a key of the section ``prune`` makes any difference to it."""
        ...


def for_strategy(scenario: Scenario, kind: StrategyKind) -> Scenario:
    """Returns the scenario as the strategy has it: not all cut inputs."""
    if kind.cuts_inputs:
        return scenario
    return replace(scenario, model=replace(scenario.model, prune_inputs=False))


def recipe_of(
    scenario: Scenario, input_shape: Sequence[int], num_classes: int, methods: Sequence[str] = PRUNING
) -> Recipe:
    """Returns what the trainer needs of a scenario.

    Args:
        scenario: The scenario.
        input_shape: Of one sample, channels first.
        num_classes: The number of classes.
        methods: The client methods that the strategy asks for, besides those of ``train.methods``; of
            ``train.method`` in the place of DynHP, which is the default.

    Raises:
        ScenarioError: If there is no such method, or the model cannot take such samples, or be pruned so.
    """
    arch = architecture(scenario.model, input_shape, num_classes)
    # After the network, whose need of PyTorch is told by its name.
    from fedhp.training.methods import methods_for, shrinking

    asked = with_choice(methods, shrinking(scenario.train.method))
    kinds = methods_for(asked, scenario.train.methods)
    strategy, fedtiny = scenario.strategy, scenario.strategy.fedtiny
    prune = settled(scenario.prune, arch.layout)
    for kind in kinds:
        arch = kind.network(arch, scenario.train, prune)
    return Recipe(
        arch,
        scenario.train,
        prune,
        scenario.memory,
        scenario.rounds,
        scenario.seed,
        kinds,
        levels=tuple(strategy.levels),
        moves=Moves(fedtiny.every, fedtiny.drop, fedtiny.end),
    )
