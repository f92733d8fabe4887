"""What a model and its training must be for steps to train parts of it: see `fedhp.training.widths`."""

from fedhp.errors import ScenarioError
from fedhp.training.recipe import Recipe

# The widths of FjORD's experiments with image models (Horvath et al. 2021, arXiv 2102.13451).
LEVELS = (0.2, 0.4, 0.6, 0.8, 1.0)


def check_parts(recipe: Recipe, who: str) -> None:
    """Checks that steps can train parts of a model that share its tensors.

    Raises:
        ScenarioError: If its parts are no views of it, the optimiser keeps more than a momentum, or something
            watches the whole.
    """
    layout, train = recipe.architecture.layout, recipe.train
    if any(len(runs) > 1 for name in layout.shapes for runs in layout.runs(name)):
        raise ScenarioError(f"{who} cannot train a model that concatenates feature maps")
    if train.optimizer != "sgd":
        raise ScenarioError(f"{who} takes train.optimizer = sgd, got {train.optimizer}")
    if recipe.memory.batch_policy == "noise":
        raise ScenarioError(f"{who} takes memory.batch_policy = fixed or fill, got noise")
