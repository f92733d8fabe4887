"""FjORD: ordered dropout."""

from collections.abc import Sequence

from fedhp.errors import ScenarioError
from fedhp.ordered import check_ordered
from fedhp.recipe import Recipe
from fedhp.submodels import FJORD_LEVELS

from .submodel import Nested


class Fjord(Nested):
    """FjORD (Horvath et al. 2021, arXiv 2102.13451): each step trains one of a device's widths."""

    ordered = True

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Checks that steps can train the first units of the model, and that nothing watches the whole."""
        check_ordered(recipe.architecture.layout, recipe.train)
        if recipe.memory.batch_policy == "noise":
            raise ScenarioError("strategy 'fjord' takes memory.batch_policy = fixed or fill, got noise")

    @property
    def levels(self) -> Sequence[float]:
        """The widths to draw from; by default its paper's five."""
        return self.scenario.strategy.levels or FJORD_LEVELS
