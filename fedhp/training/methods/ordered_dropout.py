"""FjORD's ordered dropout (Horvath et al. 2021, arXiv 2102.13451): each step trains the first units only.

A part shares its tensors with the whole: its parameters, and what the optimiser keeps for them, are views.
So a device that may hold the whole trains any part of it within the same memory, and units that a step
leaves out stay as they are, to the last bit; in the paper's code their momentum goes on. The paper's optional
self-distillation is not done.
"""

from fedhp.errors import ScenarioError
from fedhp.seeds import generator
from fedhp.training.method import ClientRun, Method
from fedhp.training.parts import LEVELS, check_parts
from fedhp.training.recipe import Recipe


class OrderedDropout(Method):
    """Trains, in every step, one of the widths that the device holds."""

    name = "ordered_dropout"
    by_strategy = True

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Checks that steps can train the first units of the model, and that nothing watches the whole."""
        if recipe.architecture.layout.buffers:
            raise ScenarioError(
                "ordered dropout trains several widths of one model, each of which would need batch "
                "statistics of its own; choose strategy all_in_one, which has them, model.norm = group or a "
                "model without normalisation"
            )
        check_parts(recipe, "ordered dropout")

    def begin(self, run: ClientRun) -> None:
        """Finds the parts."""
        from fedhp.training.widths import Widths

        recipe, task = run.recipe, run.task
        stream = generator(recipe.seed, "ordered dropout", task.round, task.client)
        levels, counts = recipe.levels or LEVELS, run.structure.counts
        self._widths = Widths(recipe.architecture, run.module, run.optimizer, counts, levels, stream)

    def before_step(self, run: ClientRun) -> None:
        """Draws the part."""
        run.part = self._widths.draw()
