"""One set of weights for networks of many widths, whose units are chosen by what they contribute.

After All-in-One (Gong et al. 2022, arXiv 2212.05122), which represents models of many pruning ratios by one
set of weights and soft masks, for devices whose clock changes. Only that of its abstract is taken. That a
ratio's mask are the units of the highest scores, that every step trains one ratio, drawn as in FjORD (Horvath
et al. 2021, arXiv 2102.13451), and that masks are soft in that units come and go until ``prune.end``, is our
reading.

A device puts its units into the order of their scores: then the units of every ratio are the first, and a
part is a view of the whole, as in ordered dropout.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from fedhp.costs.memory import Extras
from fedhp.errors import ScenarioError
from fedhp.model.architecture import INPUTS
from fedhp.model.state import Scores
from fedhp.pruning.contributions import Contributions
from fedhp.pruning.criteria import CRITERIA, check_criterion
from fedhp.seeds import generator
from fedhp.training.method import ClientRun, Method, trains_whole
from fedhp.training.parts import LEVELS, check_parts
from fedhp.training.recipe import Recipe


class AllInOne(Method):
    """Trains, in every step, one of the ratios that the device holds; steps of the whole score units."""

    name = "all_in_one"
    by_strategy = True

    @classmethod
    def extras(cls, recipe: Recipe) -> Extras:
        """What looks at units take, as in DynHP; by it counts the copy of a tensor in another order."""
        criterion = CRITERIA[recipe.prune.criterion]
        per_unit = dict.fromkeys(recipe.architecture.layout.widths, max(criterion.unit_bytes, 4))
        return Extras(scratch=criterion.scratch, unit_bytes=per_unit)

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Checks that steps can train parts of the model, and that it has what the criterion looks at."""
        layout = recipe.architecture.layout
        check_parts(recipe, cls.name)
        check_criterion(recipe.prune.criterion, layout)
        if INPUTS in layout.widths:
            raise ScenarioError(f"{cls.name} takes samples whole; set model.prune_inputs=false")

    @property
    def tensors(self) -> Sequence[Any]:
        """The averages of contributions."""
        return self._watch.tensors if self._has_begun else ()

    @property
    def key(self) -> Hashable:
        """By what it scores."""
        return self.name

    def __init__(self) -> None:
        self._has_begun = False

    def begin(self, run: ClientRun) -> None:
        """Puts units into the order of their scores, finds the parts, and begins to watch."""
        from fedhp.training.widths import Widths

        recipe, task, known = run.recipe, run.task, run.task.state.scores
        self._orders = {group: np.argsort(-scores, kind="stable") for group, scores in known.items()}
        self._reorder(run, back=False)
        stream = generator(recipe.seed, "all in one", task.round, task.client)
        levels, counts = recipe.levels or LEVELS, run.structure.counts
        self._widths = Widths(recipe.architecture, run.module, run.optimizer, counts, levels, stream)
        self._watch = Contributions(
            recipe.architecture.layout,
            CRITERIA[recipe.prune.criterion],
            run.module,
            {group: known[group][order] for group, order in self._orders.items()},
            recipe.prune.blend,
            generator(recipe.seed, "criterion", task.round, task.client),
        )
        self._has_begun = True

    def before_step(self, run: ClientRun) -> None:
        """Draws the part."""
        run.part = self._widths.draw()

    def on_gradients(self, run: ClientRun) -> None:
        """Measures units in steps of all that the device holds: only there all of them show something."""
        if trains_whole(run):
            self._watch.observe()

    def after_step(self, run: ClientRun) -> None:
        """Counts those steps."""
        if trains_whole(run):
            self._watch.count()

    def end(self, run: ClientRun) -> Scores:
        """Puts units back into their places; returns the scores that were sent, blended with the own ones.

        Own scores are shares of the mean over what the device holds. They count by the mean of the scores
        that were sent, so that a device that holds the best units alone ranks these, and none of the others.
        """
        self._watch.close()
        known, own, blend = run.task.state.scores, self._watch.own(), run.recipe.prune.blend
        scores = {}
        for group, share in own.items():
            order, before = self._orders[group], known[group]
            scores[group] = blend * before
            scores[group][order] += (1 - blend) * before.mean() * share
        self._reorder(run, back=True)
        return scores

    def _reorder(self, run: ClientRun, back: bool) -> None:
        from fedhp.model.reordering import inverse, reorder

        orders, layout = inverse(self._orders) if back else self._orders, run.recipe.architecture.layout
        with run.meter.watching((self.name, back, run.step_key(0)), run.held):
            reorder(run.module, run.optimizer, layout, orders)
