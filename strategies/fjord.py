"""FjORD: ordered dropout."""

from fedhp.errors import ScenarioError
from fedhp.training.ordered import check_ordered
from fedhp.training.recipe import Recipe

from .submodel import Nested


class Fjord(Nested):
    """The first units; each step trains one of the widths that the device holds.

    Those are the widest that the device holds, and the narrower ones of ``strategy.levels``, by default its
    paper's 0.2, 0.4, 0.6, 0.8 and 1.
    """

    ordered = True
    paper = "Horvath et al. 2021, arXiv 2102.13451"

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Checks that steps can train the first units of the model, and that nothing watches the whole."""
        check_ordered(recipe.architecture.layout, recipe.train)
        if recipe.memory.batch_policy == "noise":
            raise ScenarioError("strategy 'fjord' takes memory.batch_policy = fixed or fill, got noise")
