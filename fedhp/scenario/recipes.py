"""From a scenario to what its clients train by."""

from collections.abc import Sequence

from fedhp.model.zoo import architecture
from fedhp.scenario.schema import Scenario
from fedhp.training.method_names import PRUNING
from fedhp.training.recipe import Recipe


def recipe_of(
    scenario: Scenario, input_shape: Sequence[int], num_classes: int, methods: Sequence[str] = PRUNING
) -> Recipe:
    """Returns what the trainer needs of a scenario.

    Args:
        scenario: The scenario.
        input_shape: Of one sample, channels first.
        num_classes: The number of classes.
        methods: The client methods that the strategy asks for, besides those of ``train.methods``; by default
            DynHP.

    Raises:
        ScenarioError: If there is no such method, or the model cannot take such samples.
    """
    arch = architecture(scenario.model, input_shape, num_classes)
    # After the network, whose need of PyTorch is told by its name.
    from fedhp.training.methods import methods_for

    kinds = methods_for(methods, scenario.train.methods)
    levels = tuple(scenario.strategy.levels)
    return Recipe(
        arch, scenario.train, scenario.prune, scenario.memory, scenario.rounds, scenario.seed, kinds, levels
    )
